"""The report's data: what a run was, in numbers that can be derived by hand."""

from __future__ import annotations

import json
import math
import os
import pty
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from conftest import Macpo, OpenRun, no_progress
from hypothesis import given
from hypothesis import strategies as st

from macpo_data.evaluation.evaluate import evaluate
from macpo_data.evaluation.policies import trained
from macpo_data.report import collect as report
from macpo_data.report.collect import Source, collect
from macpo_data.report.excerpt import CLIP, COLUMNS, Texts, inline_json
from macpo_data.report.page import page
from macpo_data.schema import CANDIDATES, PAIRS
from macpo_data.store.store import write_parquet
from macpo_run import live_status
from macpo_run.rounds import Run


def source(run: Run, label: str = "mine") -> Source:
    return Source(label, run.plan, run.store)


def everything(run: Run) -> Run:
    for each in range(run.recipe.rounds + 1):
        assert not run.finish_round(each).waiting
    return run


@given(st.lists(st.text() | st.sampled_from(["</script>", "<!--", "&lt;", "\u2028"])))
def test_json_in_a_script_element_is_only_data(value: list[str]) -> None:
    text = inline_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_a_text_stands_on_the_page_once_and_not_at_any_length() -> None:
    texts = Texts()
    assert [texts.add(t) for t in ("a", "b", "a", None)] == [0, 1, 0, None]
    texts.add("x" * (CLIP + 5))
    assert list(texts.numbers)[2].endswith("x … (5 more characters)")


def test_quantiles_and_margins_by_hand() -> None:
    """Candidates of perplexity 1, 2, 4, rejected 4: margins ln 4, ln 2, 0; chosen is the first."""
    candidates = pl.DataFrame(
        {"prompt_id": ["p"] * 3, "response": ["a", "bb", "ccc"], "perplexity": [1.0, 2.0, 4.0]},
        schema_overrides=CANDIDATES,
    )
    pairs = pl.DataFrame(
        {
            "prompt_id": ["p"], "chosen": ["a"], "rejected": ["cccc"],
            "chosen_perplexity": [1.0], "rejected_perplexity": [4.0],
        },
        schema_overrides=PAIRS,
    )  # fmt: skip
    spread = {(r["kind"], r["measure"]): r for r in report._spread(pairs, candidates)}
    middles = {key: row["middle"] for key, row in spread.items()}
    assert middles == {
        ("candidates", "perplexity"): 2.0,
        ("candidates", "length"): 2.0,
        ("candidates", "margin"): pytest.approx(math.log(2), abs=1e-5),
        ("chosen", "perplexity"): 1.0,
        ("chosen", "length"): 1.0,
        ("chosen", "margin"): pytest.approx(math.log(4), abs=1e-5),
        ("rejected", "perplexity"): 4.0,
        ("rejected", "length"): 4.0,
    }
    assert spread["candidates", "perplexity"]["lower"] == 1.5


def test_all_of_a_run_and_of_two(open_run: OpenRun) -> None:
    """12 pairs for each of 4 learners in 2 rounds, and 6 test prompts with 12 policies.

    The other beta shares what comes before the first DPO: round 0, and the student's pairs of 1.
    """
    run = everything(open_run())
    evaluate(run.context(), trained(run.plan, run.store))
    other = open_run("dpo.beta=0.5")
    data = collect([source(run), source(other)])
    mine, theirs = data["recipes"]
    assert {s["state"] for s in mine["steps"]} == {"done"}
    assert Counter(pair[0] for pair in data["pairs"]) == {0: 96, 1: 60}
    assert len({pair[COLUMNS.index("id")] for pair in data["pairs"]}) == 24
    assert [len(a["answers"]) for a in mine["answers"]] == [12] * 6
    assert sum(w["pairs"] for w in mine["winners"] if w["round"] == 1) == 12
    assert theirs["name"] == "mine (2)" and theirs["differs"] == [["dpo.beta", "0.1", "0.5"]]
    assert "beta: 0.5" in theirs["provenance"]["recipe"]
    assert {s["state"] for s in theirs["steps"]} == {"done", "ready", "waiting"}
    json.loads(inline_json(data))


def test_what_is_damaged_is_told_and_the_rest_is_shown(open_run: OpenRun) -> None:
    run = everything(open_run())
    whole = collect([source(run)])
    (folder,) = run.store.root.glob("data/round-1-student-*")
    write_parquet(folder / "pairs.parquet", pl.read_parquet(folder / "pairs.parquet").head(3))
    data = collect([source(run)])
    assert len(whole["pairs"]) - len(data["pairs"]) == 12
    assert any("damaged" in warning for warning in data["recipes"][0]["warnings"])


def test_a_curve_is_thinned(open_run: OpenRun) -> None:
    run = open_run()
    step = next(s for s in run.plan.steps if s.kind == "train")
    history = [{"step": float(n), "loss": float(n)} for n in range(report.POINTS * 2 + 1)]
    curve = report._curve(step, {"history": history})
    assert curve is not None and curve["columns"]["loss"][:3] == [0.0, 3.0, 6.0]


def test_the_command_writes_one_file(macpo: Macpo, recipe_file: Path, tmp_path: Path) -> None:
    ran = macpo("run", "--until", "1", "--recipe", recipe_file, fake=True)
    assert "The student did not clearly change" in ran.stdout
    done = macpo("report", recipe_file, fake=True)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "runs/test/report.html").read_text()
    assert html.startswith("<!doctype html>") and "http-equiv" in html
    (line,) = [row for row in ran.stdout.splitlines() if row.startswith("The student did not")]
    assert line.strip() in html  # the same headline as in the terminal


def test_a_page_of_nothing(open_run: OpenRun) -> None:
    html = page(collect([source(open_run())]))
    assert "Nobody has scored the student's answers yet." in html


def test_a_note_stands_while_work_goes_on(tmp_path: Path) -> None:
    with live_status.noted(no_progress, tmp_path)("writing d2") as tell:
        tell(3, 12, "samples")
        (note,) = live_status.making(tmp_path)
        assert (note.what, note.pid) == ("writing d2", os.getpid())
    assert live_status.making(tmp_path) == []
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**note.model_dump(), "pid": ended.pid}))
    assert live_status.making(tmp_path) == []
    # Three of twelve after 10 s: nine more take 30 s.
    line = live_status._line(
        note.model_copy(update={"begun": time.time() - 10, "done": 3, "of": 12})
    )
    assert "3/12" in line and "30 s left" in line


def test_status_watch_ends_with_ctrl_c(macpo: Macpo, recipe_file: Path, tmp_path: Path) -> None:
    once = macpo("status", "--watch", "--recipe", recipe_file, fake=True)
    assert "0 of 20 steps done" in once.stdout
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "macpo", "status", "--watch", "--recipe", str(recipe_file)]
    watching = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs)
    seen = b""
    while b"steps done" not in seen:
        seen += os.read(ours, 4096)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 0
    os.close(theirs)
    os.close(ours)
