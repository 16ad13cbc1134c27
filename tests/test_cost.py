"""The plan of costs: calls and money counted by hand, and every recipe without network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import RECIPE
from typer.testing import CliRunner

from macpo.cli import app
from macpo_data.cost import CHARS_PER_TOKEN, Ask, Sizes, judging
from macpo_data.loading import load_recipe, shipped
from macpo_data.methods import make_plan, method
from macpo_data.prompts import read
from macpo_data.recipe import Endpoint

SIZES = Sizes({"d1": 10, "d2": 100, "test": 1}, 1.0, prompt=50.0, answer=30.0, note="")


def calls(recipe_name: str, *sets: str) -> dict[str, float]:
    recipe = load_recipe(recipe_name, list(sets))
    asked = judging(recipe, SIZES, "d2", recipe.sampling.n)
    return {f"{ask.what} {ask.agent}": ask.calls for ask in asked}


def test_the_paper_asks_ninety_times() -> None:
    """10 pairs of 5 answers: the criteria once a pair; 3 reviews and a verdict in both orders, so
    10 + 20 * (3 + 1) = 90."""
    found = calls("moaa_llama")
    assert found["judge: criteria qwen2_72b"] == 10 and found["judge: verdict qwen2_72b"] == 20
    assert len(found) == 5 and sum(found.values()) == 90


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["judge.pairs=first_vs_rest"], 4 * (2 * 4 + 1)),
        (["judge.pairs=swiss"], 6 * (2 * 4 + 1)),  # three rounds of two meetings
        (["judge.criteria=0"], 80),
        (["judge.kind=llm"], 20),
        (["sampling.n=2"], 9),
    ],
)
def test_fewer_calls(sets: list[str], expected: float) -> None:
    assert sum(calls("moaa_llama", *sets).values()) == expected


def test_points_are_given_to_each_answer_once() -> None:
    """Five answers in three draws are 15 calls of a prompt, our text and one answer each."""
    sets = ["judge.kind=points", "judge.sampling.n=3", "judge.sampling.temperature=1"]
    recipe = load_recipe("moaa_llama", sets)
    (ask,) = judging(recipe, SIZES, "d2", recipe.sampling.n)
    assert (ask.what, ask.agent, ask.calls) == ("judge: points", "qwen2_72b", 15)
    assert ask.tokens_in == pytest.approx(50 + 30 + len(read("points")) / CHARS_PER_TOKEN)


def test_layers_and_money() -> None:
    """The aggregator reads the prompt, its instruction and four answers of 30 tokens. At 2 and 6 a
    million, 10 prompts of 50 tokens in and 30 out cost 10 * (100 + 180) / 10^6, and with 2,048
    tokens out at most 10 * (100 + 12,288) / 10^6."""
    recipe = load_recipe("moaa_llama")
    first = make_plan(recipe).steps[0]
    found = method(recipe).asks(first, recipe, SIZES)
    assert [ask.agent for ask in found] == [*recipe.mixture.layers[0], "qwen15_110b"]  # type: ignore[union-attr]
    assert found[-1].tokens_in > 50 + 4 * 30 and found[0].tokens_in == 50
    server = Endpoint(base_url="http://x", model="m", price_in=2.0, price_out=6.0)
    money = [found[0].money(server, out) for out in (found[0].tokens_out, found[0].most_out)]
    assert money == pytest.approx([0.0028, 0.12388])
    assert Ask("write", "", "", 1, 1, 1, 1, 1).money(None, 1) is None


def test_the_best_of_each_turn() -> None:
    """Three turns, a pair each, in both orders; the judge reads what the mixture's limit allows."""
    sets = ["mixture.layers=[[wizardlm_8x22b, qwen15_110b]]", "mixture.keep=best"]
    sets += ["judge.kind=llm", "sampling.max_new_tokens=4", "mixture.sampling.max_new_tokens=1000"]
    recipe = load_recipe("moaa_llama", sets)
    sizes = replace(SIZES, turns=3.0, answer=None)
    *_, ask = method(recipe).asks(make_plan(recipe).steps[0], recipe, sizes)
    assert ask.what == "judge: verdict" and ask.calls == 3 * 2 and ask.tokens_in > 2 * 500


@pytest.mark.parametrize("name", shipped())
def test_dry_run_of_a_shipped_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE is set in tests: neither network nor model, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["gen", "--round", "1", "--dry-run", "--recipe", name])
    assert found.exit_code == 0, found.output
    assert "estimated: " in found.stdout
    assert not list((tmp_path / "runs").rglob("manifest.json"))


def test_prices_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(RECIPE)
    server = {"base_url": "http://127.0.0.1:9", "model": "m", "price_in": 1000, "price_out": 1000}
    values["agents"]["teacher1"]["endpoint"] = server
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    found = CliRunner().invoke(app, ["gen", "--round", "1", "--dry-run", "--recipe", "./r.yaml"])
    last = next(line for line in found.stdout.splitlines() if line.startswith("all"))
    assert float(last.split()[-2]) > 0 and "the money is without" not in found.stdout
    values["agents"]["teacher2"]["endpoint"] = {"base_url": "http://127.0.0.1:9", "model": "m"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    found = CliRunner().invoke(app, ["gen", "--round", "1", "--dry-run", "--recipe", "./r.yaml"])
    assert "the money is without" in found.stdout
