"""The plan of costs: calls and money counted by hand, and every recipe without network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from conftest import RECIPE
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.generation.cost import CHARS_PER_TOKEN, Ask, Sizes, count, made_up
from macpo_data.loading.load import load_recipe, shipped
from macpo_data.methods.registry import make_plan, method
from macpo_data.plan import Step
from macpo_data.prompts import read
from macpo_data.recipe.agents import Endpoint
from macpo_data.recipe.recipe import Recipe
from macpo_data.schema import Part
from macpo_data.store.store import Store


def counted(
    recipe: Recipe, tmp_path: Path, steps: Sequence[Step] = (), turns: int = 1
) -> list[Ask]:
    """What gen steps ask of 100 prompts in each part; all of a recipe's where none are named.

    Prompts have 50 tokens of four characters, answers 30.
    """
    plan, sample = make_plan(recipe), made_up(200, turns)
    counts: dict[Part, int] = {"d1": 100, "d2": 100, "test": 1}
    sizes = Sizes(counts, dict.fromkeys(counts, sample), CHARS_PER_TOKEN, 30.0, "")
    named = steps or [step for step in plan.steps if step.kind == "gen"]
    rules = {step: method(recipe, step).build for step in named}
    return [ask for asks in count(plan, Store(tmp_path), sizes, rules) for ask in asks]


def asked(name: str, tmp_path: Path, *sets: str, turns: int = 1) -> list[Ask]:
    return counted(load_recipe(name, list(sets)), tmp_path, turns=turns)


def judging(asks: list[Ask]) -> dict[str, float]:
    return {f"{ask.what} {ask.agent}": ask.calls for ask in asks if ask.kind == "judge"}


def test_the_paper_asks_ninety_times(tmp_path: Path) -> None:
    """10 pairs of 5 answers: the criteria once a pair; 3 reviews and a verdict in both orders, so
    10 + 20 * (3 + 1) = 90."""
    calls = judging(asked("moaa_llama", tmp_path, "rounds=1"))
    assert calls["judge-criteria qwen2_72b"] == 10 and calls["judge-verdict qwen2_72b"] == 20
    assert len(calls) == 5 and sum(calls.values()) == 90


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["judge.pairs=first_vs_rest"], 4 * (2 * 4 + 1)),
        (["judge.pairs=swiss"], 5.5 * (2 * 4 + 1)),  # three rounds of two, where nobody meets twice
        (["judge.criteria=0"], 80),
        (["judge.kind=llm"], 20),
        (["sampling.n=2"], 9),
    ],
)
def test_fewer_calls(sets: list[str], expected: float, tmp_path: Path) -> None:
    calls = judging(asked("moaa_llama", tmp_path, "rounds=1", *sets))
    assert sum(calls.values()) == expected


def test_points_are_given_to_each_answer_once(tmp_path: Path) -> None:
    """Five answers in three draws are 15 calls of a prompt, our text and one answer each."""
    sets = ["judge.kind=points", "judge.sampling.n=3", "judge.sampling.temperature=1", "rounds=1"]
    (ask,) = [ask for ask in asked("moaa_llama", tmp_path, *sets) if ask.kind == "judge"]
    assert (ask.what, ask.agent, ask.calls) == ("judge-points", "qwen2_72b", 15)
    assert ask.tokens_in == pytest.approx(50 + 30 + len(read("points")) / CHARS_PER_TOKEN, rel=0.03)


def test_layers_and_money(tmp_path: Path) -> None:
    """The aggregator reads the prompt, its instruction and four answers of 30 tokens. At 2 and 6 a
    million, 100 prompts of 50 tokens in and 30 out cost 100 * (100 + 180) / 10^6, and with 2,048
    tokens out at most 100 * (100 + 12,288) / 10^6."""
    layers = [*load_recipe("moaa_llama").mixture.layers[0], "qwen15_110b"]  # type: ignore[union-attr]
    asks = asked("moaa_llama", tmp_path, "rounds=0")
    assert [ask.agent for ask in asks] == layers
    assert asks[-1].tokens_in > 50 + 4 * 30 and asks[0].tokens_in == 50
    server = Endpoint(base_url="http://x", model="m", price_in=2.0, price_out=6.0)
    money = [asks[0].money(server, out) for out in (asks[0].tokens_out, asks[0].most_out)]
    assert money == pytest.approx([0.028, 1.2388])
    assert Ask("write", "", "", 1, 1, 1, 1, 1).money(None, 1) is None


def test_the_best_of_each_turn(tmp_path: Path) -> None:
    """Three turns, a pair each, in both orders."""
    sets = ["mixture.layers=[[wizardlm_8x22b, qwen15_110b]]", "mixture.keep=best", "rounds=0"]
    *_, ask = asked("moaa_llama", tmp_path, *sets, "judge.kind=llm", turns=3)
    assert ask.what == "judge-verdict" and ask.calls == 3 * 2 and ask.tokens_in > 50 + 2 * 30


def test_what_several_read_is_written_once(tmp_path: Path) -> None:
    """One answer to each prompt of D2: of each teacher good ones in rounds 0 and 1 and bad ones, of
    the student good ones in rounds 1 and 2 and bad ones. All three teachers read the student's."""
    asks = asked("quickstart", tmp_path)
    assert {ask.what for ask in asks} == {"write d2", "score"}
    agents = ["teacher_1", "teacher_2", "teacher_3", "student"]
    for agent in agents:
        assert sum(ask.calls for ask in asks if ask.agent == agent and ask.what != "score") == 3


@pytest.mark.parametrize("name", shipped())
def test_dry_run_of_a_shipped_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE is set in tests: neither network nor model, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["gen", "--round", "1", "--dry-run", "--recipe", name])
    assert shown.exit_code == 0, shown.output
    assert "estimated: " in shown.stdout
    assert not list((tmp_path / "runs").rglob("manifest.json"))


def test_prices_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(RECIPE)
    server = {"base_url": "http://127.0.0.1:9", "model": "m", "price_in": 1000, "price_out": 1000}
    values["agents"]["teacher1"]["endpoint"] = server
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    shown = CliRunner().invoke(app, ["gen", "--round", "1", "--dry-run", "--recipe", "./r.yaml"])
    last = next(line for line in shown.stdout.splitlines() if line.startswith("all"))
    assert float(last.split()[-2]) > 0 and "the money is without" not in shown.stdout
    values["agents"]["teacher2"]["endpoint"] = {"base_url": "http://127.0.0.1:9", "model": "m"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    shown = CliRunner().invoke(app, ["gen", "--round", "1", "--dry-run", "--recipe", "./r.yaml"])
    assert "the money is without" in shown.stdout
