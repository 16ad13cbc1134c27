"""The benchmarks that read a finished study: their examples, derived by hand."""

import doctest
from types import ModuleType

import pytest

from benchmarks import advice, kept
from macpo_data.evaluation.probe import Reading
from macpo_data.loading.load import load_recipe
from macpo_data.plan import Policy


@pytest.mark.parametrize("module", [advice, kept], ids=["advice", "kept"])
def test_examples(module: ModuleType) -> None:
    """Each has one at least, and it holds."""
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_signs_by_round() -> None:
    """The perplexity as a multiple of round 0's; the student's alone."""
    recipe = load_recipe("quickstart", [])
    policies = [Policy("student", "positive", n) for n in (1, 0)] + [Policy("teacher_1", round=0)]
    read = zip(policies, (6.0, 4.0, 9.0), (0.6, 0.5, 0.1), strict=True)
    readings = [Reading(policy, perplexity, right, None, {}) for policy, perplexity, right in read]
    assert kept.signs_of(readings, recipe) == [
        {"round": 0, "perplexity": 1.0, "ranked": 0.5},
        {"round": 1, "perplexity": 1.5, "ranked": 0.6},
    ]


def test_signs_are_drawn() -> None:
    """Both signs, and each variant by its name."""
    signs = [
        {"variant": name, "round": n, "perplexity": 1.0 + n, "ranked": 0.5}
        for name in ("MACPO", "naive SFT")
        for n in range(3)
    ]
    drawn = kept.plot(signs, 1.25)
    assert all(text in drawn for text in ("MACPO", "naive SFT", *kept.SIGNS.values()))
