"""A method is one file: whoever writes it names it in no other place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from macpo import cli
from macpo_data import methods
from macpo_data.errors import RecipeError
from macpo_data.loading.load import load_recipe
from macpo_data.loading.write import schema_text
from macpo_data.methods import registry

MINE = '''
"""The student's longest answer of three against its shortest."""

from macpo_data.generation import select
from macpo_data.methods.method import Method
from macpo_data.methods.steps import WRITING_READS, prefer, weak_start
from macpo_data.plan import Policy


def plan(recipe):
    (student,) = recipe.students
    rounds = range(1, recipe.rounds + 1)
    before = [Policy(student, "positive", t - 1) for t in rounds]
    pairs = [prefer(recipe, student, t, 0, (p,), WRITING_READS) for t, p in zip(rounds, before)]
    return [*weak_start(recipe), *(step for steps in pairs for step in steps)]


def build(step, ctx):
    (student,) = step.policies
    wrote = ctx.generate([student], "d2", n=3).sort("prompt_id", "response", maintain_order=True)
    first, last = wrote.gather_every(3), wrote.gather_every(3, offset=2)
    long, short = ctx.score_together([last, first], under=student)
    return ctx.pair(select.first(long, short, ctx.recipe.select), short)


METHOD = Method(
    "mine", "by a student that says much (mine)", plan, build, unread=("positives",)
)
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more file in the folder of methods."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine.py").write_text(MINE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "more")])
    registry.methods.cache_clear()
    yield
    registry.methods.cache_clear()
    sys.modules.pop("macpo_data.methods.mine", None)


@pytest.mark.usefixtures("mine")
def test_a_method_is_one_file(recipe_file: Path, tmp_path: Path) -> None:
    """It is loaded, checked, planned, counted, made, shown and published by its name."""
    options = ["--recipe", str(recipe_file), "--runs", str(tmp_path / "runs")]
    options += ["--set", "engine.name=fake", "--set", "method=mine"]

    def macpo(*command: str) -> str:
        done = CliRunner().invoke(cli.app, [*command, *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "write d2" in macpo("gen", "--round", "1", "--dry-run")
    macpo("run", "--until", "1")
    assert "mine, rounds 0..1" in " ".join(macpo("status").split())
    macpo("push", "--round", "1", "--to", str(tmp_path / "published"))
    card = (tmp_path / "published" / "README.md").read_text()
    assert "round by round by a student that says much (mine)." in card
    assert '"mine"' in schema_text()
    with pytest.raises(RecipeError, match="positives: method mine does not read it"):
        load_recipe(str(recipe_file), ["method=mine", "positives=own"])


def test_it_is_unknown_elsewhere(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"method: input should be one of .*weak_labels$"):
        load_recipe(str(recipe_file), ["method=mine"])
    with pytest.raises(RecipeError, match=r"did you mean weak_labels\?"):
        load_recipe(str(recipe_file), ["method=weak_label"])
