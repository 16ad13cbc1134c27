"""A person's own data: paths that start at the recipe's folder, and a recipe in one command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import RECIPE, Macpo

from macpo_data.errors import DataError, MacpoError
from macpo_data.loading.load import load_recipe
from macpo_data.methods.registry import make_plan
from macpo_data.sources.ingest.files import SUFFIXES
from macpo_data.sources.parts import read_parts
from macpo_run.commands.init import init
from macpo_run.commands.run_options import DatasetOptions

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def write_pairs(path: Path, count: int, start: int = 0, **names: str) -> None:
    """Pairs of different prompts, in columns of other names where some are given."""
    name = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"} | names
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {name["prompt"]: f"question {n}", name["chosen"]: f"good answer {n}",
         name["rejected"]: f"bad answer {n}"}
        for n in range(start, start + count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(to: Path, **data: Any) -> None:
    """The tests' recipe on other data."""
    parts = {"d1": {"count": 14}, "d2": {"count": 12}, "test": {"count": 6}, "probe": {"count": 2}}
    values = yaml.safe_load(RECIPE)
    values["data"] = {"source": "pairs", **parts, **data}
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(yaml.safe_dump(values))


def run_in(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """A command on the fake engine, in another folder than the tests' usual one."""
    return subprocess.run(
        [sys.executable, "-m", "macpo", *args, "--set", "engine.name=fake"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(recipe: str = "macpo.yaml", *sets: str) -> dict[str, list[str]]:
    """The prompts of each part, as a run draws them."""
    loaded = load_recipe(recipe, list(sets))
    parts, _ = read_parts(loaded.data, loaded.seed)
    text = pl.element().struct.field("content")
    return {part: frame["prompt"].list.eval(text).list.join("").to_list()
            for part, frame in parts.items()}  # fmt: skip


# ---------------------------------------------------------------------------- paths


def test_paths_start_at_the_recipe(macpo: Macpo, tmp_path: Path) -> None:
    """All of them: data, a part's own, a test set, a template, a prompt, a base."""
    project = tmp_path / "project"
    write_pairs(project / "pairs.jsonl", 40)
    write_pairs(project / "data/test.jsonl", 10, start=100)
    write_pairs(project / "known.jsonl", 3)
    (project / "chat.jinja").write_text(TEMPLATE)
    (project / "good.txt").write_text("Be good.")
    write_recipe(
        project / "mine.yaml", path="pairs.jsonl", test={"path": "./data/test.jsonl", "count": 6}
    )
    values = yaml.safe_load((project / "mine.yaml").read_text())
    values["agents"]["student"] |= {"chat_template": "chat.jinja"}
    values |= {"select": {"test_sets": ["known.jsonl"]}, "framing": {"positive": "good.txt"}}
    (project / "mine.yaml").write_text(yaml.safe_dump(values))

    outside = macpo("run", "--until", "1", "-r", "project/mine.yaml", fake=True)
    assert outside.returncode == 0, outside.stderr
    assert "working directory" not in outside.stderr
    test = pl.read_parquet(tmp_path / "runs/test/data/prompts-*/test.parquet")
    assert test["chosen"].str.contains("answer 10").all()
    # The same results, by the same names, from the recipe's own folder and by an absolute path.
    for folder, recipe in ((project, "mine.yaml"), (project, str(project / "mine.yaml"))):
        shown = run_in(folder, "status", "--json", "-r", recipe, "--runs", "../runs")
        assert {step["state"] for step in json.loads(shown.stdout)} == {"done"}, shown.stderr


def test_the_working_directory_is_the_old_way_and_said(macpo: Macpo, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 40)
    write_recipe(tmp_path / "recipes/mine.yaml", path="pairs.jsonl")
    done = macpo("gen", "--round", "0", "-r", "recipes/mine.yaml", fake=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "working directory" in line]
    assert len(lines) == 1 and "pairs.jsonl was found in the working directory, not " in lines[0]
    # Beside the recipe is first, where both are there.
    write_pairs(tmp_path / "recipes/pairs.jsonl", 40, start=1000)
    both = macpo("gen", "--round", "0", "-r", "recipes/mine.yaml", "--set", "run=b", fake=True)
    assert both.returncode == 0 and "working directory" not in both.stderr
    d1 = pl.read_parquet(tmp_path / "runs/b/data/prompts-*/d1.parquet")
    assert d1["chosen"].str.contains("answer 10").all()


def test_a_path_that_is_nowhere_is_named_beside_the_recipe(here: Path) -> None:
    write_recipe(here / "recipes/mine.yaml", path="pairs.jsonl")
    with pytest.raises(DataError, match=r"no file recipes/pairs\.jsonl"):
        drawn("recipes/mine.yaml")


def test_settings_start_at_the_working_directory(here: Path) -> None:
    write_pairs(here / "other.jsonl", 40)
    write_pairs(here / "recipes/other.jsonl", 3)
    write_recipe(here / "recipes/mine.yaml", path="none.jsonl")
    assert len(drawn("recipes/mine.yaml", "data.path=other.jsonl")["d2"]) == 12


def test_names_of_results_know_only_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the recipe lies, and as they were before paths started there."""
    write_recipe(tmp_path / "a/mine.yaml", path="pairs.jsonl")
    write_recipe(tmp_path / "b/mine.yaml", path="pairs.jsonl")
    write_pairs(tmp_path / "b/pairs.jsonl", 40)
    names = {make_plan(load_recipe(str(tmp_path / at / "mine.yaml"))).prompts_name for at in "ab"}
    monkeypatch.chdir(tmp_path / "b")
    names.add(make_plan(load_recipe("mine.yaml")).prompts_name)
    assert names == {"data/prompts-f7d9a88f"}


def test_names_that_are_no_paths_stay(tmp_path: Path) -> None:
    """Ids on the Hub, the world's bases, named templates, the package's own prompts."""
    write_recipe(tmp_path / "mine.yaml", path="org/name", test={"path": ["org/a", "x/y.csv.gz"]})
    values = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    values["agents"]["student"] |= {"base": "org/model", "chat_template": "chatml"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.data.path == "org/name"  # type: ignore[union-attr]
    assert recipe.data.test.path == ["org/a", str(tmp_path / "x/y.csv.gz")]
    assert recipe.agents["teacher1"].base == "world:weak-a"
    assert (recipe.agents["student"].base, recipe.agents["student"].chat_template) == (
        "org/model", "chatml",
    )  # fmt: skip
    # A folder beside the recipe is that folder, as one in the working directory was.
    (tmp_path / "org/model").mkdir(parents=True)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.agents["student"].base == str(tmp_path / "org/model")
    assert recipe.model_dump()["agents"]["student"]["base"] == "org/model"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_data_is_a_file(tmp_path: Path, suffix: str) -> None:
    write_recipe(tmp_path / "mine.yaml", path=f"x{suffix}")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.data.path == str(tmp_path / f"x{suffix}")  # type: ignore[union-attr]


# ---------------------------------------------------------------------------- init --data


def start(place: str, *, columns: str | None = None, **options: Any) -> dict[str, Any]:
    """`macpo init --data` in the working directory: the section that it wrote."""
    to, recipe = options.pop("to", Path("macpo.yaml")), options.pop("recipe", "quickstart")
    full = options.pop("full", False)
    init(recipe, to, full, DatasetOptions(place, columns=columns, **options))
    section: dict[str, Any] = yaml.safe_load(to.read_text())["data"]
    return section


def test_one_command_and_a_run(macpo: Macpo, tmp_path: Path) -> None:
    names = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    write_pairs(tmp_path / "data/my pairs.jsonl", 60, 0, **names)
    columns = ",".join(f"{name}={column}" for name, column in names.items())
    done = macpo("init", "--data", "data/my pairs.jsonl", "--columns", columns)
    assert done.returncode == 0 and "drawn by prompt: d1 27, d2 27, test 6" in done.stdout
    assert done.stdout.endswith("next: macpo run --dry-run\n"), done.stdout
    assert macpo("run", "--dry-run").returncode == 0
    ran = macpo("run", "--until", "1", fake=True)
    assert ran.returncode == 0, ran.stderr
    shares = [set(pl.read_parquet(f"{tmp_path}/runs/my-pairs/data/prompts-*/{part}.parquet")
                  ["prompt_id"]) for part in ("d1", "d2", "test", "probe")]  # fmt: skip
    assert [len(each) for each in shares] == [22, 27, 6, 5]
    assert len(set.union(*shares)) == 60  # none is in two parts


def test_pairs_of_one_prompt_do_not_fall_apart(here: Path) -> None:
    """Sizes count prompts: what is held out is in neither half, whatever its answers."""
    rows = [{"prompt": f"q {n % 30}", "chosen": f"good {n}", "rejected": f"bad {n}"}
            for n in range(90)]  # fmt: skip
    (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = start("pairs.jsonl")
    assert [section[part]["count"] for part in ("d1", "d2", "test")] == [13, 14, 3]
    parts = drawn()
    assert sorted(p for part in parts.values() for p in part) == sorted({r["prompt"] for r in rows})


def test_a_test_split_is_used(here: Path) -> None:
    """Of a folder, of a DatasetDict, and of a file with a column `split`; what it shares is left
    out of both halves."""
    write_pairs(here / "folder/train-1.jsonl", 20)
    write_pairs(here / "folder/train-2.jsonl", 21, start=20)
    write_pairs(here / "folder/test.jsonl", 9, start=36)  # 36 to 40 are in train as well
    section = start("folder")
    assert section["path"] == ["folder/train-1.jsonl", "folder/train-2.jsonl"]
    assert section["test"] == {"path": "folder/test.jsonl", "count": 9}
    assert (section["d1"]["count"], section["d2"]["count"]) == (18, 18)
    parts = drawn()
    assert set(parts["test"]) == {f"question {n}" for n in range(36, 45)}
    assert sorted(parts["d1"] + parts["d2"] + parts["probe"]) == sorted(
        f"question {n}" for n in range(36)
    )

    import datasets

    rows = [json.loads(line) for name in ("train-1", "train-2", "test")
            for line in (here / f"folder/{name}.jsonl").read_text().splitlines()]  # fmt: skip
    kinds = {"train": rows[:41], "validation": rows[41:]}
    saved = {name: datasets.Dataset.from_list(each) for name, each in kinds.items()}
    datasets.DatasetDict(saved).save_to_disk("saved")
    section = start("saved", to=Path("saved.yaml"))
    assert section["test"]["path"] == "saved/validation/data-00000-of-00001.arrow"
    assert drawn("saved.yaml")["test"] and section["d1"]["count"] == 18

    marked = [{**row, "split": "test" if n >= 41 else "train"} for n, row in enumerate(rows)]
    (here / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    section = start("marked.jsonl", to=Path("marked.yaml"))
    assert section["test"] == {"split": "test", "count": 9}
    assert section["d1"] == {"split": "train", "count": 18}
    assert set(drawn("marked.yaml")["test"]) == set(parts["test"])


def test_the_path_starts_at_the_recipe(here: Path) -> None:
    write_pairs(here / "data/pairs.jsonl", 40)
    (here / "recipes").mkdir()
    section = start("data/pairs.jsonl", to=Path("recipes/mine.yaml"))
    assert section["path"] == "../data/pairs.jsonl"
    assert len(drawn("recipes/mine.yaml")["d2"]) == section["d2"]["count"] == 18
    absolute = str(here / "data/pairs.jsonl")
    assert start(absolute, to=Path("recipes/other.yaml"))["path"] == absolute


@pytest.mark.parametrize("full", [False, True])
def test_what_belongs_to_the_recipes_own_data_goes(here: Path, full: bool) -> None:
    """Labels that are swapped on purpose, above all."""
    write_pairs(here / "pairs.jsonl", 40)
    start("pairs.jsonl", full=full)
    recipe = load_recipe()
    assert [recipe.noise(name) for name in recipe.agents] == [0, 0, 0, 0]
    assert recipe.run == "pairs" and recipe.agents["student"].lr_scale == 0.5
    own = load_recipe("quickstart")
    assert recipe.dpo == own.dpo and recipe.train == own.train
    text = Path("macpo.yaml").read_text()
    assert "labelling teacher is the poorest" not in text and "quickstart on pairs.jsonl" in text
    start("pairs.jsonl", recipe="hh_helpful", to=Path("hh.yaml"), full=full)
    assert load_recipe("./hh.yaml").agents == load_recipe("hh_helpful").agents


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": f"q {n}"} for n in range(20)], "is prompts alone, without answers; bring a"),
        ([{"question": f"q {n}", "best": "a", "worst": "b"} for n in range(20)],
         "--columns prompt=question,chosen=best,rejected=worst"),
        ([{"prompt": f"q {n}", "completion": "a"} for n in range(20)], "is data for fine-tuning"),
        ([{"prompt": f"q {n}", "completion": "a", "label": True} for n in range(20)], "unpaired"),
        ([{"prompt": "q", "chosen": f"a {n}", "rejected": "b"} for n in range(20)],
         "1 prompts with a usable pair, and three parts want 6 or more"),
        ([{"prompt": f"q {n}", "chosen": "a", "rejected": "a"} for n in range(20)],
         "chosen and rejected are the same (20 same_sides)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(here: Path, rows: list[dict[str, Any]], words: str) -> None:
    (here / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MacpoError, match=re.escape(words)):
        start("own.jsonl")
    assert not (here / "macpo.yaml").exists()


def test_columns_are_named_where_that_reads_the_same(here: Path) -> None:
    """A form that is known by its columns together is not pressed into another one."""
    both = [{"instruction": f"q {n}", "input": "more", "chosen": f"a {n}", "rejected": f"b {n}"}
            for n in range(20)]  # fmt: skip
    (here / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
    start("alpaca.jsonl")
    prompts = [prompt for part in drawn().values() for prompt in part]
    assert "q 3\nmore" in [prompt.replace("\n\n", "\n") for prompt in prompts]
    whole = [{"chosen": f"\n\nHuman: q {n}\n\nAssistant: a", "rejected": f"\n\nHuman: q {n}\n\n"
              "Assistant: b"} for n in range(20)]  # fmt: skip
    (here / "hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    start("hh.jsonl", to=Path("hh.yaml"))
    assert sum(map(len, drawn("hh.yaml").values())) == 20
