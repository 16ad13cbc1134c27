"""An engine gets the rows of many prompts in windows, which change nothing that it writes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from macpo_data.engines.protocol import Voice
from macpo_data.generation import shards
from macpo_data.models.base import Base
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.generation import Sampling
from macpo_data.recipe.section import digest, digest_each, digest_rows
from macpo_data.store.store import Shards


def test_windows_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks of 13 shards, all at once and 20 rows at a time; progress counts every row once."""
    names = [f"p{n}" for n in range(103)]
    prompts = [[{"role": "user", "content": f"question {n}"}] for n in range(103)]
    rows = pl.DataFrame({"prompt_id": names, "prompt": prompts})

    def written(window: int) -> list[pl.DataFrame]:
        monkeypatch.setattr(shards, "WINDOW", window)
        reports: list[tuple[int, int]] = []
        tasks = [
            shards.Task(
                Shards(tmp_path / f"{window}-{seed}", names, 8),
                Voice(None, "tokenizer", f"voice {seed}"), rows, seed, Sampling(),
                {"agent": "a", "policy": "p", "draw": 0},
            )
            for seed in (0, 1)
        ]  # fmt: skip
        settings = Engine(name="fake")
        shards.run_tasks(lambda *at: reports.append(at[:2]), settings, Base("x", None), tasks)
        assert reports[0] == (0, 206) and reports[-1] == (206, 206)
        assert reports == sorted(set(reports))
        return [pl.read_parquet(file) for task in tasks for file in task.shards.files]

    whole, parts = written(1000), written(20)
    assert len(whole) == 26
    assert all(one.equals(other) for one, other in zip(whole, parts, strict=True))


def test_a_failed_write_is_an_error(tmp_path: Path) -> None:
    """A file stands where a task's folder should: shards are written beside the work on others."""
    rows = pl.DataFrame({"prompt_id": ["p"], "prompt": [[{"role": "user", "content": "why"}]]})
    (tmp_path / "made").write_text("")
    voice = Voice(None, "tokenizer", "voice")
    task = shards.Task(Shards(tmp_path / "made", ["p"], 8), voice, rows, 0, Sampling())
    with pytest.raises(OSError):
        shards.run_tasks(lambda *at: None, Engine(name="fake"), Base("x", None), [task])


@pytest.mark.parametrize("text", ["a", "", 'ü "\\ \n\x00\x7f\u2028 ', "日本"])
def test_each_text_has_the_digest_of_its_list(text: str) -> None:
    assert list(digest_each(7, [text, text])) == [digest([7, text])] * 2


def test_many_rows_have_the_digest_of_their_list() -> None:
    """More rows than are in memory at once, and as many."""
    for count in (999, 1000, 1001, 2000):
        rows = [(n, f"ü{n}", None) for n in range(count)]
        assert digest_rows(iter(rows)) == digest(rows)


@pytest.mark.parametrize("rows", [[], [(1, "a", None), ("ü", 2.5, "x")]])
def test_rows_have_the_digest_of_their_list(rows: list[tuple[object, ...]]) -> None:
    assert digest_rows(iter(rows)) == digest(rows)
