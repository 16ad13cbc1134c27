"""The command as a person meets it: help, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RECIPE, Macpo, OpenRun, shared
from test_kill import matching

from macpo_data.loading.load import shipped

ROOT = Path(__file__).resolve().parents[1]


HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "huggingface_hub", "vllm")


def loaded_by(code: str, *others: str, cwd: Path | None = None) -> set[str]:
    """The heavy modules, or others besides, that a piece of code loads in a fresh process."""
    names = [*HEAVY, *others]
    script = f"{code}\nimport sys\nprint('|', *[m for m in {names} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("|")[2].split())


def test_import_boundaries() -> None:
    everything = [
        f"macpo_data.{p.relative_to(ROOT / 'macpo_data').with_suffix('').as_posix()}"
        for p in (ROOT / "macpo_data").rglob("*.py")
    ]
    names = [n.replace("/", ".").removesuffix(".__init__") for n in everything]
    names.remove("macpo_data.hub_session")  # loaded when the Hub is asked, as its libraries are
    assert loaded_by("import " + ", ".join(names), "macpo_train", "macpo_run") == set()
    assert loaded_by("import macpo.cli, macpo_run.rounds") == set()


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["--help"], set()), (["status"], {"polars", "pydantic"})],
)
def test_a_look_loads_only_what_it_needs(
    command: list[str], expected: set[str], tmp_path: Path
) -> None:
    """`status` reads no scores yet; the others take as long to load as all that --help does."""
    code = f"from macpo.cli import app\napp({command}, standalone_mode=False)"
    seen = loaded_by(code, "polars", "pydantic", "numpy", "scipy", "pyarrow", cwd=tmp_path)
    assert seen == expected


def test_help_is_quick_and_loads_no_torch(macpo: Macpo) -> None:
    macpo("--help")
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = macpo("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The processor's time, which a busy machine stretches less; importing polars or torch
        # alone would double it.
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.returncode == 0 and "round" in done.stdout
    assert min(times) < 0.6


def test_init_status_and_dry_run_need_no_model(macpo: Macpo, tmp_path: Path) -> None:
    assert macpo("init", "quickstart").returncode == 0
    assert (tmp_path / "macpo.yaml").exists() and (tmp_path / "macpo.schema.json").exists()
    again = macpo("init")
    assert again.returncode == 1 and again.stderr.startswith("error: macpo.yaml exists")
    status = json.loads(macpo("status", "--json").stdout)
    assert set(status[0]) == {
        "kind",
        "round",
        "learner",
        "behavior",
        "state",
        "fingerprint",
        "path",
        "waiting_for",
        "signs",
    }
    assert status[0]["state"] == "ready" and status[1]["state"] == "waiting"
    assert macpo("gen", "--round", "0", "--dry-run").returncode == 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_loads_and_dry_runs(macpo: Macpo, name: str) -> None:
    for command in (["status"], ["gen", "--round", "0", "--dry-run"], ["run", "--dry-run"]):
        done = macpo(*command, "--recipe", name)
        assert done.returncode == 0, done.stderr


def test_recipe_wins_over_macpo_yaml_and_that_over_quickstart(macpo: Macpo, tmp_path: Path) -> None:
    def run_of(*args: str) -> str:
        return str(json.loads(macpo("status", "--json", *args).stdout)[0]["path"].split("/")[1])

    assert run_of() == "quickstart"
    (tmp_path / "macpo.yaml").write_text(RECIPE)
    assert run_of() == "test"
    assert run_of("--recipe", "hh_harmless") == "hh-harmless"


def test_a_loop_by_hand(macpo: Macpo, recipe_file: Path) -> None:
    """gen, train, gen, train finishes a round; each says what is next; waiting exits 1."""
    common = ["-r", recipe_file]
    waiting = macpo("train", "--round", "0", *common, fake=True)
    assert waiting.returncode == 1 and "next: macpo gen --round 0" in waiting.stdout
    early = macpo("gen", "--round", "1", *common, fake=True)
    assert early.returncode == 1 and "waiting  gen round 1 student" in early.stdout
    for kind in ("gen", "train", "gen", "train"):
        done = macpo(kind, "--round", "0", *common, fake=True)
        assert done.returncode == 0 and "wrote" in done.stdout
    assert "next: macpo gen --round 1" in done.stdout
    kept = macpo("gen", "--round", "0", *common, fake=True)
    assert kept.returncode == 0 and "wrote" not in kept.stdout
    finished = macpo("run", "--until", "1", *common, fake=True)
    assert finished.returncode == 0 and "next: macpo report" in finished.stdout
    shown = macpo("show", "--round", "1", *common, fake=True)
    assert shown.returncode == 0 and "rejected" in shown.stdout
    assert macpo("clean", *common, fake=True).stdout.startswith("every result")
    other = macpo("clean", *common, "--set", "seed=3", "--yes", fake=True)
    assert "removed" in other.stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("trian", "no such command 'trian'. Did you mean 'train'? `macpo -h` explains what"),
        ("gen", "missing option '--round'; `macpo gen -h` explains what it takes"),
        ("gen --round", "option '--round' requires an argument; `macpo gen -h` explains"),
        ("gen --round one", "invalid value for '--round': "),
        ("gen --rounds 2", "no such option: --rounds (Possible options: "),
        ("init a b", "got unexpected extra argument"),
    ],
)
def test_a_mistyped_command_is_one_line(macpo: Macpo, typed: str, expected: str) -> None:
    done = macpo(*typed.split())
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {expected}") and done.stderr.count("\n") == 1


def test_a_bare_command_is_its_help(macpo: Macpo) -> None:
    done = macpo()
    assert done.returncode == 2 and not done.stderr and "macpo run --until 2" in done.stdout


def test_mistakes_are_one_line(macpo: Macpo, recipe_file: Path, tmp_path: Path) -> None:
    def error(*args: str | Path) -> str:
        done = macpo(*args)
        assert done.returncode == 1, done
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "no recipe named 'nosuch'; shipped are" in error("status", "-r", "nosuch")
    assert "no recipe file" in error("status", "-r", "./nosuch.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    broken = error("status", "-r", "broken.yaml")
    assert "not valid YAML at line" in broken and "expected" in broken
    both = error("status", "-r", recipe_file, "--set", "dpo.beta=-1", "--set", "nosuch=1")
    assert "dpo.beta" in both and "nosuch: unknown key" in both
    assert "rounds 0..1" in error("gen", "--round", "9", "-r", recipe_file)
    assert "no learner 'x'" in error("gen", "--round", "0", "--learner", "x", "-r", recipe_file)
    assert "round 1 has no dataset yet" in error("show", "--round", "1", "-r", recipe_file)
    nobody = ["--set", "agents.teacher1.base=world:nobody"]
    macpo("gen", "--round", "0", "-r", recipe_file, *nobody)
    assert "no base world:nobody" in error("train", "--round", "0", "-r", recipe_file, *nobody)
    hub = [f"--set=agents.teacher{n}.base=nobody/nothing" for n in (1, 2, 3)]
    hub += ["--set=agents.student.base=nobody/nothing"]
    macpo("gen", "--round", "0", "-r", recipe_file, *hub)
    assert "base nobody/nothing" in error("train", "--round", "0", "-r", recipe_file, *hub)


def test_bad_data_is_one_line(macpo: Macpo, recipe_file: Path, tmp_path: Path) -> None:
    def error(**data: object) -> str:
        import yaml

        values = yaml.safe_load(RECIPE)
        values["data"] = data
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(values))
        done = macpo("gen", "--round", "0", "-r", path, "--set", f"run=r{time.time_ns()}")
        assert done.returncode == 1 and done.stderr.startswith("error: "), done
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    part = {name: {"count": 2} for name in ("d1", "d2", "test")}
    missing = error(source="pairs", path="nowhere.parquet", **part)
    assert "nowhere.parquet" in missing
    (tmp_path / "other.jsonl").write_text('{"x": 1}\n')
    assert "no column" in error(source="pairs", path="other.jsonl", **part)
    rows = '{"prompt": "q%d", "chosen": "a", "rejected": "b"}\n'
    (tmp_path / "few.jsonl").write_text("".join(rows % n for n in range(4)))
    few = error(source="pairs", path="few.jsonl", **part)
    assert "data.d2 asks for 2 rows" in few
    (tmp_path / "none.jsonl").write_text('{"prompt": "q", "chosen": "", "rejected": "b"}\n')
    assert error(source="pairs", path="none.jsonl", **part)
    whole = shared("data/hh_harmless_d1.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    assert "cut.parquet" in error(source="hh_rlhf", path="cut.parquet", **part)


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path, recipe_file: Path) -> None:
    """The kernel refuses to let files grow, as it does on a disk that is full."""
    args = [sys.executable, "-m", "macpo", "run", "--round", "0", "-r", str(recipe_file)]
    args += ["--set", "engine.name=fake"]

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, preexec_fn=small)
    assert done.returncode == 1, done
    assert done.stderr.strip().split("\n")[-1].startswith("error: "), done.stderr
    again = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0


def test_hostile_text_stays_text(macpo: Macpo, tmp_path: Path) -> None:
    """Markup and terminal escapes in prompts and responses are shown, not obeyed."""
    rows = [
        {"prompt": f"[red]q{n}[/red]", "chosen": "\x1b[2Ja [/bold]", "rejected": "../../b"}
        for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    import yaml

    values = yaml.safe_load(RECIPE)
    part = {name: {"count": 3} for name in ("d1", "d2", "test")}
    values["data"] = {"source": "pairs", "path": "rows.jsonl", **part}
    (tmp_path / "macpo.yaml").write_text(yaml.safe_dump(values))
    assert macpo("gen", "--round", "0").returncode == 0
    shown = macpo("show", "--round", "0")
    assert shown.returncode == 0
    assert "[red]q" in shown.stdout and "\x1b[2J" not in shown.stdout


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    """Only a person's mistakes are one line."""
    code = "from macpo import cli\nimport macpo_data.loading.load as r\n"
    code += "r.load_recipe = lambda *a, **k: 1 / 0\ncli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "status"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr


def test_the_next_command_carries_the_options(macpo: Macpo, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    sets = ["--set", "engine.name=fake", "--set", "run=b-c"]
    done = macpo("gen", "--round", "0", "-r", "./mine.yaml", "--runs", "else where", *sets)
    output = done.stdout.strip().split("\n")[-1]
    assert output == (
        "next: macpo train --round 0 --recipe ./mine.yaml --runs 'else where' "
        "--set engine.name=fake --set run=b-c"
    )
    assert "--recipe ./other.yaml" in macpo("init", "--full", "--to", "other.yaml").stdout


def test_a_command_off_the_path_is_named_by_its_own(tmp_path: Path) -> None:
    """As after `make demo`, whose environment is not active."""
    own = tmp_path / "bin" / "macpo"
    own.parent.mkdir()
    own.write_text(f"#!{sys.executable}\nfrom macpo.cli import main\nmain()\n")
    own.chmod(0o755)

    def last_line(path: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
        command = ["bin/macpo", "status"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.stdout.splitlines()[-1]

    assert last_line("/nowhere") == "next: bin/macpo gen --round 0"
    assert last_line(str(own.parent)) == "next: macpo gen --round 0"


def test_ctrl_c_says_what_stays(tmp_path: Path, recipe_file: Path) -> None:
    args = [sys.executable, "-m", "macpo", "run", "--until", "1", "-r", str(recipe_file)]
    process = subprocess.Popen(
        [*args, "--set", "engine.name=fake", "--set", "data.d2.count=800"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not matching(tmp_path, "runs/test/adapters/*"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        output.strip().split("\n")[-1].startswith("error: interrupted; run the same command again")
    )


@pytest.mark.parametrize("module", ["macpo.cli", "typer", "macpo_run.names"])
@pytest.mark.parametrize("door", ["import macpo.__main__ as m; m.main()", "import cli; cli.main()"])
def test_ctrl_c_while_the_command_is_loaded(door: str, module: str, tmp_path: Path) -> None:
    """At the moment where it imports a module, also where a library would catch what is raised."""
    code = f"""
import os, signal, sys
class Presses:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Presses())
sys.argv = ["macpo", "status"]
{door}
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("error: interrupted") and done.stderr.count("\n") == 1


def test_an_edited_data_file_is_noticed(macpo: Macpo, tmp_path: Path) -> None:
    import yaml

    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\r\n".join(map(json.dumps, rows)))
    values = yaml.safe_load(RECIPE)
    part = {name: {"count": 3} for name in ("d1", "d2", "test")}
    values["data"] = {"source": "pairs", "path": "rows.jsonl", **part}
    (tmp_path / "macpo.yaml").write_text(yaml.safe_dump(values))
    assert macpo("gen", "--round", "0", "--learner", "teacher1", fake=True).returncode == 0
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = macpo("gen", "--round", "0", "--learner", "teacher2", fake=True)
    assert done.returncode == 1 and "rows.jsonl changed since this run first read it" in done.stderr


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (
            ["train", "--dataset", "x", "--base", "b", "--out", "o", "--dry-run"],
            "--dry-run: not read",
        ),
        (
            ["train", "--dataset", "x", "--redo", "--reward"],
            "--redo, --reward: not read with --data",
        ),
        (["push", "--round", "0", "--to", "x", "--adapters"], "--adapters: only for the Hub"),
        (
            ["push", "--round", "0", "--to", "x", "--adapters", "--negatives"],
            "--adapters, --negatives: only for the Hub",
        ),
        (
            ["push", "--round", "0", "--repo", "a/b", "--merge", "--negatives"],
            "--negatives: only read with --adapters",
        ),
        (["check", "x.jsonl", "--split", "foo"], "--split: not read of a file"),
        (["check", "x.jsonl", "--config", "foo"], "--config: not read of a file"),
        (
            ["check", "x.jsonl", "--revision", "v1", "--split", "a"],
            "--revision, --split: not read of a file",
        ),
        (["check", ".", "--revision", "v1"], "--revision: not read of a folder"),
        (
            ["train", "--dataset", "x.jsonl", "--base", "b", "--out", "o", "--config", "c"],
            "data: --config: not read of a file",
        ),
        (["diff", "x.jsonl", "y.jsonl", "--config", "c"], "--config: not read of a file"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(
    macpo: Macpo, tmp_path: Path, command: list[str], problem: str
) -> None:
    done = macpo(*command)
    assert done.returncode == 1 and f"error: {problem}" in done.stderr
    assert not (tmp_path / "o").exists() and not (tmp_path / "x").exists()


def test_messages_name_what_a_person_named(macpo: Macpo, tmp_path: Path) -> None:
    """Of a path that is not there: neither an option that nobody gave, nor a library's insides."""

    def error(*args: str) -> str:
        done = macpo(*args)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done
        return done.stderr

    assert "no file x.jsonl; a path starts at this folder" in error("check", "x.jsonl")
    missing = "is no file or folder here, and no repository id"
    assert f"'a/b/pairs' {missing}" in error("check", "a/b/pairs")
    assert f"'a/b/hub' {missing}" in error("pull", "a/b/hub", "--round", "0")
    (tmp_path / "hub/macpo").mkdir(parents=True)
    (tmp_path / "hub/macpo/index.json").write_text("[")
    message = error("pull", "hub", "--round", "0")
    assert "hub/macpo/index.json is damaged; ask who published it" in message


def test_redo_says_what_it_would_make_anew(open_run: OpenRun, macpo: Macpo) -> None:
    with open_run() as run:
        run.make("gen", 0)
    dry = ("gen", "--round", "0", "-r", "recipe.yaml", "--dry-run")
    assert "redo" not in macpo(*dry, fake=True).stdout
    output = macpo(*dry, "--redo", fake=True).stdout
    lines = [line for line in output.splitlines() if " gen " in line][:4]
    states = ["redo" if " redo " in line else "waiting" for line in lines]
    assert states == ["redo"] * 3 + ["waiting"], output


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("data/prompts-*/test.parquet", "macpo eval --redo"),
        ("adapters/student-positive-0-*/adapter_config.json", "macpo train --round 0 --redo"),
        ("data/round-0-student-*/pairs.parquet", "macpo gen --round 0 --redo"),
    ],
)
def test_a_damage_names_the_command_that_mends_it(
    pattern: str, command: str, open_run: OpenRun, macpo: Macpo
) -> None:
    """`run` has no --redo; said as it stands, the command mends what `run` came upon."""
    with open_run() as run:
        run.finish_round(0)
    (file,) = run.store.root.glob(pattern)
    file.write_bytes(b"")
    (run.store.path(run.plan.name(run.select("train", 0, "student")[1])) / "manifest.json").unlink()
    sets = ("-r", "recipe.yaml", "--set", "rounds=0")
    done = macpo("run", *sets, fake=True)
    assert done.returncode == 1, done
    whole = f"{command} --recipe recipe.yaml --set rounds=0 --set engine.name=fake"
    assert f"{file.name} is damaged or missing; {whole} makes" in " ".join(done.stderr.split())
    mended = macpo(*whole.split()[1:])
    assert mended.returncode == 0, mended
    assert macpo("run", *sets, fake=True).returncode == 0


def test_ctrl_c_in_pythons_own_end_shows_nothing() -> None:
    """The command has said all: whoever ends it then ends it as any program."""
    code = (
        "import atexit, sys, time; atexit.register(time.sleep, 20); "
        "atexit.register(print, 'over', flush=True); sys.argv = ['macpo', '--version']; "
        "from macpo.__main__ import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith("macpo")
        assert process.stdout.readline() == "over\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "" and process.wait(10) == -signal.SIGINT
