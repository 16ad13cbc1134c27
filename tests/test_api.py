"""The package from Python: its examples, its notebook, and that it agrees with the commands."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import runpy
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import Macpo
from test_cli import loaded_by

import macpo
from macpo_run.api import asking

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = [n for n in macpo.__all__ if inspect.isfunction(getattr(macpo, n))]
QUIET = {"engine.name": "fake", "data.limit": 8}
NAMES = {"prompt": "q", "chosen": "good", "rejected": "bad"}
PAIRS = pl.DataFrame({"q": ["2 + 2?", "3 + 3?"], "good": ["4.", "6."], "bad": ["5.", "7."]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples, so that what one made another one keeps."""
    return tmp_path_factory.mktemp("python")


@pytest.mark.parametrize("name", ["asking", "frames", "runs"])
def test_examples(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    result = doctest.testmod(importlib.import_module(f"macpo_run.api.{name}"))
    assert result.attempted and not result.failed


def test_every_function_is_explained() -> None:
    """With an example, its arguments' types, and a place in docs/python.md."""
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    assert len(FUNCTIONS) == 11
    for name in FUNCTIONS:
        function = getattr(macpo, name)
        assert function.__doc__ and ">>> import macpo" in function.__doc__, name
        signature = inspect.signature(function)
        given = [p.annotation for p in signature.parameters.values()]
        assert signature.empty not in (*given, signature.return_annotation), name
        assert f"| `{name}(" in page, name
    assert set(re.findall(r"macpo\.(\w+)\(", page)) <= set(FUNCTIONS)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(compile(code, "docs/python.md", "exec"), values)
    assert values["dataset"].num_rows == len(values["pairs"]) > 0  # type: ignore[attr-defined,arg-type]
    assert (tmp_path / "my_adapter" / "manifest.json").is_file()


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plain text is all code cells in order, so that no kernel is needed to run them."""
    monkeypatch.chdir(tmp_path)
    values = runpy.run_path(str(ROOT / "examples" / "a_round.py"))
    assert (tmp_path / "perplexities.svg").read_text("utf-8").startswith("<svg")
    assert values["scores"].filter(behavior="positive")["round"].to_list() == [0, 1]
    assert values["chosen"]["chosen"].sum() == len(values["pairs"])


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    seen = loaded_by("import macpo\nmacpo.__version__", "polars", "pydantic", "macpo_run")
    assert seen == set()
    code = "import macpo\nmacpo.open_run('quickstart'), macpo.select, macpo.check"
    assert loaded_by(code) == set()


def test_no_such_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
        getattr(macpo, "nosuch")  # noqa: B009
    assert set(FUNCTIONS) < set(dir(macpo))


def test_settings_are_those_of_the_command_line() -> None:
    values = {"a.b": "no", "c": True, "d": 1e-5, "e": ["x", 2], "f": None, "g": "a b", "h": "x.y"}
    assert asking.as_sets(values) == [
        'a.b="no"', "c=true", "d=1e-05", 'e=["x", 2]', "f=null", 'g="a b"', 'h="x.y"',
    ]  # fmt: skip


def test_a_run_is_that_of_the_command(
    macpo: Macpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command made, Python reads and keeps; what waits for what is an error."""
    api = sys.modules["macpo"]
    more = ("--set", "data.limit=8")
    assert macpo("gen", "--round", "0", *more, fake=True).returncode == 0
    monkeypatch.chdir(tmp_path)
    run = api.open_run(settings=QUIET, quiet=True)
    states = api.steps(run).filter(kind="gen", round=0).select("learner", "state").rows()
    assert ("teacher_1", "done") in states and ("student", "waiting") in states
    folder = api.make(run, 0, "gen", "teacher_1")
    assert folder == [run.path(run.dataset_step(0, "teacher_1"))]
    with pytest.raises(api.MacpoError, match="train round 0 student positive waits for gen"):
        api.make(run, 0, "train", "student")
    with pytest.raises(api.MacpoError, match="round 1 has no dataset yet"):
        api.read_round(run, 1)
    with pytest.raises(api.MacpoError, match="its tables are candidates, dropped, pairs"):
        api.read_round(run, 0, "teacher_1", table="turns")
    with pytest.raises(api.MacpoError, match="say kind='gen' or kind='train'"):
        api.make(run, 0, learner="student")
    name = run.plan.name(run.dataset_step(0, "teacher_1"))
    assert api.read_round(run, 0, "teacher_1").equals(run.store.read(name, "pairs.parquet"))


def test_scores_are_those_of_the_engine() -> None:
    """The fake engine gives each word and the end of a turn some nats; a cut answer has no end."""
    rows = pl.DataFrame(
        {
            "prompt": [[{"role": "user", "content": "Hi", "name": None}]] * 3,
            "chosen": ["one two", "one two", ""],
            "chosen_finish_reason": ["stop", "length", "stop"],
        }
    )
    fake = {"engine.name": "fake"}
    scored = macpo.score(rows, "org/model", column="chosen", settings=fake, quiet=True)
    whole, cut, none = scored.iter_rows(named=True)
    assert whole["chosen_num_tokens"] == cut["chosen_num_tokens"] == 2
    nats = whole["chosen_sum_logprob"] + whole["chosen_eot_logprob"]
    assert whole["chosen_perplexity"] == pytest.approx(2.718281828 ** (-nats / 3))
    assert cut["chosen_eot_logprob"] == 0 and none["chosen_perplexity"] is None
    with pytest.raises(macpo.MacpoError, match="has no column response; it has prompt"):
        macpo.score(rows, "org/model", settings=fake)
    with pytest.raises(macpo.MacpoError, match="give text, or messages"):
        macpo.score(pl.DataFrame({"prompt": [1], "response": [""]}), "org/model", settings=fake)


@pytest.mark.slow
def test_real_scores(tiny_base: Path) -> None:
    """A random model over V tokens finds each about as likely as 1 / V."""
    rows = pl.DataFrame({"prompt": ["Question?"], "response": ["A good answer."]})
    (scored,) = macpo.score(rows, str(tiny_base), quiet=True).iter_rows(named=True)
    assert scored["num_tokens"] > 2 and 100 < scored["perplexity"] < 10_000


def test_selection_takes_the_least_perplexing_and_never_the_rejected() -> None:
    rows = pl.DataFrame(
        {
            "prompt": ["a"] * 3 + ["b"],
            "response": ["same", "best left", "other", "alone"],
            "perplexity": [1.0, 2.0, 3.0, 9.0],
        }
    )
    worse = pl.DataFrame({"prompt": ["a", "b"], "response": ["same", "bad"]})
    chosen = macpo.select(rows, worse)
    assert chosen["selected"].to_list() == [False, True, False, True]
    assert chosen["reason"].to_list() == ["same_as_rejected", None, None, None]
    assert macpo.select(rows, worse, keep=2)["selected"].sum() == 3
    with pytest.raises(macpo.MacpoError, match="keeep: unknown key"):
        macpo.select(rows, keeep=2)
    with pytest.raises(macpo.MacpoError, match="has no column perplexity"):
        macpo.select(rows.drop("perplexity"))


def test_frames_datasets_and_files_are_looked_at_alike(tmp_path: Path) -> None:
    PAIRS.write_parquet(tmp_path / "pairs.parquet")
    looks = [
        macpo.check(data, columns=NAMES)
        for data in (PAIRS, macpo.as_dataset(PAIRS), tmp_path / "pairs.parquet")
    ]
    assert [look.fit for look in looks] == [True] * 3
    assert not macpo.check(PAIRS, trainer="trl", columns=NAMES).fit  # it reads the usual names
    assert looks[0].findings.equals(looks[1].findings) and looks[0][1].equals(looks[2][1])
    with pytest.raises(macpo.MacpoError, match="dict is no frame"):
        macpo.check({"prompt": []})
    with pytest.raises(macpo.MacpoError, match="did you mean axolotl"):
        macpo.convert(PAIRS, "axolotle", tmp_path / "new", columns=NAMES)


@pytest.mark.slow
def test_a_training_names_what_it_learned_from(tmp_path: Path, tiny_base: Path) -> None:
    settings = {"train.max_length": 64, "dpo.epochs": 1}
    out = macpo.train(
        PAIRS, str(tiny_base), tmp_path / "out", columns=NAMES, settings=settings, quiet=True
    )
    manifest = macpo_manifest(out)
    assert manifest["dataset"] == str(tmp_path / "out.parquet") and manifest["rows_read"] == 2
    assert pl.read_parquet(tmp_path / "out.parquet").equals(PAIRS)
    with pytest.raises(macpo.MacpoError, match="out exists already"):
        macpo.train(PAIRS.head(1), str(tiny_base), tmp_path / "out", columns=NAMES, quiet=True)
    assert len(pl.read_parquet(tmp_path / "out.parquet")) == 2
    rows = PAIRS.rename({"q": "prompt"})
    moved = macpo.score(rows, str(tiny_base), out, column="good", quiet=True)
    still = macpo.score(rows, str(tiny_base), column="good", quiet=True)
    assert moved["good_perplexity"].to_list() != still["good_perplexity"].to_list()


def macpo_manifest(folder: Path) -> dict[str, object]:
    """What a manifest says."""
    import json

    values: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    return values
