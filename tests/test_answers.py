"""Right answers: what agrees with them, what has none, and what an evaluation makes of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import OpenRun

from benchmarks.pool import asked_in
from benchmarks.pool import gold as gold_of
from macpo_data.errors import DataError, RecipeError
from macpo_data.evaluation.headline import headline
from macpo_data.generation import answers
from macpo_data.generation.answers import is_mathematical, is_right
from macpo_data.loading.load import load_recipe

WORKED = "48 / 2 = <<48/2=24>>24 in May. In all 48 + 24 = <<48+24=72>>72.\n#### 72"


@pytest.fixture
def math_verify() -> None:
    pytest.importorskip("math_verify")


# ---------------------------------------------------------------------------- what is right


@pytest.mark.parametrize(
    ("right", "written", "expected"),
    [
        ("Paris", " Paris\n", True),
        ("Paris", "It is Paris.", False),
        ("Route 66", "Route 66", True),
        ("Route 66", "66", False),
        ("(B)", "(B)", True),
        ("so it is\n#### north", "#### north", True),
        ("Paris", "", False),
        ("Paris", None, False),
    ],
)
def test_text_agrees_exactly(right: str, written: str | None, expected: bool) -> None:
    assert is_right(right, written) is expected


@pytest.mark.parametrize(
    ("right", "written", "expected"),
    [
        ("72", "So she sold 72.", True),
        ("72", "First 24, then 72 clips.", True),
        ("72", "72, or rather 71.", False),
        ("72", "No idea.", False),
        (WORKED, WORKED, True),
        (WORKED, "The answer is 72.00", True),
        (WORKED, "She sold 24.\n#### 24", False),
        ("1,234", "It is 1234", True),
        ("$5.50", "It costs 5.5 dollars", True),
        ("0.5", "It is 1/2", True),
        ("50%", "50%", True),
        (r"$\frac{3}{4}$", r"It is $\boxed{\frac{6}{8}}$.", True),
        (r"$\frac{3}{4}$", "It is $4/3$.", False),
        ("-7", "It is -7.", True),
        ("-7", "It is 7.", False),
    ],
)
def test_numbers_agree_by_their_value(
    math_verify: None, right: str, written: str, expected: bool
) -> None:
    assert is_mathematical(right)
    assert is_right(right, written) is expected


@pytest.mark.parametrize("written", ["9**9**9**9**9", "(((((" * 400 + "7", "7" * 5000, "$x^{"])
def test_no_answer_takes_for_ever(math_verify: None, written: str) -> None:
    begun = time.process_time()
    assert is_right("8", written) is False
    assert time.process_time() - begun < 15


# ---------------------------------------------------------------------------- mistakes


def test_numbers_need_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "is_missing", lambda: True)
    answers.check(["Paris", "(B)"])
    with pytest.raises(DataError, match=r'numbers are compared by math-verify; pip install "macpo'):
        answers.check(["Paris", "72"])


def test_every_prompt_has_a_right_answer() -> None:
    with pytest.raises(
        DataError, match=r"2 of 3 test prompts have no right answer; .* data\.right"
    ):
        answers.check(["Paris", None, " "])


ROWS = [
    {"q": f"City {n}?", "a": f"It is {name}.", "town": name}
    for n, name in enumerate(["Paris", "Rome", "Oslo", "Bern"] * 8)
]


@pytest.fixture
def cities(recipe_file: Path, tmp_path: Path) -> dict[str, Any]:
    """The small recipe on prompts that have good answers alone, and a right one."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe: dict[str, Any] = yaml.safe_load(recipe_file.read_text())
    recipe["data"] = {
        "source": "pairs", "path": "rows.jsonl", "right": "town", "rejected": "mismatch",
        "columns": {"prompt": "q", "chosen": "a", "rejected": None}, "probe": {"count": 0},
        "d1": {"count": 12}, "d2": {"count": 10}, "test": {"count": 10},
    }  # fmt: skip
    recipe["eval"] = {"by": "answer"}
    return recipe


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "cities.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"right": None}, "eval.by: answer needs data.right, the column of the right answers"),
        ({"right": "town", "by": None}, "data.right: only read by eval.by=answer"),
    ],
)
def test_the_one_needs_the_other(
    cities: dict[str, Any], tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    cities["data"]["right"] = changes["right"]
    cities["eval"]["by"] = changes.get("by", "answer")
    with pytest.raises(RecipeError, match=expected):
        load_recipe(str(write(tmp_path, cities)))


def test_a_column_that_is_not_there(
    cities: dict[str, Any], tmp_path: Path, open_run: OpenRun
) -> None:
    cities["data"]["right"] = "place"
    run = open_run(file=write(tmp_path, cities))
    with pytest.raises(DataError, match=r"data\.right is place, and the columns are a, q, town"):
        run.context().prompts("test")


# ---------------------------------------------------------------------------- an evaluation


def test_an_evaluation_by_answers(
    cities: dict[str, Any], tmp_path: Path, open_run: OpenRun
) -> None:
    """Two rounds on the fake engine, of whose words one is made right for some prompts."""
    run = open_run(file=write(tmp_path, cities))
    d1 = run.context().prompts("d1")
    assert d1["rejected"].null_count() == 0
    assert (d1["rejected"] != d1["chosen"]).all()
    assert set(d1["rejected"]) <= set(d1["chosen"])
    for round_ in (0, 1):
        assert run.finish_round(round_)
    test = run.context().prompts("test")
    assert dict(zip(test["prompt_id"], test["right"], strict=True)).keys() == {*test["prompt_id"]}

    student = [p for s in run.plan.steps if (p := s.makes) and s.learner == "student"]
    result = run.evaluate([p for p in student if p.behavior == "positive"])
    assert set(result.table["measure"]) == {"gold"}
    assert set(result.table["by"]) == {answers.RIGHT_ANSWERS}
    right = dict(zip(test["prompt_id"], test["right"], strict=True))
    pairs = result.responses.select("prompt_id", "response").iter_rows()
    expected = [float((text or "").strip() == right[i]) for i, text in pairs]
    assert result.responses["gold"].to_list() == expected
    shown = headline(run.plan, run.store, result)
    assert shown.table is not None and shown.table.meaning.startswith("share of right answers.")


def test_the_oracle_of_a_pool_goes_by_right_answers() -> None:
    turns = [{"role": "user", "content": "City?"}]
    prompts = pl.DataFrame({"prompt_id": ["p"], "prompt": [turns], "right": ["Oslo"]})
    pool = pl.DataFrame({"prompt_id": ["p"] * 3, "response": ["Oslo", "Rome", None]})
    assert gold_of(pool, asked_in(prompts)).to_list() == [1.0, 0.0, 0.0]
