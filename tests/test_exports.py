"""Answers in other evaluators' forms, and blind sheets for people."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Macpo, OpenRun, shared
from hypothesis import given
from hypothesis import strategies as st
from openai_server import serve

from macpo import cli
from macpo_data import stats
from macpo_data.errors import DataError, MacpoError
from macpo_data.evaluation import sheets
from macpo_data.evaluation.exports import converse, read_questions
from macpo_data.evaluation.results import latest
from macpo_data.plan import Policy
from macpo_data.schema import MESSAGES, Message, prompt_id
from macpo_run.exporting import export
from macpo_run.rounds import Run

STUDENT = Policy("student", "positive", 0)


@pytest.fixture
def run(open_run: OpenRun) -> Run:
    run_ = open_run("rounds=0", "data.test.count=30")
    assert not run_.finish_round(0).waiting
    return run_


def exported(run: Run, form: str, prompts: Path, to: Path) -> list[dict[str, Any]]:
    export(run, form, [STUDENT], None, prompts, to)
    text = to.read_text()
    return list(json.loads(text) if form == "alpaca_eval" else map(json.loads, text.splitlines()))


def test_alpaca_eval_on_its_own_prompts(run: Run, tmp_path: Path) -> None:
    rows = exported(run, "alpaca_eval", shared("data/alpacaeval_prompts.parquet"), tmp_path / "a")
    assert len(rows) == 805 and set(rows[0]) == {"instruction", "output", "generator", "dataset"}
    assert rows[0]["instruction"].startswith("What are the names of some famous actors")
    assert all(row["output"] for row in rows) and rows[0]["dataset"] == "helpful_base"
    assert {row["generator"] for row in rows} == {"test-student-positive-0"}


def test_mt_bench_on_its_own_questions(run: Run, tmp_path: Path) -> None:
    rows = exported(run, "mt_bench", shared("data/mt_bench_questions.jsonl"), tmp_path / "m")
    assert [row["question_id"] for row in rows] == list(range(81, 161))
    assert set(rows[0]) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert [len(row["choices"][0]["turns"]) for row in rows] == [2] * 80
    assert len({row["answer_id"] for row in rows}) == 80


def test_arena_hard_on_its_own_questions(run: Run, tmp_path: Path) -> None:
    prompts = shared("data/arena_hard_v0.1_questions.parquet")
    rows = exported(run, "arena_hard", prompts, tmp_path / "h")
    assert len(rows) == 500
    assert set(rows[0]) == {"uid", "ans_id", "model", "messages", "tstamp", "metadata"}
    assert rows[0]["uid"] == "328c149ed45a41c0b9d6f14659e63599"
    user, assistant = rows[0]["messages"]
    assert user["role"] == "user" and assistant["content"]["answer"]


def test_an_empty_answer_is_there_and_told(tmp_path: Path, open_run: OpenRun) -> None:
    """A server that has nothing to say to one of two questions."""

    def reply(model: str, messages: list[dict[str, str]]) -> str:
        return "" if messages[-1]["content"] == "Two?" else "Yes."

    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"instruction": "One?"}\n{"instruction": "Two?"}\n')
    with serve(reply) as server:
        endpoint = json.dumps({"base_url": server.url, "model": "m", "retries": 0, "max_failed": 1})
        run = open_run(f"agents.student.endpoint={endpoint}", fake=False)
        (line,) = export(run, "alpaca_eval", [Policy("student")], None, prompts, tmp_path / "a")
    assert line.endswith("2 answers of student-base, 1 of them empty")
    rows = json.loads((tmp_path / "a").read_text())
    assert [row["output"] for row in rows] == ["Yes.", ""]


def test_the_second_turn_is_answered_after_the_first(run: Run, tmp_path: Path) -> None:
    """The fake engine's answer follows from the whole dialogue: it equals that of the dialogue
    written out by hand."""
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question_id": 7, "turns": ["One?", "Two?"]}\n')
    context = run.context()
    ((first, second),) = converse(context, STUDENT, read_questions(path))
    by_hand: list[Message] = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Two?"},
    ]
    rows = pl.DataFrame(
        {"prompt_id": [prompt_id(by_hand)], "prompt": [by_hand]},
        schema={"prompt_id": pl.String, "prompt": MESSAGES},
    )
    (alone,) = context.ask([(STUDENT, rows)], run.recipe.sampling, "export-1")
    assert alone["response"].to_list() == [second] and first != second


@pytest.mark.parametrize(
    ("row", "opening"),
    [
        ({"instruction": "Do."}, "Do."),
        ({"uid": "x", "prompt": "Say."}, "Say."),
        ({"question_id": "y", "turns": [{"content": "Go."}]}, "Go."),
        ({"id": 3, "prompt": [{"role": "user", "content": "Be."}]}, "Be."),
    ],
)
def test_prompts_in_each_form(row: dict[str, Any], opening: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (question,) = read_questions(path)
    assert question.text == opening
    assert question.id in (*row.values(), 0)  # the row's number where it has no name


@pytest.mark.parametrize(
    "row",
    [{"text": "?"}, {"turns": [{"content": None}]}, {"prompt": 3}, {"turns": [{"text": "Go."}]},
     {"turns": [""]}, {"prompt": ["Go.", None]}],
)  # fmt: skip
def test_prompts_without_a_prompt(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="row 0: no turns, prompt or instruction"):
        read_questions(path)


# ---------------------------------------------------------------------------- sheets


def read(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text("utf-8-sig").splitlines(keepends=True)))


def fill(path: Path, to: Path, key: dict[str, Any], prefer: dict[str, str]) -> Path:
    """A sheet as an annotator returns it, who prefers a, b, a tie or nothing row by row."""
    rows = read(path)
    for row in rows[1:]:
        wish = prefer.get(row[0], "")
        first = key["rows"][row[0]]["first"]
        row[-1] = wish if wish in ("", "tie") else "1" if wish == first else "2"
    with to.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return to


def test_a_sheet_there_and_back(run: Run, tmp_path: Path) -> None:
    """30 rows. Anna: 20 wins of the policy, 10 losses; Ben agrees in all but the last four, which
    are ties to him: (26 * {1, 0} + 4 * mean(0, .5)): 20 + 4 * .25 = 21 of 30."""
    sheet = tmp_path / "sheet.csv"
    lines = export(run, "human", [STUDENT], "chosen", None, sheet)
    key_file = tmp_path / "sheet.key.json"
    assert len(lines) == 2 and key_file.exists()
    key, rows = json.loads(key_file.read_text()), read(sheet)
    assert len(rows) == 31 and all(row[-1] == "" for row in rows[1:])
    sides = [entry["first"] for entry in key["rows"].values()]
    assert {"a", "b"} == set(sides)
    assert "student" not in sheet.read_text() and "chosen" not in sheet.read_text()
    # Each side stands where the key says.
    prompts = run.context().prompts("test")
    human = dict(prompts.select("prompt_id", "chosen").iter_rows())
    for row in rows[1:]:
        entry = key["rows"][row[0]]
        assert row[2 if entry["first"] == "b" else 3] == human[entry["prompt_id"]]

    names = list(key["rows"])
    anna = {name: "a" if n < 20 else "b" for n, name in enumerate(names)}
    ben = {**anna, **dict.fromkeys(names[26:], "tie")}
    filled = [fill(sheet, tmp_path / f"{n}.csv", key, wish) for n, wish in enumerate((anna, ben))]
    evaluation = sheets.read_sheets(run.context(), filled, key_file)
    win = evaluation.table.filter(measure="win").row(0, named=True)
    assert win["mean"] == pytest.approx(21 / 30) and win["by"] == "2 people"
    assert win["against"] == "chosen" and win["prompts"] == 30
    sheet_manifest = run.store.manifest(f"eval/{evaluation.paths[0].name}")
    assert sheet_manifest is not None
    assert sheet_manifest["judge"]["verdicts"] == [30, 30]
    assert 0.7 < sheet_manifest["judge"]["krippendorff_alpha"] < 0.8
    newest = latest(run.plan, run.store)
    assert newest is not None and newest.table.filter(measure="win").height == 1


def test_a_sheet_from_a_spreadsheet_that_writes_semicolons(run: Run, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    export(run, "human", [STUDENT], "student-base", None, sheet)
    rows = read(sheet)
    for row in rows[1:]:
        row[-1] = " Tie "
    with (tmp_path / "filled.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    evaluation = sheets.read_sheets(
        run.context(), [tmp_path / "filled.csv"], tmp_path / "sheet.key.json"
    )
    assert evaluation.judgements["win"].to_list() == [0.5] * 30


def test_what_is_wrong_with_a_filled_sheet(run: Run, tmp_path: Path) -> None:
    sheet, key = tmp_path / "sheet.csv", tmp_path / "sheet.key.json"
    export(run, "human", [STUDENT], "chosen", None, sheet)
    with pytest.raises(MacpoError, match="exists already"):
        export(run, "human", [STUDENT], "chosen", None, sheet)
    with pytest.raises(DataError, match="beside itself tells nothing"):
        export(run, "human", [STUDENT], str(STUDENT), None, tmp_path / "self.csv")
    with pytest.raises(DataError, match="cannot read the key"):
        sheets.read_sheets(run.context(), [sheet], tmp_path / "none.json")
    other = tmp_path / "other.csv"
    rows = read(sheet)
    with other.open("w", newline="") as file:
        csv.writer(file).writerows(rows[:-1])
    with pytest.raises(DataError, match="other rows than its key"):
        sheets.read_sheets(run.context(), [other], key)
    rows[1][-1] = "both"
    with other.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(DataError, match="-1: 'both' is no verdict; write 1, 2 or tie"):
        sheets.read_sheets(run.context(), [other], key)
    for verdict, message in (("", "holds no verdict"), ("1", "named twice")):
        with other.open("w", newline="") as file:
            csv.writer(file).writerows([rows[0], *([*row[:-1], verdict] for row in rows[1:])])
        with pytest.raises(DataError, match=message):
            sheets.read_sheets(run.context(), [other] * (2 if verdict else 1), key)
    with other.open("a", newline="") as file:
        csv.writer(file).writerow([*rows[1][:-1], "2"])
    with pytest.raises(DataError, match="other rows than its key"):
        sheets.read_sheets(run.context(), [other], key)
    key_facts = json.loads(key.read_text())
    key.write_text(json.dumps({k: v for k, v in key_facts.items() if k != "made_from"}))
    with pytest.raises(DataError, match="cannot read the key"):
        sheets.read_sheets(run.context(), [sheet], key)
    key_facts["made_from"] = dict.fromkeys(key_facts["made_from"], "other")
    key.write_text(json.dumps(key_facts))
    with pytest.raises(DataError, match="not those of this recipe and run"):
        sheets.read_sheets(run.context(), [sheet], key)


def test_each_sheet_has_its_own_key(run: Run, tmp_path: Path) -> None:
    """Same policy, same prompts, another baseline: the sides were drawn alike, the rows are not."""
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    export(run, "human", [STUDENT], "chosen", None, one)
    export(run, "human", [STUDENT], "student-base", None, other)
    with pytest.raises(DataError, match="other rows than its key"):
        sheets.read_sheets(run.context(), [one], tmp_path / "other.key.json")
    one.unlink()
    with pytest.raises(DataError, match="another sheet's key"):
        export(run, "human", [STUDENT], "student-base", None, one)


HOSTILE = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\n=1", "\t=1", "\r=1", " \n\ufeff=1", "\uff1d1+1", "\uff0b1",
    "\uff0d1", "\uff20SUM(A1)", "\ufe661", '";=1+1', '"\n=1', "a;=1", "a\t@b", "a\r\n=b", "a\n\n+b",
    "'=1", '","=1',
]  # fmt: skip
BEGINNINGS = ("=", "+", "-", "@")


def cells(text: str) -> set[str]:
    """Every cell that a spreadsheet may make of a CSV, whatever it takes for its separator."""
    texts: set[str] = set()
    for separator in (",", ";", "\t"):
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            texts |= {unicodedata.normalize("NFKC", cell).strip(' \t\r\n\ufeff"') for cell in row}
    return texts


def test_no_answer_is_a_formula(open_run: OpenRun, macpo: Macpo, tmp_path: Path) -> None:
    def write(name: str, answers: list[str]) -> str:
        path = tmp_path / name
        rows = [{"prompt": f"{name} {n}", "chosen": a, "rejected": "No."}
                for n, a in enumerate(answers)]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    sets = ["rounds=0", "data.source=pairs", f"data.path={write('a.jsonl', ['Yes.'] * 40)}"]
    sets += [f"data.test.path={write('b.jsonl', HOSTILE)}", f"data.test.count={len(HOSTILE)}"]
    with open_run(*sets) as run:
        assert not run.finish_round(0).waiting
    words = ["eval", "-r", "recipe.yaml", *(word for each in sets for word in ("--set", each))]
    of = ["--agents", "student", "--round", "0", "--against", "chosen"]
    done = macpo(*words, *of, "--export", "human", "--to", "sheet.csv", fake=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "sheet.csv").read_text("utf-8-sig")
    assert [cell for cell in cells(text) if cell.startswith(BEGINNINGS)] == []
    # What people read is what was written, but for the marks.
    rows = list(csv.reader(io.StringIO(text, newline="")))
    shown = {cell.replace("'", "") for row in rows[1:] for cell in row[2:4]}
    written = (answer.replace("'", "").replace("\r\n", "\n").strip() for answer in HOSTILE)
    assert {*written} <= shown  # as the source reads it
    with (tmp_path / "filled.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([rows[0], *([*row[:-1], "tie"] for row in rows[1:])])
    imported = ["--import", "filled.csv", "--key", "sheet.key.json"]
    back = macpo(*words, *imported, fake=True)
    assert back.returncode == 0 and ".500" in back.stdout, back


@given(st.text(st.sampled_from("=+-@\uff1d;,\"' \n\r\tab")))
def test_no_cell_is_a_formula(text: str) -> None:
    sheet = io.StringIO(newline="")
    csv.writer(sheet, quoting=csv.QUOTE_ALL).writerow(["row", sheets.inert(text), ""])
    assert not any(cell.startswith(BEGINNINGS) for cell in cells(sheet.getvalue()))
    assert sheets.inert(text).replace("'", "") == text.replace("'", "")


def test_an_annotator_may_add_a_column(run: Run, tmp_path: Path) -> None:
    """Notes behind the verdicts, and one answer longer than csv's limit of 131,072 characters."""
    sheet, key = tmp_path / "sheet.csv", tmp_path / "sheet.key.json"
    export(run, "human", [STUDENT], "chosen", None, sheet)
    rows = read(sheet)
    for row in rows[1:]:
        row[2:] = ["long " * 30_000, row[3], "tie", "a note"]
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([[*rows[0], "notes"], *rows[1:]])
    evaluation = sheets.read_sheets(run.context(), [sheet], key)
    assert evaluation.judgements["win"].to_list() == [0.5] * 30


def test_agreement_by_published_examples() -> None:
    """Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability": binary data of two
    observers (.095), and nominal data of four with gaps (.743)."""
    two = [
        [0, 1, 0, 0, 0, 0, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1, 0, 0, 0, 0],
    ]
    assert stats.agreement(two) == pytest.approx(0.095, abs=5e-4)
    n = None
    four = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, n, n, n],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, n, 3],
        [n, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, n],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, n],
    ]
    assert stats.agreement(four) == pytest.approx(0.743, abs=5e-4)


def test_agreement_at_its_ends() -> None:
    assert stats.agreement([[1, 0, 0.5], [1, 0, 0.5]]) == 1
    assert stats.agreement([[1, 0], [None, None]]) is None
    assert stats.agreement([[1, 1], [1, 1]]) is None


def test_the_command(macpo: Macpo, run: Run, recipe_file: Path) -> None:
    common = ["-r", recipe_file, "--set", "rounds=0", "--set", "data.test.count=30"]
    table = macpo("eval", "--against", "student-base", *common, fake=True)
    assert table.returncode == 0 and "student-positive-0" in table.stdout
    assert "LC win: by gold judge against student-base" in table.stdout
    many = macpo("eval", "--export", "human", "--to", "s.csv", *common, fake=True)
    assert many.returncode == 1 and "an export is of one policy, not of 4" in many.stderr
    export(run, "human", [STUDENT], "chosen", None, recipe_file.parent / "s.csv")
    key = json.loads((recipe_file.parent / "s.key.json").read_text())
    fill(recipe_file.parent / "s.csv", recipe_file.parent / "f.csv", key, {min(key["rows"]): "a"})
    back = macpo("eval", "--import", "f.csv", "--key", "s.key.json", *common, fake=True)
    assert back.returncode == 0 and "f.csv: 1 verdicts" in back.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval", "--import", "s.csv", "--agents", "student"], "leave --agents out"),
        (["eval", "--to", "x", "--prompts", "y"], "leave --to, --prompts out"),
        (["eval", "--key", "x"], "name them with --import"),
        (["train", "--reward", "--round", "1"], "leave --round and --learner out"),
    ],
)
def test_options_that_nothing_would_read(
    args: list[str], message: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe_file.parent)
    with pytest.raises(MacpoError, match=message):
        cli.app([*args, "-r", str(recipe_file)], standalone_mode=False)
