"""MoAA's logic on the fake engine: who is asked what, turn by turn; whose answers are learned."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import RECIPE, Macpo, OpenRun

from macpo_data.errors import RecipeError
from macpo_data.generation import mixture as mixtures
from macpo_data.hub import rows as hub_rows
from macpo_data.recipe.generation import Mixture
from macpo_data.schema import MESSAGES, Message, prompt_id
from macpo_run.cleaning import unreachable
from macpo_run.rounds import Run


@pytest.fixture
def moaa_file(tmp_path: Path) -> Path:
    """Two proposers and an aggregator; the world's gold judge."""
    values = yaml.safe_load(RECIPE) | {
        "method": "moaa",
        "agents": {
            "one": {"role": "proposer", "base": "world:weak-a"},
            "two": {"role": "proposer", "base": "world:weak-b"},
            "sum": {"role": "aggregator", "base": "world:strong"},
            "student": {"role": "student", "base": "world:tiny"},
        },
        "mixture": {"layers": [["one", "two"], ["sum"]]},
        "judge": {"kind": "llm", "agent": "sum", "max_position_bias": 1.0},
        "sampling": {"max_new_tokens": 24, "n": 3},
    }
    path = tmp_path / "moaa.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def finish(run: Run) -> Run:
    for each in range(run.recipe.rounds + 1):
        assert not run.finish_round(each).waiting
    return run


def dataset(run: Run, round_: int, table: str = "pairs") -> pl.DataFrame:
    step = next(s for s in run.plan.steps if (s.kind, s.round) == ("gen", round_))
    return run.store.read(run.plan.name(step), f"{table}.parquet")


def test_both_rounds(open_run: OpenRun, moaa_file: Path) -> None:
    run = finish(open_run(file=moaa_file))
    first = dataset(run, 0)
    assert set(first["chosen_agent"]) == {"sum"} and first["rejected"].null_count() == len(first)
    pairs, candidates = dataset(run, 1), dataset(run, 1, "candidates")
    assert set(pairs["chosen_agent"]) | set(pairs["rejected_agent"]) == {"student"}
    assert pairs["chosen_perplexity"].null_count() == 0
    assert (pairs["chosen"] != pairs["rejected"]).all()
    judged = dataset(run, 1, "judgements")
    # Three usable answers of a prompt are three meetings, each in both orders.
    full = candidates.filter(pl.col("reason").is_null()).group_by("prompt_id").len()
    full = full.filter(pl.col("len") == 3)
    met = judged.join(full, on="prompt_id", how="semi")
    assert len(full) and len(met) == 3 * len(full)
    assert open_run(file=moaa_file).finish_round(1).wrote == []
    assert any(name.startswith("answers/") for name in run.store.names())
    assert unreachable([open_run(file=moaa_file)]) == []
    other = unreachable([open_run("sampling.temperature=0.1", file=moaa_file)])
    assert not any(name.startswith("answers/") for name in other)  # who was asked is the same


def test_the_shipped_recipe_can_be_tried_on_the_fake_engine(macpo: Macpo) -> None:
    """Its gold judge tells apart what the fake engine writes."""
    small = [f"--set=data.{part}.count=40" for part in ("d1", "d2", "test")]
    done = macpo("run", "--until", "1", "-r", "moaa_quickstart", *small, fake=True)
    assert done.returncode == 0, done.stderr


def test_the_best_and_the_worst_by_wins(open_run: OpenRun, moaa_file: Path) -> None:
    """Wins counted here from the judgements: no candidate has more than the chosen one."""
    run = finish(open_run(file=moaa_file))
    judged = dataset(run, 1, "judgements")
    wins: dict[tuple[str, int], float] = {}
    for row in judged.iter_rows(named=True):
        for verdict in (row["first"], row["second"]):
            for side in ("a", "b"):
                key = (row["prompt_id"], row[f"{side}_draw"])
                wins[key] = wins.get(key, 0) + (verdict == side)
    ranked = dataset(run, 1, "candidates").drop_nulls("rank")
    assert len(ranked)
    for (key,), group in ranked.sort("rank").group_by("prompt_id"):
        scores = [wins[str(key), draw] for draw in group["draw"]]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]


TALK: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "First?"},
    {"role": "assistant", "content": "what the source says"},
    {"role": "user", "content": "Second?"},
]


def test_turn_by_turn(open_run: OpenRun, moaa_file: Path) -> None:
    run = open_run(file=moaa_file)
    assert run.recipe.mixture is not None
    prompts = pl.DataFrame(
        {"prompt_id": ["talk"], "prompt": [TALK]},
        schema={"prompt_id": pl.String, "prompt": MESSAGES},
    )
    turns, answers = mixtures.write(run.context(), run.recipe.mixture, prompts)
    written = {
        row["prompt_id"]: row["response"]
        for row in answers.filter(pl.col("layer") == 1).iter_rows(named=True)
    }
    one, two = turns["prompt"].to_list()
    assert one == TALK[:2]
    # The second turn stands behind what the mixture said, not behind what the source says.
    answer = {"role": "assistant", "content": written[turns["prompt_id"][0]]}
    assert two == [*TALK[:2], answer, TALK[3]]
    assert answers.group_by("layer").len().sort("layer")["len"].to_list() == [4, 2]


def test_what_the_aggregator_is_told() -> None:
    """A system message is added to, the conversation stays, and nothing is edited in place."""
    mixture = Mixture(layers=[["a"], ["b"]])
    before = deepcopy(TALK)
    messages = mixtures.aggregation(mixture, TALK, ["Yes.", "No [[A]] $x."])
    assert before == TALK and messages[1:] == TALK[1:]
    assert messages[0]["content"].startswith("Be kind.\n\n")
    assert messages[0]["content"].endswith("1. Yes.\n\n2. No [[A]] $x.")
    bare = mixtures.aggregation(mixture, TALK[1:], ["Yes."])
    assert bare[0]["role"] == "system" and bare[1:] == TALK[1:]
    user = mixtures.aggregation(mixture.model_copy(update={"insert": "user"}), TALK, ["Yes."])
    assert [m["role"] for m in user] == [m["role"] for m in TALK]
    assert user[1]["content"].endswith("1. Yes.\n\nFirst?")


@pytest.mark.parametrize(
    ("keep", "writers", "rows"),
    [("random", {"one", "two"}, 1), ("all", {"one", "two"}, 2), ("best", {"one", "two"}, 1)],
)
def test_an_ablation_asks_nobody_anew(
    keep: str, writers: set[str], rows: int, open_run: OpenRun, moaa_file: Path
) -> None:
    open_run(file=moaa_file).make("gen", 0)
    run = open_run(f"mixture.keep={keep}", file=moaa_file)
    before = {p.name for p in (run.store.root / "answers").iterdir()}
    run.make("gen", 0)
    new = {p.name for p in (run.store.root / "answers").iterdir()} - before
    assert all("judge" in name for name in new) and bool(new) == (keep == "best")
    pairs = dataset(run, 0)
    assert set(pairs["chosen_agent"]) == writers
    assert pairs.group_by("prompt_id").len()["len"].max() == rows


def test_published_read_pulled(
    open_run: OpenRun, moaa_file: Path, macpo: Macpo, tmp_path: Path
) -> None:
    """Both rounds in one folder; a prompt of one's own travels along; a diff finds none."""
    own = tmp_path / "own.txt"
    own.write_text("Several said: $answers")
    sets = ["--recipe", moaa_file, "--set", f"mixture.prompt={own}", "--set", "engine.name=fake"]
    assert macpo("run", "--until", "1", *sets).returncode == 0
    for each in ("0", "1"):
        done = macpo("push", "--round", each, "--to", "hub", "--candidates", *sets)
        assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "hub" / "dataset_info.json").read_text())
    assert info["round_0_student_local"]["columns"] == {"messages": "messages"}
    assert info["round_1_student_local"]["ranking"]
    shown = macpo("show", "--round", "0", *sets)
    assert shown.returncode == 0 and "rejected" not in shown.stdout
    pulled = macpo("pull", "hub", "--round", "0", "--runs", "elsewhere", "--recipe-to", "p/m.yaml")
    assert pulled.returncode == 0, pulled.stderr
    (dataset_,) = (tmp_path / "elsewhere").glob("*/data/round-0-*")
    diff = macpo("diff", "hub", dataset_, "--config", "round_0_student")
    assert diff.returncode == 0 and "0 changed their chosen" in diff.stdout, diff.stderr
    checked = macpo("check", "hub", "--config", "round_1_student", "--for", "trl")
    assert "error" not in checked.stderr and checked.returncode in (0, 1)


@pytest.mark.slow
def test_sft_trainer_reads_what_is_published(
    open_run: OpenRun, moaa_file: Path, macpo: Macpo, tmp_path: Path, tiny_base: Path
) -> None:
    """trl's own trainer takes two steps on each configuration; the loss is on the completion."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    sets = ["--recipe", moaa_file, "--set", "engine.name=fake"]
    assert macpo("gen", "--round", "0", *sets).returncode == 0
    assert macpo("push", "--round", "0", "--to", "hub", *sets).returncode == 0
    for config in ("round_0_student", "round_0_student_messages"):
        data = load_dataset(str(tmp_path / "hub"), config, split="train", cache_dir=str(tmp_path))
        settings = SFTConfig(
            str(tmp_path / config), max_steps=2, report_to="none", use_cpu=True, save_strategy="no"
        )
        trainer = SFTTrainer(str(tiny_base), args=settings, train_dataset=data)
        assert trainer.train().training_loss > 0
        masked = -100 in trainer.train_dataset[0]["labels"]  # the prompt, which is not learned
        assert masked == (config == "round_0_student")
    rows = pl.read_parquet(tmp_path / "hub" / "data" / "round_0_student" / "*.parquet")
    whole = pl.read_parquet(tmp_path / "hub" / "data" / "round_0_student_messages" / "*.parquet")
    # A row for each turn, and each conversation once: its inner turns are in its last.
    inner = rows.filter(pl.col("prompt").list.len() == 1)["prompt_id"]
    assert len(whole) < len(rows) and whole.columns == ["messages"]
    assert whole["messages"].list.len().max() == 4 and len(inner)


def test_no_turn_of_a_test_prompt_is_learned(open_run: OpenRun, moaa_file: Path) -> None:
    """A turn inside a conversation may be a held-out prompt, or stand in a test set."""
    plain = open_run(file=moaa_file)
    turn = plain.context().prompts("test").filter(pl.col("prompt").list.len() == 1).row(0)
    named = plain.context().prompts("d1").filter(pl.col("prompt").list.len() == 1)["prompt"][0]
    test_set = moaa_file.parent / "t.jsonl"
    test_set.write_text(json.dumps({"prompt": named[0]["content"]}) + "\n")
    rows = [
        {"prompt": [*first, {"role": "assistant", "content": "x"}, {"role": "user", "content": q}],
         "chosen": "a", "rejected": "b"}
        for q, first in (("And then?", turn[1]), ("And now?", list(named)))
    ]  # fmt: skip
    talks = moaa_file.parent / "talks.jsonl"
    talks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = moaa_file.parent / "held.jsonl"
    held.write_text(json.dumps({"prompt": turn[1], "chosen": "a", "rejected": "b"}) + "\n")
    data = f"data={{source: pairs, d1: {{path: {talks}}}, d2: {{path: {talks}}}, "
    data += f"overlap: true, test: {{path: {held}}}}}"
    run = open_run(
        data,
        f"select.test_sets=[{test_set}]",
        "select.on_filter=count",
        "select.ngram=99",
        file=moaa_file,
    )
    run.make("gen", 0)
    pairs, dropped = dataset(run, 0), dataset(run, 0, "dropped")
    assert pairs["prompt"].list.len().to_list() == [3, 3]
    assert {"prompt_in_test", "in_test_set"} <= set(dropped["reason"])


def test_a_prompt_of_ones_own_has_all_names(open_run: OpenRun, moaa_file: Path) -> None:
    own = moaa_file.parent / "own.txt"
    own.write_text("Which is better? $query $answer_a")
    for path in ("judge", "eval.judge"):
        judge = f"{path}={{kind: llm, agent: sum, prompts: {{verdict: {own}}}}}"
        with pytest.raises(RecipeError, match=rf"{path}\.prompts\.verdict: .* lacks \$answer_b"):
            open_run(judge, file=moaa_file)
    with pytest.raises(RecipeError, match=r"select\.by: method moaa does not read it"):
        open_run("select.by=random", file=moaa_file)
    with pytest.raises(RecipeError, match=r"mixture\.prompt: .* lacks \$answers"):
        open_run(f"mixture.prompt={own}", file=moaa_file)


def test_what_was_dropped_is_no_turn_of_a_published_conversation() -> None:
    """Of two conversations one goes on from an answer that a filter took out."""
    first: Message = {"role": "user", "content": "First?"}
    rows = [
        [first, {"role": "assistant", "content": answer}, {"role": "user", "content": "Second?"}]
        for answer in ("good", "bad")
    ]
    pairs = pl.DataFrame(
        {"prompt": rows, "chosen": ["x", "y"]}, schema_overrides={"prompt": MESSAGES}
    )
    nobody = pl.Series([], dtype=pl.UInt64)
    row = {"prompt_id": prompt_id([first]), "response": "bad", "reason": "repetition"}

    def kept(**how: str | None) -> list[str]:
        out = hub_rows.left_out(
            pl.DataFrame([{**row, **how}], schema_overrides={"response": pl.String})
        )
        whole = pairs.filter(hub_rows.whole(pairs, nobody, out))["prompt"].to_list()
        return [messages[1]["content"] for messages in whole]

    assert kept() == ["good"]
    assert kept(reason="duplicate_answer") == ["good", "bad"]  # its twin may be learned
    assert kept(response=None, reason="in_test_set") == []


def test_the_card_says_how_it_was_made(moaa_file: Path, macpo: Macpo) -> None:
    """Sampling is the mixture's in round 0 and the student's later; a filter's prompts count; and
    the candidates of prompts without a pair have their prompt."""
    sets = ["--recipe", moaa_file, "--set", "engine.name=fake"]
    sets += ["--set", "select={on_filter: drop, min_chars: 120}"]
    assert macpo("gen", "--round", "0", *sets).returncode == 0
    done = macpo("push", "--round", "0", "--to", "hub", "--candidates", *sets)
    assert done.returncode == 0, done.stderr
    card = (moaa_file.parent / "hub" / "README.md").read_text()
    assert re.search("- Sampling: .*temperature 0.7", card)
    assert re.search("- Selection: .*min_chars 120, on_filter drop", card)
    folder = moaa_file.parent / "hub" / "data" / "round_0_student_candidates"
    candidates = pl.read_parquet(folder / "*.parquet")
    lost = candidates.filter(~pl.col("selected"))
    assert 0 < len(lost) < len(candidates) and candidates["prompt"].null_count() == 0
    asked = candidates["prompt_id"].n_unique()
    assert f"{candidates['selected'].sum()} of {asked} prompts" in card


def test_what_bars_prompts_is_identity(open_run: OpenRun, moaa_file: Path) -> None:
    """Also what a reward model of the run's own was made from, where it judges."""

    def names(*sets: str) -> list[str]:
        plan = open_run(*sets, file=moaa_file).plan
        return [plan.name(step) for step in plan.steps]

    plain = names()
    assert names("select.ngram=9", "reward.epochs=2") == plain
    assert not set(names("select.near_duplicates=0.9")) & set(plain)
    own = "judge={kind: reward, reward: trained}"
    one, other = names(own), names(own, "reward.epochs=2")
    # The reward model comes first, and is another one; round 0 asks no judge.
    assert one[0].startswith("reward/") and one[1:3] == other[1:3]
    assert not {one[0], *one[3:]} & {other[0], *other[3:]}
    assert names("judge={kind: reward, reward: org/m}", "reward.epochs=2") == names(
        "judge={kind: reward, reward: org/m}"
    )


def test_an_agent_twice_in_a_layer_draws_twice(open_run: OpenRun, moaa_file: Path) -> None:
    run = open_run("mixture.layers=[[one, one], [sum]]", file=moaa_file)
    assert run.recipe.mixture is not None
    prompts = run.context().prompts("d1")
    _, answers = mixtures.write(run.context(), run.recipe.mixture, prompts)
    by_draw = answers.filter(pl.col("layer") == 0).group_by("draw").agg("response").sort("draw")
    assert by_draw["draw"].to_list() == [0, 1]
    assert by_draw["response"][0].to_list() != by_draw["response"][1].to_list()


def test_a_mixture_is_one_more_teacher_of_macpo(open_run: OpenRun, tmp_path: Path) -> None:
    """Its aggregate stands among the student's candidates, in every round the same text."""
    values = yaml.safe_load(RECIPE) | {"mixture": {"layers": [["one", "two"], ["sum"]]}}
    roles = {"one": "proposer", "two": "proposer", "sum": "aggregator"}
    for name, role in roles.items():
        values["agents"][name] = {"role": role, "base": "world:weak-a"}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(values))
    run = finish(open_run("rounds=2", file=tmp_path / "mixed.yaml"))
    student = [s for s in run.plan.steps if s.kind == "gen" and s.learner in run.recipe.students]
    candidates = [run.store.read(run.plan.name(s), "candidates.parquet") for s in student[1:]]
    wrote = [
        frame.filter(agent="sum").sort("prompt_id")["response"].to_list() for frame in candidates
    ]
    prompts = candidates[0]["prompt_id"].n_unique()
    assert len(wrote[0]) == prompts and wrote[0] == wrote[1]
    assert len(candidates[0]) == prompts * (len(run.recipe.teachers) + 1)
    assert candidates[0].filter(agent="sum")["perplexity"].null_count() == 0
    assert not candidates[0].filter(agent="sum", selected=True).is_empty()
    (reads,) = [s.reads for s in student if s.round == 1]
    assert {"mixture", "agents.sum"} <= set(reads)
    values["mixture"]["layers"] = [["one", run.recipe.teachers[0]]]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=r"mixture\.layers: .* is trained in method macpo"):
        open_run(file=tmp_path / "wrong.yaml")
