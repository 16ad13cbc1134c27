"""Results keep their names: those of all shipped recipes and studies are as recorded."""

from __future__ import annotations

import json
from typing import Any

import golden_names
import pytest

from macpo_data.recipe.load import load_recipe

RECORDED: dict[str, Any] = json.loads(golden_names.PATH.read_text("utf-8"))


@pytest.mark.parametrize("name", golden_names.LISTED)
def test_each_name(name: str) -> None:
    """A failure shows which kind of result changed."""
    assert golden_names.result_names(load_recipe(name)) == RECORDED["names"][name]


def test_the_names_of_every_shipped_recipe_and_variant() -> None:
    digests = golden_names.golden_names()["digests"]
    assert isinstance(digests, dict)
    changed = [name for name, digest in RECORDED["digests"].items() if digests.get(name) != digest]
    assert not changed, "results of these have other names; see tests/golden_names.py"
    assert not digests.keys() - RECORDED["digests"].keys(), "record these, see golden_names.py"


def test_a_changed_value_changes_names() -> None:
    """The beta of DPO decides every later round and nothing before it."""
    before, after = (
        golden_names.result_names(load_recipe("quickstart", [f"dpo.beta={beta}"]))
        for beta in (0.1, 0.2)
    )
    changed = {b for b, a in zip(before, after, strict=True) if b != a}
    assert any(name.startswith("adapters/student-positive-1") for name in changed)
    assert not any("-positive-0-" in name or "prompts" in name for name in changed)
