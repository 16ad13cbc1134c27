"""What is fetched is checked before it is kept, and a killed pull leaves nothing half."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hub_case import (
    REPO,
    Macpo,
    error,
    ok,
    relist,
    reseal,
)
from hub_server import File, Hub

from macpo_data.errors import DataError
from macpo_data.hub.reading import check_table
from macpo_data.store.manifests import MANIFEST, seal
from macpo_data.store.store import Manifest, Store

ALIASES = "a: &a [x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b, *b]\n"


def student_tree(run_cli: Macpo, tree: Path) -> tuple[Path, str]:
    """A published round of the student alone: its own folder, and its result's name."""
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tree))
    own = tree / "macpo/round_1_student"
    (folder,) = own.glob("data/*")
    return own, f"data/{folder.name}"


def promise(tree: Path, manifest: Manifest) -> None:
    """Say in the index that a manifest is the one that was published."""
    index = json.loads((tree / "macpo/index.json").read_text())
    promised = index["round_1_student"]["facts"]["manifest"]
    promised |= {key: manifest[key] for key in ("content", "seal", "files")}
    (tree / "macpo/index.json").write_text(json.dumps(index))
    relist(tree)


def more_text(folder: Path) -> None:
    """Another answer in a dataset, of the right form."""
    pairs = pl.read_parquet(folder / "pairs.parquet")
    changed = pairs.with_columns(pl.col("chosen") + " And more.")
    changed.write_parquet(folder / "pairs.parquet")


def other_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")


def list_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[1]")


def only_bin(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize("text", [ALIASES, "".join(f"k{n}: 1\n" for n in range(60_000))])
def test_a_recipe_that_grows_is_refused_before_it_is_written(
    run_cli: Macpo, tmp_path: Path, text: str
) -> None:
    own, _ = student_tree(run_cli, tmp_path / "tree")
    recipe = (own / "recipe.yaml").read_text()
    (own / "recipe.yaml").write_text(recipe + text)
    (tmp_path / "empty").mkdir()
    begun = time.monotonic()
    output = error(run_cli("pull", tmp_path / "tree", "--round", "1", cwd=tmp_path / "empty"))
    assert time.monotonic() - begun < 10
    assert "its recipe is damaged (" in output and ("aliases" in output or "more than" in output)
    assert not list((tmp_path / "empty").iterdir())


def test_a_recipe_with_a_mistake_or_a_key_is_not_written(run_cli: Macpo, tmp_path: Path) -> None:
    own, _ = student_tree(run_cli, tmp_path / "tree")
    published = (own / "recipe.yaml").read_text()
    (tmp_path / "empty").mkdir()
    for more, message in {
        "nonsense: 1\n": "nonsense: unknown key",
        "hf_token: hunter2\n": "hf_token: looks like a secret",
    }.items():
        (own / "recipe.yaml").write_text(published + more)
        refused = error(run_cli("pull", tmp_path / "tree", "--round", "1", cwd=tmp_path / "empty"))
        assert f"recipe of {tmp_path / 'tree'}: " in refused
        assert message in refused and "hunter2" not in refused
        assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("change", [other_weights, list_config, only_bin])
def test_another_adapter_than_promised_is_never_kept(
    run_cli: Macpo, hub: Hub, fake_run: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """It is sealed, so that its manifest alone betrays nothing; the second pull finds it, too."""
    ok(run_cli("push", "--round", "1", "--repo", REPO, "--learner", "student", "--adapters"))
    repo = hub.model(f"{REPO}-adapters")
    empty = tmp_path / "empty"
    empty.mkdir()
    pull = ["pull", REPO, "--round", "1", "--learner", "student"]
    name = next(short for short in repo.tags if short.startswith("student-positive-0"))
    shutil.copytree(fake_run / "runs/test/adapters" / name, tmp_path / "store/adapters" / name)
    reseal(Store(tmp_path / "store"), f"adapters/{name}", change)
    tree = {path: f for path, f in repo.tree("main").items() if not path.startswith(f"{name}/")}
    for path in (tmp_path / "store/adapters" / name).iterdir():
        tree[f"{name}/{path.name}"] = File(path.read_bytes(), path.suffix == ".safetensors")
    good, repo.tags[name] = repo.tags[name], repo.add("main", tree, repo.branches["main"])
    for _ in range(2):
        output = error(run_cli(*pull, cwd=empty))
        assert name in output and ("is not what its manifest says" in output or "whole" in output)
        assert not list(empty.glob("runs/test/adapters/*"))
        assert not list(empty.glob("runs/test/aside/*"))
        assert not (empty / "macpo.yaml").exists()
    # One that lies there already, by whatever way, is as wrong.
    shutil.copytree(tmp_path / "store/adapters", empty / "runs/test/adapters")
    output = error(run_cli(*pull, cwd=empty))
    assert f"{name} is there already, but " in output and "--runs DIR" in output
    shutil.rmtree(empty / "runs/test/adapters")
    repo.tags[name] = good
    assert "pulled   runs/test/adapters" in ok(run_cli(*pull, cwd=empty))
    assert "kept     runs/test/adapters" in ok(run_cli(*pull, cwd=empty))


def test_another_dataset_than_promised_is_never_kept(run_cli: Macpo, tmp_path: Path) -> None:
    own, name = student_tree(run_cli, tmp_path / "tree")
    empty = tmp_path / "empty"
    empty.mkdir()
    pull = ["pull", tmp_path / "tree", "--round", "1"]
    good = {p.name: p.read_bytes() for p in (own / name).iterdir()}
    manifest = reseal(Store(own), name, more_text)
    assert "is another one than the index says" in error(run_cli(*pull, cwd=empty))
    assert not list(empty.glob("runs/test/data/*")) and not (empty / "macpo.yaml").exists()
    promise(tmp_path / "tree", manifest)
    ok(run_cli(*pull, cwd=empty))
    for file, content in good.items():
        (own / name / file).write_bytes(content)
    promise(tmp_path / "tree", json.loads(good["manifest.json"]))
    output = error(run_cli(*pull, cwd=empty))
    assert "is there already, but it is another one than the index says" in output
    shutil.rmtree(empty / "runs")
    ok(run_cli(*pull, cwd=empty))
    assert "kept" in ok(run_cli(*pull, cwd=empty))
    (empty / "runs/test" / name / "pairs.parquet").write_bytes(b"PAR1")
    assert "pairs.parquet has other bytes" in error(run_cli(*pull, cwd=empty))


@pytest.mark.parametrize("file", ["recipe.yaml", "adapters.json", "lock.json", "manifest", "gone"])
def test_files_are_those_that_the_index_lists(run_cli: Macpo, tmp_path: Path, file: str) -> None:
    """Each reads well by itself: another space, a sealed manifest of another day, a lost table."""
    own, name = student_tree(run_cli, tmp_path / "tree")
    if file == "manifest":
        manifest = json.loads((own / name / MANIFEST).read_text())
        manifest |= {"created": "2001-01-01T00:00:00+00:00"}
        (own / name / MANIFEST).write_text(json.dumps(manifest | {"seal": seal(manifest)}))
    elif file == "gone":
        (own / name / "pairs.parquet").rename(own / name / "away")
    else:
        with (own / file).open("a") as opened:
            opened.write("\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    output = error(run_cli("pull", tmp_path / "tree", "--round", "1", cwd=empty))
    assert "is not the one that the index lists" in output or "pairs.parquet is missing" in output
    assert not list(empty.glob("runs/test/data/*")) and not (empty / "macpo.yaml").exists()


def test_an_adapter_without_its_manifest_is_told(
    fake_run: Path, run_cli: Macpo, tmp_path: Path
) -> None:
    """What is published says from which adapter a training starts: it may not lack in silence."""
    own = tmp_path / "own"
    shutil.copytree(fake_run, own)
    for adapter in own.glob("runs/test/adapters/student-positive-0-*"):
        (adapter / MANIFEST).unlink()  # one, and those that other tests made
    output = error(run_cli("push", "--round", "1", "--to", tmp_path / "tree", cwd=own))
    assert "has no manifest.json any more" in output and not (tmp_path / "tree/data").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop("chosen"), "no column chosen"),
        (lambda t: t.with_columns(chosen=pl.lit(1)), "chosen is Int32, not String"),
        (lambda t: t.with_columns(junk=pl.lit("x")), "has a column 'junk'"),
        (lambda t: t.with_columns(prompt=pl.lit(None)), "rows without prompt_id or prompt"),
        (lambda t: t.head(3), "has 3 rows, not 12"),
        (lambda t: None, "is no parquet file"),
    ],
)
def test_a_table_of_another_form_is_not_kept(
    run_cli: Macpo,
    tmp_path: Path,
    change: Callable[[pl.DataFrame], pl.DataFrame | None],
    message: str,
) -> None:
    """Though it is sealed, and the index says the same."""
    own, name = student_tree(run_cli, tmp_path / "tree")

    def write(folder: Path) -> None:
        changed = change(pl.read_parquet(folder / "pairs.parquet"))
        if changed is None:
            (folder / "pairs.parquet").write_bytes(b"PAR1" + b"\0" * 40 + b"PAR1")
        else:
            changed.write_parquet(folder / "pairs.parquet")

    promise(tmp_path / "tree", reseal(Store(own), name, write))
    (tmp_path / "empty").mkdir()
    assert message in error(
        run_cli("pull", tmp_path / "tree", "--round", "1", cwd=tmp_path / "empty")
    )
    assert not list((tmp_path / "empty").glob("runs/test/data/*"))
    assert not (tmp_path / "empty/macpo.yaml").exists()


def test_what_is_too_large_is_not_fetched(
    run_cli: Macpo, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(run_cli("push", "--round", "1", "--learner", "student", "--repo", REPO))
    own, name = student_tree(run_cli, tmp_path / "tree")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("macpo_data.hub.reading.TABLE_BYTES", 10)
    for place in (REPO, tmp_path / "tree"):
        pull = ["pull", place, "--round", "1", "--learner", "student"]
        output = error(run_cli(*pull, cwd=tmp_path / "empty"))
        assert "pairs.parquet" in output and "larger than 10 bytes" in output
    assert hub.count("HEAD .*/pairs.parquet") and not hub.count("GET .*/pairs.parquet")
    monkeypatch.undo()
    with (own / "recipe.yaml").open("ab") as file:
        file.truncate(1 << 40)
    pull = ["pull", tmp_path / "tree", "--round", "1"]
    assert "recipe.yaml is larger than" in error(run_cli(*pull, cwd=tmp_path / "empty"))
    monkeypatch.setattr("macpo_data.hub.reading.TABLE_ROWS", 11)
    with pytest.raises(DataError, match="unpacks to 12 rows"):
        check_table((own / name / "pairs.parquet").read_bytes(), "pairs.parquet")


@pytest.mark.parametrize(
    ("key", "value"),
    [("facts", {"name": "x"}), ("facts", []), ("files", []), ("round", "1"), ("configs", {"x": 1})],
)
def test_an_index_of_another_form_is_a_line(
    run_cli: Macpo, tmp_path: Path, key: str, value: object
) -> None:
    tree = tmp_path / "tree"
    student_tree(run_cli, tree)
    index = json.loads((tree / "macpo/index.json").read_text())
    index["round_1_student"][key] = value
    (tree / "macpo/index.json").write_text(json.dumps(index))
    (tmp_path / "empty").mkdir()
    assert "is damaged" in error(run_cli("pull", tree, "--round", "1", cwd=tmp_path / "empty"))
    assert "is damaged" in error(run_cli("push", "--round", "0", "--to", tree))


@pytest.mark.parametrize("pins", ["[" * 99_999, '{"models": {"a": 1}}', '{"data": []}', "[]"])
def test_pins_of_another_form_are_a_line(run_cli: Macpo, tmp_path: Path, pins: str) -> None:
    own, _ = student_tree(run_cli, tmp_path / "tree")
    empty = tmp_path / "empty"
    (empty / "runs/test").mkdir(parents=True)
    (empty / "runs/test/lock.json").write_text(pins)
    pull = ["pull", tmp_path / "tree", "--round", "1"]
    assert "lock.json is damaged; restore it" in error(run_cli(*pull, cwd=empty))
    (empty / "runs/test/lock.json").unlink()
    (own / "lock.json").write_text(pins)
    assert "its lock.json is damaged; ask" in error(run_cli(*pull, cwd=empty))


KILLED = """
import os, sys
left, here = int(sys.argv[1]), os.getcwd()
def end(event, args):
    global left
    writes = event == "open" and isinstance(args[1], str) and set("wax+") & set(args[1])
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        left -= os.path.abspath(os.fsdecode(args[0])).startswith(here)
        if not left:
            os._exit(77)
del sys.argv[1]
from macpo.cli import main
sys.addaudithook(end)
main()
"""


@pytest.mark.slow
def test_killed_between_any_two_steps_of_a_pull(run_cli: Macpo, tmp_path: Path) -> None:
    """Nothing is there, or what was checked; and the same command then ends as if never killed."""
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    sets = ["--set", f"eval.reward={{model: org/m, chat_template: {template}}}"]
    tree = tmp_path / "tree"
    ok(run_cli("push", "--round", "1", "--learner", "student", "--to", tree, *sets))

    def pull(folder: Path, after: int) -> int:
        """In a process that ends at a change of this folder on disk; its exit code."""
        args = [str(after), "pull", str(tree), "--round", "1"]
        done = subprocess.run([sys.executable, "-c", KILLED, *args], cwd=folder, timeout=60)
        return done.returncode

    def state(folder: Path) -> dict[str, bytes]:
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        return {name: p.read_bytes() for name, p in files.items() if ".locks" not in name}

    whole = tmp_path / "whole"
    whole.mkdir()
    assert pull(whole, -1) == 0
    final = state(whole)
    kills, after = 0, 1
    while True:
        folder = tmp_path / f"killed-{after}"
        folder.mkdir()
        if (code := pull(folder, after)) == 0:
            break
        assert code == 77
        kills += 1
        there = {name: c for name, c in state(folder).items() if "/aside/" not in name}
        placed = {name: c for name, c in there.items() if not name.endswith(".tmp")}
        assert placed == {name: final.get(name) for name in placed}, after
        if "macpo.yaml" in placed:
            assert placed.keys() == final.keys()
        if after % 8 == 1:
            assert pull(folder, -1) == 0
            again = {name: c for name, c in state(folder).items() if not name.endswith(".tmp")}
            assert again == final, after
        shutil.rmtree(folder)
        after += 4
    assert kills > 4
