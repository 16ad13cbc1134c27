"""Reward models: which number is the reward, real classifiers, and one trained on pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from conftest import RECIPE, OpenRun, no_progress
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import pool
from macpo import cli
from macpo_data.errors import ModelError, RecipeError
from macpo_data.generation import judge
from macpo_data.generation.reward_model import Scorer, accuracy, longest, one_reward, rewards, score
from macpo_data.loading.load import load_recipe
from macpo_data.models.base import Base, load_classifier
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.evaluation import Judge, RewardModel
from macpo_data.recipe.training import Lora, RewardTraining, Train
from macpo_data.schema import MESSAGES, SAMPLES
from macpo_data.store.store import Shards
from macpo_run.cleaning import unreachable
from macpo_run.policies import train_reward
from macpo_run.rounds import Run
from macpo_train.job import Job
from macpo_train.reward import classifier as new_classifier

Rows = pl.DataFrame


def answers(count: int) -> Rows:
    """Prompts with answers of unlike lengths, one of them cut."""
    rows = [
        {
            "prompt_id": f"p{n}",
            "prompt": [{"role": "user", "content": f"Question {n}?"}],
            "response": "Good. " * (1 + n % 5),
            "finish_reason": "length" if n == 2 else "stop",
        }
        for n in range(count)
    ]
    return pl.DataFrame(rows, schema_overrides={"prompt": MESSAGES})


@pytest.fixture(scope="module")
def classifier(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as a classifier of three outputs."""
    return make_classifier(tiny_base, tmp_path_factory.mktemp("classifier") / "three", 3)


def make_classifier(base: Path, folder: Path, outputs: int) -> Path:
    """A base with a new head, which says anything."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    loader: Any = AutoModelForSequenceClassification
    loader.from_pretrained(base, num_labels=outputs).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_which_output_is_the_reward() -> None:
    """1 * 0.5 + 2 * 0 + 4 * 0.25 = 1.5."""
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, 8.0]])
    assert one_reward(logits, 1, "m").tolist() == [2.0, -1.0]
    assert one_reward(logits, (0.5, 0.0, 0.25), "m").tolist() == [1.5, 2.0]
    assert one_reward(logits[:, :1], None, "m").tolist() == [1.0, 0.0]
    for head, message in (
        (None, "choose one"),
        (3, "outputs 0..2"),
        (-1, "0..2"),
        ((1.0,), "weights"),
    ):
        with pytest.raises(ModelError, match=message):
            one_reward(logits, head, "m")


def test_a_batch_scores_as_each_answer_alone(classifier: Path) -> None:
    """By transformers alone, an answer at a time and without padding."""
    from macpo_data.models.base import load_chat

    rows = answers(7)
    base = Base(str(classifier), None)
    rewards_ = rewards(
        lambda *_: None, Engine(batch_size=3), Scorer(base, None, "tokenizer", 2, "x"), rows
    )
    model: Any = load_classifier(base).eval()
    chat = load_chat(base, "tokenizer")
    for row, reward in zip(rows.iter_rows(named=True), rewards_, strict=True):
        ids = chat.prompt_ids(row["prompt"])
        ids += chat.response_ids(row["response"], row["finish_reason"] == "stop")
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids])).logits[0, 2].item()
        assert reward == pytest.approx(alone, abs=1e-5)


def test_pools_are_measured_by_reward(tiny_base: Path, tmp_path: Path) -> None:
    """Of any column of any order of rows, several to a prompt too: each row its own."""
    model = make_classifier(tiny_base, tmp_path / "one", 1)
    scorer = Scorer(Base(str(model), None), None, "tokenizer", None, "x")
    prompts = answers(3)
    texts = [
        ("p2", "Yes.", "stop"),
        ("p0", "No, I would not.", "length"),
        ("p2", "Perhaps so.", "stop"),
    ]
    columns = ["prompt_id", "chosen", "chosen_finish_reason"]
    frame = pl.DataFrame(texts, schema=columns, orient="row")
    pooled = pool.measure(prompts, model)(frame, column="chosen")
    for (prompt_id, text, ended), reward in zip(texts, pooled, strict=True):
        row = prompts.filter(prompt_id=prompt_id).with_columns(
            response=pl.lit(text), finish_reason=pl.lit(ended)
        )
        assert [reward] == pytest.approx(rewards(lambda *_: None, Engine(), scorer, row), abs=1e-5)
    assert pooled.n_unique() == 3


def test_what_does_not_fit_has_no_reward(classifier: Path) -> None:
    """The tiny model reads 256 tokens."""
    rows = answers(2).with_columns(response=pl.Series(["word " * 300, "Fine."]))
    scorer = Scorer(Base(str(classifier), None), None, "tokenizer", 0, "x")
    long, short = rewards(lambda *_: None, Engine(), scorer, rows)
    assert long is None and short is not None


def test_a_reward_that_is_no_number_stops(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head whose weights overflowed."""
    monkeypatch.setattr(
        "macpo_data.generation.reward_model.one_reward", lambda logits, *_: logits[:, 0] * math.nan
    )
    scorer = Scorer(Base(str(classifier), None), None, "tokenizer", 0, "x")
    with pytest.raises(ModelError, match=f"rewards of {classifier} are NaN or infinite"):
        rewards(lambda *_: None, Engine(), scorer, answers(2))


def test_a_judge_by_reward_reads_how_answers_ended(open_run: OpenRun) -> None:
    ctx, seen = open_run().context(), []

    def scored(rows: Rows, model: RewardModel) -> pl.Series:
        seen.append(rows["finish_reason"].to_list())
        return pl.Series([0.0] * len(rows))

    ctx.rewards = scored  # type: ignore[method-assign]
    by = Judge(kind="reward", reward=RewardModel(model="org/m"))
    rows = answers(3).rename({"response": "a", "finish_reason": "a_finish_reason"})
    judge.compare(ctx, by, rows.with_columns(b=pl.lit("Bad.")))
    assert seen == [["stop", "stop", "length", *["stop"] * 3]]


def test_a_language_model_is_no_reward_model(tiny_base: Path) -> None:
    """Its head would be random numbers."""
    with pytest.raises(ModelError, match="is no reward model: its files lack score"):
        load_classifier(Base(str(tiny_base), None))


def test_a_killed_scoring_goes_on_at_its_shard(classifier: Path, tmp_path: Path) -> None:
    scorer = Scorer(Base(str(classifier), None), None, "tokenizer", 0, "x")
    rows, engine = answers(10), Engine(batch_size=4)
    whole = Shards(tmp_path / "whole", rows["prompt_id"].to_list(), 4)
    score(lambda *_: None, engine, scorer, rows, whole)
    sizes: list[int] = []
    again = Shards(tmp_path / "whole", rows["prompt_id"].to_list(), 4)
    kept = [path.read_bytes() for path in again.files]
    again.files[1].unlink()
    score(lambda done, total, note: sizes.append(total), engine, scorer, rows, again)
    assert sizes == [4] and [path.read_bytes() for path in again.files] == kept


def test_equal_answers_are_scored_once_and_stored(open_run: OpenRun) -> None:
    run = open_run()
    context = run.context()
    rows = pl.concat([answers(5), answers(5), answers(1).with_columns(response=None)])
    rewards_ = context.rewards(rows, RewardModel(model="org/model"))
    assert rewards_[:5].to_list() == rewards_[5:10].to_list() and rewards_[10] is None
    (name,) = [name for name in context.used if name.startswith("rewards/")]
    assert run.store.verify(name)["rows"] == 5
    created = run.store.verify(name)["created"]
    assert run.context().rewards(rows, RewardModel(model="org/model")).equals(rewards_)
    assert run.store.verify(name)["created"] == created
    other = run.context().rewards(rows, RewardModel(model="org/model", head=1))
    assert not other.equals(rewards_)


def test_what_the_judge_cannot_read_is_out(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three answers one does not fit the model: it has no rank, and is not the worst."""
    from macpo_data.generation import judge, select

    context = open_run("judge={kind: reward, reward: org/m}").context()
    prompts = context.prompts("d2").head(1)
    known = {"one": 1.0, "two": 2.0, "long": None}
    monkeypatch.setattr(
        context,
        "rewards",
        lambda rows, _: pl.Series([known[r] for r in rows["response"]], dtype=pl.Float64),
    )
    written = [[prompts["prompt_id"][0], "a", "p", n, r, "stop", 0.0] for n, r in enumerate(known)]
    samples = pl.DataFrame(written, schema=SAMPLES, orient="row")
    candidates = select.competing(samples, context.recipe.select)
    ranked, _ = judge.rank(context, "judge", prompts, candidates)
    assert ranked["rank"].to_list() == [2, 1, None]
    assert ranked["reason"].to_list() == [None, None, "no_score"]
    assert select.best_and_worst(ranked)["rejected"].to_list() == [True, False, False]


def test_a_reward_model_by_its_name_alone(recipe_file: Path) -> None:
    assert load_recipe(str(recipe_file), ["eval.reward=org/m"]).eval.reward == RewardModel(
        model="org/m"
    )
    with pytest.raises(RecipeError, match=r"eval\.reward\.modle: unknown key"):
        load_recipe(str(recipe_file), ["eval.reward={model: m, modle: n}"])


def test_evaluation_is_no_part_of_what_a_result_is(open_run: OpenRun) -> None:
    plain, other = open_run(), open_run("eval.reward=org/m", "reward.epochs=7")
    assert [plain.plan.name(s) for s in plain.plan.steps] == [
        other.plan.name(s) for s in other.plan.steps
    ]
    assert plain.plan.reward_name != other.plan.reward_name


def test_prompts_that_are_kept_out_make_another_reward_model(open_run: OpenRun) -> None:
    names = [
        open_run(*sets).plan.reward_name
        for sets in ((), ("select.keep=2", "select.ngram=5"), ("select.near_duplicates=0.9",))
    ]
    assert names[0] == names[1] != names[2]


def test_a_dry_run_trains_nothing(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe_file.parent)
    dry = ["train", "--reward", "--dry-run", "-r", str(recipe_file), "--set", "engine.name=fake"]
    cli.app(dry, standalone_mode=False)
    assert "would train: runs/test/reward/" in capsys.readouterr().out
    assert not list(recipe_file.parent.glob("runs/test/reward/*"))


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 1.0, None]), st.sampled_from([0.0, None]))))
def test_accuracy_counts_a_tie_as_half(pairs: list[tuple[float | None, float | None]]) -> None:
    chosen, rejected = [c for c, _ in pairs], [r for _, r in pairs]
    share = accuracy(chosen, rejected)
    scored = [(c > r) + 0.5 * (c == r) for c, r in pairs if c is not None and r is not None]
    assert share["held_out_unscored"] == len(pairs) - len(scored)
    mean = share["held_out_accuracy"]["mean"]
    assert mean == (pytest.approx(np.mean(scored)) if scored else None)


def test_how_much_a_classifier_reads() -> None:
    """RoBERTa's positions 0 and 1 are for padding: of 34 it has 32 for tokens."""
    from transformers import LlamaConfig, RobertaConfig, RobertaForSequenceClassification

    assert longest(LlamaConfig(max_position_embeddings=34)) == 34
    config = RobertaConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    fits = torch.full((1, longest(config)), 5)
    assert fits.shape == (1, 32) and model(fits).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))


def test_a_head_beside_an_adapter_has_all_digits(tiny_base: Path, tmp_path: Path) -> None:
    job = Job(
        dataset=tmp_path, column="chosen", base=Base(str(tiny_base), None),
        chat_template="tokenizer", start=None, out=tmp_path, settings=RewardTraining(),
        lora=Lora(targets=["q_proj"]), train=Train(dtype="bfloat16"),
    )  # fmt: skip
    model = new_classifier(job)
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32} and any("score" in name for name in trained)


@pytest.mark.slow
@pytest.mark.parametrize("finetuning", ["lora", "full"])
def test_a_reward_model_learns_and_scores(tiny_base: Path, tmp_path: Path, finetuning: str) -> None:
    """Bad answers of the world have a tone of their own, which two layers learn at once. The
    accuracy of the manifest is that of the stored model, asked again through `rewards`."""
    values = yaml.safe_load(RECIPE)
    for agent in values["agents"].values():
        agent["base"] = str(tiny_base)
    values["data"] |= {"d1": {"count": 96}, "test": {"count": 40}}
    values["lora"] = {"targets": ["q_proj", "v_proj", "up_proj", "down_proj"]}
    values["reward"] = {"epochs": 3, "learning_rate": 5e-3, "batch_size": 16}
    values["reward"]["finetuning"] = finetuning
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    recipe = load_recipe(str(path), ["eval.reward=trained"])
    with Run(recipe, tmp_path / "runs", no_progress, lambda line: None) as run:
        folder = train_reward(run)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["held_out_pairs"] == 40
        assert manifest["held_out_accuracy"]["low"] > 0.5
        assert manifest["history"][-1]["loss"] < manifest["history"][0]["loss"]
        assert train_reward(run) == folder
        test = run.context().prompts("test")
        scores = [
            run.context().rewards(
                test.select("prompt_id", "prompt", response=side, finish_reason=pl.lit("stop")),
                RewardModel(model="trained"),
            )
            for side in ("chosen", "rejected")
        ]
        assert (scores[0] > scores[1]).mean() == pytest.approx(
            manifest["held_out_accuracy"]["mean"]
        )
        assert f"reward/{folder.name}" not in unreachable([run])


def test_the_runs_own_reward_model_is_a_step_like_others(open_run: OpenRun) -> None:
    """It is planned where it is asked for, waited for by what it judges, and made in round 0."""
    assert not [step for step in open_run().plan.steps if step.objective == "reward"]
    judged = ["method=rlaif", "sampling.n=2", "judge={kind: reward, reward: trained}", "rounds=1"]
    run = open_run(*judged)
    (step,) = [step for step in run.plan.steps if step.objective == "reward"]
    assert str(step) == "train round 0 student reward" and step.makes is None
    (gen,) = run.select("gen", 1)
    assert step in run.plan.parents(gen) and run.states()[step] == "ready"
    assert str(step) in run.waits_for(gen, run.states())
    outcome = run.finish_round(0)
    assert (step, run.store.path(run.plan.reward_name)) in outcome.wrote
    assert run.states()[step] == "done" and not run.finish_round(1).waiting
