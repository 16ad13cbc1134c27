"""`check`, `diff`, `show` and `train --dataset`, on datasets of all kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Macpo, OpenRun, no_progress, shared

from macpo_data.errors import DataError, MacpoError, ModelError, RecipeError
from macpo_data.forms import check as checks
from macpo_data.forms import row_findings
from macpo_data.loading.load import load_settings
from macpo_data.recipe.data import Columns
from macpo_data.report.compare import Version, compare, differences
from macpo_data.sources.ingest.canonical import TRAINABLE
from macpo_data.sources.ingest.door import Rows, open_rows
from macpo_data.sources.ingest.splits import Dataset, Source, every_split, open_split
from macpo_run.standalone import scores_depend_on, train_on, usable_pairs, workplace
from macpo_run.terminal.pairs import matching

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def answer(text: str) -> Row:
    return {"role": "assistant", "content": text}


EXPLICIT = {"prompt": [user("q")], "chosen": [answer("good")], "rejected": [answer("bad one")]}
FULL = {side: [user("q"), *EXPLICIT[side]] for side in ("chosen", "rejected")}
SHAREGPT = {"prompt": [user("q")], "chosen": answer("good"), "rejected": answer("bad one")}
TEXT = {"prompt": "q", "chosen": "good", "rejected": "bad one"}
HH = {
    side: f"\n\nHuman: q\n\nAssistant: {a}"
    for side, a in zip(FULL, ("good", "bad one"), strict=True)
}
ANSWERS = {"chosen": "good", "rejected": "bad one"}
TAGGED = {
    "conversations": [{"from": "human", "value": "q"}],
    **{side: {"from": "gpt", "value": text} for side, text in ANSWERS.items()},
}
DOUBLE = {"prompt": [user("q")], **FULL}


def opened(rows: list[Row], columns: Columns | None = None) -> Rows:
    """Rows as if they stood in a file."""
    return open_rows(Source("x", iter([rows])), columns or Columns(), takes=TRAINABLE)


def readers(row: Row) -> set[str]:
    readings = checks.readings(opened([row]))
    return {each.trainer for each in readings if each.reads} - {"macpo"}


def test_which_trainer_reads_which_form() -> None:
    """As their sources say; see the table in the README."""
    conversations = {"open-instruct", "alignment-handbook", "torchtune", "openrlhf", "axolotl"}
    explicit = {"trl", "axolotl", "openrlhf", "alignment-handbook"}
    assert readers(EXPLICIT) == explicit
    texts = {"chosen_text": "good", "rejected_text": "bad"}
    assert readers({**EXPLICIT, **texts}) == explicit | {"nemo-rl"}
    assert readers(FULL) == {"trl"} | conversations
    assert readers(SHAREGPT) == {"axolotl", "llama-factory"}
    plain = {"axolotl", "nemo-rl", "llama-factory", "openrlhf", "torchtune"}
    assert readers(TEXT) == {"trl"} | plain
    assert readers(DOUBLE) == conversations
    # TRL takes any one of the columns that it knows to tell messages from text.
    assert readers({**TEXT, "messages": [user("q")]}) == plain
    assert "trl" in readers({**EXPLICIT, "messages": [user("q")]})
    assert readers(TAGGED) == {"axolotl", "llama-factory"}
    lists = {side: [TAGGED[side]] for side in ANSWERS}
    assert readers({**TAGGED, **lists}) == {"axolotl"}  # it takes the last one
    assert readers({"instruction": "q", "input": "in full", **ANSWERS}) == {"llama-factory"}
    query = {"query": "q", "response": "good", "rejected_response": "bad"}
    assert readers(query) == plain | {"ms-swift"}


def test_a_trainer_that_reads_other_names_is_told_all_of_them() -> None:
    """Each in the words of its own configuration."""
    columns = Columns(prompt="question", chosen="better", rejected="worse")
    rows = opened([{"question": "q", "better": "good", "worse": "bad one"}], columns)
    expected = {
        each.trainer: each.how
        for each in checks.readings(rows)
        if each.reads and each.trainer != "macpo"
    }
    assert expected.keys() == {"axolotl", "llama-factory", "openrlhf", "torchtune", "nemo-rl"}
    assert all(name in how for how in expected.values() for name in ("question", "better", "worse"))
    assert expected["llama-factory"].endswith("{prompt: question, chosen: better, rejected: worse}")
    assert "field_chosen: better, field_rejected: worse" in expected["axolotl"]
    full = [{"better": FULL["chosen"], "worse": FULL["rejected"]}]
    sides = Columns(chosen="better", rejected="worse")
    how = {each.trainer: each for each in checks.readings(opened(full, sides))}
    assert how["axolotl"].how.endswith("argilla_chat, field_chosen: better, field_rejected: worse")


def test_prompts_alone_beside_columns_of_answers_are_told_how_to_name_them(
    macpo: Macpo, tmp_path: Path
) -> None:
    row = {"question": "q", "better": "good", "worse": "bad one"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    named = "--columns prompt=question,chosen=better,rejected=worse"
    assert named in " ".join(macpo("check", "own.jsonl").stdout.split())
    train = ["train", "--dataset", "own.jsonl", "--base", "world:tiny", "--out", "x"]
    assert named in macpo(*train, fake=True).stderr


def test_no_trainer_reads_what_it_would_lose() -> None:
    """A prompt that is not whole in its column, what stands beside text, text with marks."""
    system = {"role": "system", "content": "be kind"}
    apart = {"prompt": [system, user("q")], **FULL}
    assert readers(apart) == {"axolotl"}  # the last message of a side is the answer
    assert readers({**TEXT, "system": "be kind"}) == {"llama-factory"}
    assert readers({**EXPLICIT, "system": "be kind"}) == set()
    thought = {**answer("good"), "reasoning_content": "why"}
    by_template = {"trl", "openrlhf", "alignment-handbook"}
    assert readers({**EXPLICIT, "chosen": [thought]}) == by_template
    call = {**answer(""), "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    assert readers({**EXPLICIT, "chosen": [call]}) == by_template
    assert readers({**EXPLICIT, "tools": '[{"name": "f"}]'}) == {"trl"}
    assert readers({**TEXT, "images": ["a.png"]}) == set()
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    assert readers({**EXPLICIT, "prompt": parts}) == set()
    assert readers({side: json.dumps(value) for side, value in EXPLICIT.items()}) == set()
    marked = {"prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
              **{side: f"{text}<|im_end|>" for side, text in ANSWERS.items()}}  # fmt: skip
    assert readers(marked) == {"trl", "axolotl", "openrlhf"}


def own_verdict(rows: list[Row], objective: str = "dpo") -> tuple[bool, bool]:
    """What check says of macpo, and whether train finds rows to train on."""
    watched = opened(rows)
    checks.findings(watched)
    (own,) = (each for each in checks.readings(watched) if each.trainer == "macpo")
    try:
        usable_pairs(opened(rows), load_settings([f"objective={objective}"]))
    except DataError as error:
        assert not own.reads and own.how in str(error)
        return own.reads, False
    return own.reads, True


def test_macpo_yes_is_where_training_starts() -> None:
    calls = {**answer("good"), "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    assert own_verdict([TEXT]) == (True, True)
    assert own_verdict([{**TEXT, "rejected": None}, TEXT]) == (True, True)
    assert own_verdict([{**TEXT, "rejected": ""}]) == (False, False)
    assert own_verdict([{**EXPLICIT, "rejected": []}] * 2) == (False, False)
    assert own_verdict([{**EXPLICIT, "images": ["a.png"]}]) == (False, False)
    assert own_verdict([{**EXPLICIT, "chosen": [calls]}]) == (True, True)
    whole = {"messages": [user("q"), answer("good")]}
    assert own_verdict([whole], "sft") == (True, True)
    assert own_verdict([{"prompt": "q"}]) == (False, False)


@pytest.mark.parametrize("row", [EXPLICIT, FULL, SHAREGPT, TEXT, HH, DOUBLE])
def test_every_form_becomes_the_same_pair(row: Row) -> None:
    (read,) = opened([row])
    assert read.row and read.reason is None
    sides = [answer("good")], [answer("bad one")]
    assert (read.row.prompt, read.row.chosen, read.row.rejected) == ([user("q")], *sides)


def counted(rows: list[Row], **more: Any) -> dict[str, int]:
    listed = checks.findings(opened(rows), **more)
    return {f.what: f.count for f in listed if f.level != "note" and "longer side" not in f.what}


def test_what_is_wrong_with_rows() -> None:
    long = "Tell me in all detail how a bird flies"
    rows = [
        TEXT,
        {**TEXT, "prompt": "Q!"},
        {**TEXT, "prompt": "q"},
        {**TEXT, "prompt": "empty", "chosen": " "},
        {**TEXT, "prompt": "same", "chosen": "x", "rejected": "x"},
        {"prompt": long, "chosen": f"{long}? Gladly.", "rejected": "No."},
        {**TEXT, "prompt": "space", "chosen": "good\n"},
    ]
    assert counted(rows) == {
        "chosen is empty, or one of its messages": 1,
        "chosen and rejected are the same": 1,
        "the prompt occurred before": 1,
        "the pair occurred before": 1,
        "the pair differs from an earlier one in case, points or spaces alone": 1,
        "the prompt is repeated at the start of an answer": 1,
        "white space around a text in chosen": 2,
        "the prompt differs from an earlier one in case or points": 1,
    }
    assert counted([TEXT, {**TEXT, "rejected": "worse"}]) == {"the prompt occurred before": 1}
    leaked = counted(
        [TEXT, {**TEXT, "prompt": "Name a river"}], tests=[pl.Series(["name a river!"])]
    )
    assert leaked == {"the prompt stands in a test set": 1}


def listed(rows: list[Row], level: str, **more: Any) -> dict[str, tuple[int, int | None]]:
    """The findings of a level: how many rows, and the first."""
    every = checks.findings(opened(rows), **more)
    return {each.what: (each.count, each.row) for each in every if each.level == level}


def test_the_same_pair_the_other_way_round() -> None:
    """Rows 2 and 4 contradict row 0; row 3 has the same answers to another prompt."""
    swapped = {**TEXT, "chosen": TEXT["rejected"], "rejected": TEXT["chosen"]}
    rows = [TEXT, {**TEXT, "prompt": "r"}, swapped, {**swapped, "prompt": "s"}, swapped]
    assert listed(rows, "warning") == {
        "the prompt occurred before": (2, 2),
        "the pair occurred before": (1, 4),
        "the same two answers to the prompt were preferred the other way round before": (1, 2),
    }


def test_pairs_that_differ_in_case_or_points() -> None:
    """Row 1 says the same as row 0 in other letters; row 2 has another answer."""
    rows = [TEXT, {"prompt": "Q?", "chosen": "Good!", "rejected": "bad  one."},
            {**TEXT, "prompt": "q!", "chosen": "better"}]  # fmt: skip
    warned = listed(rows, "warning")
    assert warned["the pair differs from an earlier one in case, points or spaces alone"] == (1, 1)
    assert warned["the prompt differs from an earlier one in case or points"] == (2, 1)


def test_prompts_that_are_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likeness is shared runs of three words over all of them.

    Of 42 words (40 runs) row 2 changes the last: 39 of 41 runs are shared, 0.95. Row 3 changes the
    middle one of 12 (10 runs): 7 of 13 are shared, 0.54. Row 4 is row 1 in capitals, told as that.
    """
    long = [f"word{n}" for n in range(42)]
    short = [f"other{n}" for n in range(12)]
    prompts = [short, long, [*long[:-1], "new"], [*short[:6], "new", *short[7:]]]
    rows = [{**TEXT, "prompt": " ".join(words)} for words in prompts]
    rows.append({**TEXT, "prompt": " ".join(long).upper()})
    what = "the prompt is much like an earlier one (10,000 compared at most)"
    assert {k: v for k, v in listed(rows, "note").items() if "much like" in k} == {what: (1, 2)}
    monkeypatch.setattr(checks, "BATCH", 2)
    assert listed(rows, "note")[what] == (1, 2)
    monkeypatch.setattr(row_findings, "PROMPTS_COMPARED", 2)
    assert not any("much like" in each for each in listed(rows, "note"))


def test_repeats_are_found_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is looked at together, the findings are the same."""
    rows = [{**TEXT, "prompt": f"q{n % 5}", "chosen": f"{n % 3} good"} for n in range(23)]
    whole = checks.findings(opened(rows))
    assert [each.count for each in whole if each.what == "the prompt occurred before"] == [18]
    monkeypatch.setattr(checks, "BATCH", 4)
    assert checks.findings(opened(rows)) == whole


def test_answers_that_were_cut() -> None:
    """By what macpo's datasets say of both sides; else by how most of the long ones end."""
    ends = {"chosen_finish_reason": "length", "rejected_finish_reason": "length"}
    other = {"chosen_finish_reason": "stop", "rejected_finish_reason": "length"}
    rows = [{**TEXT, "prompt": "r", **other}, {**TEXT, **ends}]
    assert listed(rows, "warning") == {
        "chosen was cut by the token limit: it does not teach to stop": (1, 1),
        "rejected was cut by the token limit: so it never stops": (2, 0),
    }
    text = "A bird sings. " * 20  # 280 characters
    whole = [{"prompt": f"q{n}", "chosen": text, "rejected": text + str(n)} for n in range(9)]
    cut = {"prompt": "cut", "chosen": text + "And then it", "rejected": "short, and"}
    # Nine of ten long chosen ones end a sentence; no rejected one does.
    assert listed([*whole, cut], "note")[
        "chosen stops amid a sentence, perhaps cut: 90% of its long answers end one"
    ] == (1, 9)
    assert not [each for each in listed([*whole, cut], "note") if "rejected stops" in each]
    assert not [each for each in listed([*whole[:3], cut], "note") if "amid" in each]  # 75 %


def test_sides_that_begin_with_the_same_words() -> None:
    """Three words of row 1, in whatever spacing; two of row 0; a side of row 2 has only two."""
    rows = [
        {"prompt": "a", "chosen": "It is green.", "rejected": "It is blue."},
        {"prompt": "b", "chosen": "It is the sea.", "rejected": "It  is the sky."},
        {"prompt": "c", "chosen": "It is", "rejected": "It is the end."},
    ]
    begins = "both sides begin with the same 3 words (33%)"
    assert listed(rows, "note")[begins] == (1, 1)


def test_roles_that_a_template_refuses_are_counted(tiny_base: Path) -> None:
    """Rows 1 and 2 have a system turn; what the others lack is looked at all the same."""
    from macpo_data.models.base import Base, load_chat
    from macpo_data.models.chat import Chat

    tokenizer = load_chat(Base(str(tiny_base), None), "tokenizer").tokenizer
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    refuses += "{% endif %}{{ m.content }} {% endfor %}"
    turns = [{"role": "system", "content": "be kind"}, user("q")]
    rows = [
        EXPLICIT,
        *({**EXPLICIT, "prompt": [*turns, answer(f"{n}"), user("r")]} for n in (1, 2)),
    ]
    rows += [{**EXPLICIT, "prompt": [user("long")], "chosen": [answer("word " * 60)]}]
    assert listed(rows, "error", chat=Chat(tokenizer, refuses), max_length=50) == {
        "the tokenizer's chat template refuses the role system: no system": (2, 1),
        "longer than 50 tokens: cut, or dropped, by the trainer": (1, 3),
    }


def test_columns_of_other_kinds() -> None:
    """One named as rows are numbered by, contents that are all missing, a reason in numbers."""
    odd = [{**TEXT, "at": 1}, {**TEXT, "prompt": "r", "at": 2, "row": 3}]
    assert counted(odd) == {}
    assert counted([{**row, "chosen_finish_reason": 1} for row in odd]) == {}
    empty = [{**row, "rejected": [{"role": "assistant", "content": None}]} for row in odd]
    assert counted(empty) == {"rejected is empty, or one of its messages": 2}


def test_data_for_fine_tuning() -> None:
    """In both forms that macpo publishes; what is wrong with a row is found there too."""
    apart = {"prompt": [user("q")], "completion": [answer("good")]}
    whole = {"messages": [user("q"), answer("x"), user("r"), answer("good")]}
    assert readers(apart) == {"trl"}
    assert readers(whole) == {"trl", "axolotl", "llama-factory", "ms-swift", "openai"}
    for good in (apart, whole):
        assert counted([good]) == {}
        read = checks.readings(opened([good]))
        assert checks.verdict([], read, None) and not checks.verdict([], read, "torchtune")
    assert counted([apart, {**apart, "completion": [answer("")]}]) == {
        "chosen is empty, or one of its messages": 1
    }
    assert counted([whole, {"messages": [answer("x"), user("q")]}]) == {
        "chosen is empty, or one of its messages": 1
    }
    assert counted([whole, {"messages": [answer("x"), user("q"), answer("y")]}]) == {
        "roles are not in order: user, assistant, ..., user, and an answer": 1
    }


def test_length_bias_is_a_warning_only_where_it_is_strong() -> None:
    """Of ten pairs, seven have the longer chosen side: 70 %, above the bound of 65 %."""
    rows = [
        {"prompt": f"q{n}", "chosen": "a" * (9 if n < 7 else 1), "rejected": "bbb"}
        for n in range(10)
    ]
    listed = checks.findings(opened(rows))
    assert [(each.level, each.count) for each in listed] == [("warning", 7)]
    assert "70%" in listed[0].what
    balanced = checks.findings(opened(rows[2:]))
    assert [each.level for each in balanced] == ["note"]


def test_lengths_are_counted_with_a_tokenizer(tiny_base: Path) -> None:
    from macpo_data.models.base import Base, load_chat

    chat = load_chat(Base(str(tiny_base), None), "tokenizer")
    rows = [TEXT, {**TEXT, "prompt": "long", "chosen": "word " * 60}]
    assert (
        counted(rows, chat=chat, max_length=50)[
            "longer than 50 tokens: cut, or dropped, by the trainer"
        ]
        == 1
    )


def test_marks_of_a_tokenizer_are_told(tiny_base: Path) -> None:
    """Its special tokens, which no template of the best-known ones has."""
    from macpo_data.models.base import Base, load_chat

    chat = load_chat(Base(str(tiny_base), None), "tokenizer")
    chat.tokenizer.add_special_tokens({"additional_special_tokens": ["[[turn]]"]})
    rows = [{**TEXT, "chosen": "good [[turn]]"}, {**TEXT, "chosen": "a [[turn]] amid it"}]
    expected = "text is rendered already: it holds the marks of the tokenizer ([[turn]])"
    assert counted(rows, chat=chat) == {expected: 1}
    assert counted(rows) == {"the prompt occurred before": 1}  # with another answer


def test_check_says_by_its_exit_code(macpo: Macpo, tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(json.dumps(EXPLICIT))
    (tmp_path / "bad.jsonl").write_text(json.dumps({**TEXT, "chosen": ""}))
    (tmp_path / "none.jsonl").write_text('{"x": 1}')
    assert macpo("check", "good.jsonl", "--for", "trl").returncode == 0
    assert macpo("check", "good.jsonl", "--for", "llama-factory").returncode == 1
    bad = macpo("check", "bad.jsonl")
    assert bad.returncode == 1 and "chosen is empty" in bad.stdout and not bad.stderr
    for args in (["none.jsonl"], ["nowhere.jsonl"], ["good.jsonl", "--for", "nobody"]):
        done = macpo("check", *args)
        assert done.returncode == 1 and done.stderr.startswith("error: "), done
        assert done.stderr.count("\n") == 1


def test_real_data() -> None:
    """HH's raw rows as read by eye: 13 of 2,312 cannot be used."""
    raw = open_rows(Dataset(str(shared("data/hh_harmless_raw_test.jsonl.gz"))), Columns())
    errors = [f for f in checks.findings(raw) if f.level == "error"]
    assert sum(each.count for each in errors if "repeated" not in each.what) == 13
    feedback = open_rows(Dataset(str(shared("data/ultrafeedback.parquet"))), Columns())
    assert all(f.level != "error" for f in checks.findings(feedback))


def test_folders_are_read_as_their_card_says(tmp_path: Path) -> None:
    card = """---
configs:
- config_name: a
  data_files: [{split: train, path: a-*.jsonl}, {split: test, path: held.jsonl}]
- {config_name: b, default: true, data_files: b.jsonl}
---
"""
    (tmp_path / "README.md").write_text(card)
    for name in ("a-0", "a-1", "held", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"x": name}))

    def rows(config: str | None = None, split: str | None = None) -> list[str]:
        source = open_split(Dataset(str(tmp_path), config, split=split))
        return [record["x"] for batch in source.batches for record in batch]

    def everything(config: str) -> list[str]:
        batches = every_split(Dataset(str(tmp_path), config))
        return [record["x"] for batch in batches for record in batch]

    assert rows("a") == ["a-0", "a-1"] and rows("a", split="test") == ["held"]
    assert rows() == ["b"] and everything("a") == ["a-0", "a-1", "held"]
    with pytest.raises(DataError, match="choose --config a, b"):
        rows("c")
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    with pytest.raises(DataError, match="YAML at the top"):
        rows()
    for odd in ("/etc/*.jsonl", "../x.jsonl", "", 3, None):
        files = json.dumps([{"split": "train", "path": odd}])
        (tmp_path / "README.md").write_text(f"---\nconfigs: [{{data_files: {files}}}]\n---\n")
        with pytest.raises(DataError, match="is no file of this folder"):
            rows()
    (tmp_path / "README.md").write_text("\ufeff---\r\nname: a---b\r\n" + card[4:])
    assert rows() == ["b"]
    (tmp_path / "README.md").unlink()
    (tmp_path / "manifest.json").write_text("{}")
    assert len(rows()) == 4
    with pytest.raises(DataError, match="no file for the split validation"):
        rows(split="validation")
    (tmp_path / "constraints.jsonl").write_text('{"x": "constraints"}')
    (tmp_path / "train-0.jsonl").write_text('{"x": "train-0"}')
    assert rows() == ["train-0"]


def test_two_versions_are_compared() -> None:
    def version(name: str, chosen: list[str], **recipe: Any) -> Version:
        ids = [f"p{n}" for n in range(len(chosen))]
        frame = pl.DataFrame({"prompt_id": ids, "chosen": chosen, "rejected": "no"})
        prompt = pl.Series([[user("q")]] * len(chosen))
        return Version(name, frame.with_columns(prompt=prompt), recipe)

    one = version("a", ["x", "y", "z"], dpo={"beta": 0.1}, seed=0)
    two = version("b", ["x", "Y"], dpo={"beta": 0.2}, seed=0)
    result = compare(one, two)
    assert result.recipe == {"dpo.beta": (0.1, 0.2)}
    assert result.counts["changed their chosen"] == 1
    assert result.counts["prompts only in A"] == 1 and result.counts["prompts in both"] == 2
    assert result.changed.row(0, named=True)["chosen_b"] == "Y"
    assert result.quantiles["chosen characters"] == ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert differences({"a": 1}, {"b": 2}) == {"a": (1, None), "b": (None, 2)}


def test_diff_finds_versions_by_path_and_fingerprint(
    macpo: Macpo, open_run: OpenRun, tmp_path: Path
) -> None:
    prints = []
    for seed in (0, 1):
        with open_run(f"seed={seed}", "data.d1.count=8") as run:
            run.finish_round(0)
            step = run.select("gen", 0, "student")[0]
            prints.append(run.plan.fingerprint(step))
            path = run.path(step)
    done = macpo("diff", prints[0], path)
    assert done.returncode == 0 and "recipe: seed: 0 -> 1" in done.stdout
    assert "no dataset 00000000" in macpo("diff", "00000000", path).stderr


def test_pairs_are_picked_by_sql(open_run: OpenRun) -> None:
    with open_run() as run:
        run.finish_round(0)
        run.finish_round(1)
        (step,) = run.select("gen", 1, "student")
        pairs = run.store.read(run.plan.name(step), "pairs.parquet")
    middle = sorted(pairs["chosen_perplexity"].to_list())[5]
    high = matching(pairs, f"chosen_ppl > {middle}", "-chosen_ppl")
    assert len(high) == 6 and high["chosen_perplexity"].is_sorted(descending=True)
    down = matching(pairs, None, "chosen_ppl DESC")
    assert down["chosen_perplexity"].is_sorted(descending=True) and len(down) == len(pairs)
    assert set(high.columns) == set(pairs.columns)
    for where in ("nope > 1", ">>>", "chosen + 1", ""):
        with pytest.raises(DataError, match="columns are"):
            matching(pairs, where, None)


def test_show_says_how_many_match_and_of_how_many(
    macpo: Macpo, open_run: OpenRun, recipe_file: Path
) -> None:
    """12 prompts of D2 are as many pairs; 3 panels are printed unless more are asked for."""
    with open_run() as run:
        run.finish_round(0)
        (step,) = run.select("gen", 0, "student")
        pairs = run.store.read(run.plan.name(step), "pairs.parquet")
    ids = pairs["prompt_id"].sort().to_list()
    show = ["show", "--round", "0", "--learner", "student", "-r", recipe_file]

    def printed(*options: str) -> tuple[str, int]:
        done = macpo(*show, *options, fake=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[0], done.stdout.count("chosen (")

    five, one = f"prompt_id <= '{ids[4]}'", f"prompt_id = '{ids[0]}'"
    assert printed() == ("12 pairs of round 0 for student", 3)
    assert printed("--sample", "-n", "2") == ("12 pairs of round 0 for student", 2)
    assert printed("--where", five) == ("5 of 12 pairs of round 0 for student match", 3)
    some = printed("--where", five, "--sample", "-n", "2")
    assert some == ("5 of 12 pairs of round 0 for student match", 2)
    assert printed("--where", one) == ("1 of 12 pairs of round 0 for student matches", 1)
    assert printed("--where", "1 = 2") == ("0 of 12 pairs of round 0 for student match", 0)


def test_training_without_a_recipe(macpo: Macpo, tmp_path: Path) -> None:
    rows = [
        {**EXPLICIT, "prompt": [user(f"q{n}")], "chosen_finish_reason": "length"} for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(map(json.dumps, [*rows, {**rows[0], "chosen": []}]))
    )
    base = ["train", "--dataset", "rows.jsonl", "--base", "world:strong"]
    done = macpo(*base, "--out", "one", fake=True)
    assert done.returncode == 0 and "left out 1 rows" in done.stderr
    manifest = json.loads((tmp_path / "one/manifest.json").read_text())
    assert manifest["reference"] == "world:strong" and manifest["rows"] == 4
    done = macpo(*base, "--out", "two", "--init", "one", fake=True)
    assert "the reference is the starting adapter" in done.stderr
    done = macpo(*base, "--out", "three", "--init", "two", "--reference", "one", fake=True)
    assert "starting from two; the reference is one" in done.stderr
    manifest = json.loads((tmp_path / "three/manifest.json").read_text())
    assert manifest["settings"]["dpo"]["reference"] == "initial" and manifest["reference"] == "one"
    mistakes = {
        "exists already": [*base, "--out", "one"],
        "no adapter in ./none": [*base, "--out", "x", "--init", "./none"],
        "adapter in ./nowhere": [*base, "--out", "x", "--reference", "./nowhere"],
        "with --reference ADAPTER": [*base, "--out", "x", "--set", "dpo.reference=initial"],
        "fine-tuning has none": [
            *base,
            "--out",
            "x",
            "--reference",
            "one",
            "--set",
            "objective=sft",
        ],
        "dpo.reference=base exclude each other": [
            *base,
            "--out",
            "x",
            "--reference",
            "one",
            "--set",
            "dpo.reference=base",
        ],
        "--reference: only read with --dataset": ["train", "--round", "1", "--reference", "one"],
        "needs a model": ["train", "--dataset", "rows.jsonl", "--base", "", "--out", "x"],
        "dpo.bet: unknown key": [*base, "--out", "x", "--set", "dpo.bet=1"],
        "train what?": ["train"],
        "no column": [*base, "--out", "x", "--set", "columns.chosen=best"],
    }
    for message, args in mistakes.items():
        failed = macpo(*args, fake=True)
        assert failed.returncode == 1 and message in failed.stderr, failed.stderr
        assert failed.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in failed.stderr and not (tmp_path / "x").exists()
    assert load_settings(None).dpo.reference == "previous"


def alone(dataset: Path, out: Path, *sets: str, init: Path | None = None) -> Path:
    """`macpo train --dataset` in this process, on the fake engine."""
    return train_on(
        Dataset(str(dataset)), "base", out, init=str(init) if init else None,
        sets=["engine.name=fake", *sets], progress=no_progress, say=lambda line: None,
        look=lambda checks: None,
    )  # fmt: skip


def test_an_adapter_keeps_its_shape(pairs_file: Path, tmp_path: Path) -> None:
    first = alone(pairs_file, tmp_path / "one", "lora.r=4")
    second = alone(pairs_file, tmp_path / "two", init=first)
    expected = [
        json.loads((adapter / "manifest.json").read_text())["settings"]
        for adapter in (first, second)
    ]
    assert expected[0]["lora"]["r"] == 4 and "lora" not in expected[1]
    with pytest.raises(MacpoError, match=r"lora\.\*: the adapter of --init"):
        alone(pairs_file, tmp_path / "three", "lora.r=64", init=first)
    (first / "adapter_model.safetensors").unlink()
    with pytest.raises(MacpoError, match=r"no adapter in .* and adapter_model\.safetensors"):
        alone(pairs_file, tmp_path / "three", init=first)


def test_training_into_the_folder_where_one_is(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert alone(pairs_file, Path()) == tmp_path / "here"
    assert (tmp_path / "here/adapter_config.json").is_file()


def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """Until there is a checkpoint."""
    work = tmp_path / ".out.partial"
    with pytest.raises(ModelError), workplace(tmp_path / "out", first=True) as place:
        assert place == work and work.is_dir()
        raise ModelError("no such layer")
    assert not work.exists()
    with pytest.raises(KeyboardInterrupt), workplace(tmp_path / "out", first=True):
        (work / "adapter/trainer/checkpoint-3").mkdir(parents=True)
        raise KeyboardInterrupt
    assert (work / "adapter/trainer/checkpoint-3").is_dir()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=-1", "seed: input should be greater"),
        ("dpo.loss=exo_pair", "'exo_pair' is none of sigmoid, hinge, ipo, none; .* see the card"),
        ("dpo.label_smoothing=0.1 dpo.loss=hinge", "hinge knows none; .* dpo.loss=sigmoid"),
        ("dpo.label_smoothing=0.1 dpo.loss=ipo", "ipo knows none"),
        ("train.micro_batch_size=3", "3 does not divide dpo's 16"),
        ("confidence.weight=0.5", "only objective=sft reads it"),
    ],
)
def test_settings_that_do_not_fit_together(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(setting.split())


def test_what_is_told_of_an_answer_goes_with_its_column() -> None:
    """Swapped sides swap their scores; the column of a published SFT dataset has its own name."""
    raw = {
        **TEXT,
        "chosen_finish_reason": "stop",
        "rejected_finish_reason": "length",
        "chosen_sum_logprob": -1.0,
        "rejected_sum_logprob": -2.0,
    }
    swapped = load_settings(["columns.chosen=rejected", "columns.rejected=chosen"])
    row = usable_pairs(opened([raw], swapped.columns), swapped).row(0, named=True)
    assert row["chosen"] == TEXT["rejected"] and row["chosen_finish_reason"] == "length"
    assert (row["chosen_sum_logprob"], row["rejected_sum_logprob"]) == (-2.0, -1.0)
    sft = load_settings(["objective=sft", "columns.chosen=completion", "columns.rejected=null"])
    answer_row = {"prompt": "q", "completion": "good", "completion_finish_reason": "length"}
    pairs = usable_pairs(opened([answer_row], sft.columns), sft)
    assert pairs["chosen_finish_reason"].to_list() == ["length"]


def test_scores_of_a_published_folder_are_found(
    open_run: OpenRun, recipe_file: Path, macpo: Macpo, tmp_path: Path
) -> None:
    with open_run() as run:
        run.finish_round(0)
        run.make("gen", 1, "student")
        (step,) = run.select("gen", 1, "student")
        scored = run.store.manifest(run.plan.name(step)) or {}
        file = run.path(step) / "pairs.parquet"
    arguments = ["--round", "1", "--learner", "student", "--recipe", recipe_file]
    done = macpo("push", *arguments, "--to", "tree", fake=True)
    assert done.returncode == 0, done.stderr
    (under,) = scored["scored_under"].values()
    for config in ("round_1_student", None):
        assert scores_depend_on(str(tmp_path / "tree"), config) == under
    assert scores_depend_on(str(file), None) == under
    rows = open_rows(Dataset(str(tmp_path / "tree"), "round_1_student"), Columns())
    pairs = usable_pairs(rows, load_settings(None))
    assert pairs["chosen_sum_logprob"].null_count() == 0
    assert scores_depend_on(str(tmp_path / "tree"), "round_1_student_full") is None


@pytest.mark.slow
def test_scores_beside_a_dataset_spare_the_reference_pass(
    open_run: OpenRun, tiny_recipe: Path, macpo: Macpo, tmp_path: Path, tiny_base: Path
) -> None:
    """A round as it is published, trained on by hand from the policy that scored it."""
    with open_run("train.save_steps=1", file=tiny_recipe, fake=False) as run:
        run.finish_round(0)
        run.make("gen", 1, "student")
        (after,) = run.select("train", 1, "student")
        maker = run.plan.maker(after.policies[0])
        assert maker
        options = ["--init", run.path(maker), "--set", "train.dtype=float32", "--out", "out"]
    arguments = ["--round", "1", "--learner", "student", "--recipe", tiny_recipe]
    assert macpo("push", *arguments, "--to", "tree").returncode == 0
    dataset = ["--dataset", "tree", "--config", "round_1_student"]
    done = macpo("train", *dataset, "--base", tiny_base, *options)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    known = manifest["reference_logprobs"]
    assert known["stored"] > 0 and known["computed"] == 0
    assert manifest["history"][0]["dpo"] == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.slow
def test_training_without_a_recipe_really_trains(
    macpo: Macpo, tmp_path: Path, tiny_base: Path
) -> None:
    """Two steps from a new adapter: the first one's DPO loss is ln 2, the second one's is less."""
    rows = [{**EXPLICIT, "prompt": [user(f"Question {n}?")]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = ["dpo.batch_size=4", "train.dtype=float32", "dpo.learning_rate=0.01"]
    options = [word for each in sets for word in ("--set", each)]
    base = ["train", "--dataset", "rows.jsonl", "--base", tiny_base]
    done = macpo(*base, "--out", "one", *options)
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "one/manifest.json").read_text())["history"]
    assert len(history) == 2 and abs(history[0]["dpo"] - 0.6931) < 1e-3
    assert history[1]["dpo"] < history[0]["dpo"]
    last = history[1]["margin"]
    assert f"learned  2 steps: loss {history[0]['loss']:.3f} to" in done.stdout
    assert ("hardly moved" in done.stdout) == (abs(last) < 0.05)
    assert done.stdout.splitlines()[-1].startswith("next: ")
    slow = macpo(*base, "--out", "slow", *options[:-2], "--set", "dpo.learning_rate=1e-6")
    assert "! the policy hardly moved in 2 steps: raise dpo.learning_rate (1e-06 now" in slow.stdout
