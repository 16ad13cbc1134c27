"""The endpoint engine against a scripted server: every fault, and nothing lost or asked twice."""

from __future__ import annotations

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import OpenRun
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Scripted, serve

from macpo_data.engines import endpoint, openai
from macpo_data.engines.protocol import Request, Voice
from macpo_data.errors import MacpoError, ModelError, RecipeError
from macpo_data.generation import shards
from macpo_data.generation.run_context import RunContext
from macpo_data.plan import Policy
from macpo_data.recipe.agents import Endpoint
from macpo_data.recipe.generation import Sampling
from macpo_data.retry_after import retry_after
from macpo_data.schema import MESSAGES

ROOT = Path(__file__).resolve().parents[1]
SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=0, max_new_tokens=64)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "PAUSE", 0.02)


def questions(count: int, words: int = 1) -> pl.DataFrame:
    """Prompts by the names q000, q001, ..."""
    rows = [
        {
            "prompt_id": f"q{n:03d}",
            "prompt": [{"role": "user", "content": f"Question {n}?" + " please" * (words - 1)}],
        }
        for n in range(count)
    ]
    return pl.DataFrame(rows, schema={"prompt_id": pl.String, "prompt": MESSAGES})


def context(open_run: OpenRun, server: Scripted, agents: int = 1, **endpoint: Any) -> RunContext:
    """A run with proposers p0, p1, ... at a server, models m0, m1, ..."""
    spoken = [
        f"agents.p{n}="
        + json.dumps(
            {
                "role": "proposer",
                "endpoint": {"base_url": server.url, "model": f"m{n}", **endpoint},
            }
        )
        for n in range(agents)
    ]
    return open_run(*spoken, fake=False).context()


def ask(ctx: RunContext, rows: pl.DataFrame, *agents: str) -> list[pl.DataFrame]:
    return ctx.ask([(Policy(agent), rows) for agent in agents or ["p0"]], SAMPLING, "test")


def manifests(ctx: RunContext) -> list[dict[str, Any]]:
    files = sorted(ctx.store.root.glob("answers/*/manifest.json"))
    return [json.loads(path.read_text()) for path in files]


def test_what_goes_over_the_wire_and_what_comes_back(open_run: OpenRun) -> None:
    """2 agents x 5 prompts of 2 words each: 10 tokens in; answers of 4 words each: 20 out.

    At 3 and 5 per million tokens that is 10 * 3e-6 + 20 * 5e-6 = 130e-6.
    """
    with serve() as server:
        ctx = context(open_run, server, agents=2, price_in=3, price_out=5, extra={"top_p": None})
        frames = ask(ctx, questions(5), "p0", "p1")
    for n, frame in enumerate(frames):
        assert frame["prompt_id"].to_list() == questions(5)["prompt_id"].to_list()
        assert frame["response"].to_list() == [f"m{n} says: Question {i}?" for i in range(5)]
        assert set(frame["finish_reason"]) == {"stop"} and set(frame["agent"]) == {f"p{n}"}
    bodies = [seen.body for seen in server.seen]
    assert all(b["temperature"] == 0.7 and b["max_tokens"] == 64 for b in bodies)
    assert not any("top_p" in b or "top_k" in b for b in bodies)
    assert len({b["seed"] for b in bodies}) == 10 and all(b["seed"] < 2**31 for b in bodies)
    for n, manifest in enumerate(manifests(ctx)):
        assert manifest["base"] == f"m{n}" and manifest["engine"] == "openai"
        usage = {"prompt_tokens": 10, "completion_tokens": 20, "failed": 0}
        assert manifest["usage"] == {**usage, "cost": pytest.approx(130e-6)}


@pytest.mark.parametrize("fault", ["429", "500", "hang", "garbage", "empty", "drop"])
def test_a_fault_that_passes_loses_nothing(open_run: OpenRun, fault: str) -> None:
    """A third of all attempts fail; the chance of 12 failures in a row is 2e-6 per request."""
    with serve(faults={fault: 0.33}) as server:
        timeout = 1.0 if fault == "hang" else 120.0
        ctx = context(open_run, server, timeout=timeout, retries=11, concurrency=16)
        (frame,) = ask(ctx, questions(40))
    assert frame["response"].to_list() == [f"m0 says: Question {i}?" for i in range(40)]
    failed = sum(seen.outcome == fault for seen in server.seen)
    (facts,) = manifests(ctx)[0]["endpoints_with_others"].values()
    repeated = sum(facts["repeated"].values())
    assert failed > 3 and len(server.seen) == facts["attempts"] == 40 + repeated
    # A server on a busy machine may also be too slow where it does not hang.
    assert repeated == failed or (fault == "hang" and repeated > failed)


@pytest.mark.parametrize("fault", ["endless", "bomb"])
def test_an_answer_is_read_within_a_bound(open_run: OpenRun, fault: str) -> None:
    """It is not waited for, nor kept; the next one counts."""
    with serve(storm=[fault]) as server:
        ctx = context(open_run, server, timeout=60.0, retries=2, concurrency=1)
        (frame,) = ask(ctx, questions(2))
    assert frame["response"].to_list() == ["m0 says: Question 0?", "m0 says: Question 1?"]
    (facts,) = manifests(ctx)[0]["endpoints_with_others"].values()
    assert facts["repeated"] == {"an answer without an end": 1} and facts["seconds"] < 50


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("", 0), ("-3", 0), ("nan", 0), ("soon", 0), ("1e9", 1e9),
     ("inf", math.inf), ("-inf", 0), ("Mon, 01 Jan 0001 00:00:00 -0000", 0),
     ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)  # fmt: skip
def test_retry_after(header: str, seconds: float) -> None:
    assert retry_after({"retry-after": header}) == seconds


@given(st.one_of(st.text(), st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{1,6} \d\d:.*")))
def test_retry_after_is_a_wait_whatever_a_server_says(text: str) -> None:
    assert retry_after({"retry-after": text}) >= 0  # which nan is not


def test_a_date_far_away_is_waited_for_no_longer_than_the_bound() -> None:
    asked = retry_after({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"})
    assert 2e11 < asked < 3e11


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("inf", "m0 at {url} asks to wait for ever; it is asked again after 1 s, the longest wait"),
        ("1e6", "m0 at {url} asks to wait 1,000,000 s; it is asked again after 1 s, the longest"),
        ("nan", None),
        ("-5", None),
    ],
)
def test_a_long_wait_is_said_by_name_and_bounded(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch, asked: str, line: str | None
) -> None:
    """Four slots are told so at once, and a person once."""
    monkeypatch.setattr(openai, "MAX_WAIT", 1.0)
    with serve(storm=["429"] * 4, retry_after=asked) as server:
        ctx = context(open_run, server, concurrency=4)
        lines: list[str] = []
        ctx.store.say = lines.append
        begun = time.monotonic()
        (frame,) = ask(ctx, questions(4))
    assert frame["response"].null_count() == 0 and len(server.seen) == 8
    if line is None:
        assert not lines and time.monotonic() - begun < 1
    else:
        (printed,) = lines
        assert printed.startswith(line.format(url=server.url)) and time.monotonic() - begun > 1


def test_a_wait_is_shown_while_nothing_is_answered(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "LOOK", 0.05)
    notes: list[str] = []

    @contextmanager
    def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
        yield lambda done, total, note: notes.append(f"{done}/{total} {note}")

    with serve(storm=["429"], retry_after="3") as server:
        ctx = context(open_run, server, concurrency=1)
        ctx._progress = progress
        ask(ctx, questions(1))
    waiting = f"0/1 samples, 0 tokens, waiting 2 s for m0 at {server.url}"
    assert waiting in notes and notes[-1] == "1/1 samples, 6 tokens"


def test_ctrl_c_during_a_long_wait_ends_at_once(tmp_path: Path) -> None:
    with serve(storm=["429"] * 99, retry_after="500") as server:
        command = moaa(tmp_path, server)
        gen = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        await_requests(server, 4)
        time.sleep(0.5)
        gen.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, printed = gen.communicate(timeout=60)
    assert gen.returncode == 130 and time.monotonic() - begun < 5
    assert printed.count(f"p0 at {server.url} asks to wait 500 s\n") == 1


def test_the_fake_engine_answers_for_endpoints_and_says_so(tmp_path: Path) -> None:
    with serve() as server:
        command = [*moaa(tmp_path, server), "--set", "engine.name=fake"]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        assert not server.seen
    (line,) = [line for line in done.stderr.splitlines() if "endpoint" in line]
    assert line == (
        "engine.name fake answers for last, p0, p1, p2 as well: their endpoints are not asked"
    )


def test_retry_after_as_a_date_is_waited_for(open_run: OpenRun) -> None:
    """The date has whole seconds: three from now are more than two and at most three."""
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    with serve(storm=["429"], retry_after=until) as server:
        begun = time.monotonic()
        (frame,) = ask(context(open_run, server, concurrency=1), questions(1))
        assert time.monotonic() - begun > 1.5 and frame["finish_reason"].to_list() == ["stop"]


def test_what_a_person_sees_meanwhile(open_run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 prompts of 2 words and answers of 4: 24 tokens; at 1 and 2 a token 4 * (2 + 8) = 40."""
    monkeypatch.setattr(shards, "TELL", 0.0)  # each answer is told
    notes: list[str] = []

    @contextmanager
    def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
        yield lambda done, total, note: notes.append(f"{done}/{total} {note}")

    with serve() as server:
        ctx = context(open_run, server, concurrency=1, price_in=1e6, price_out=2e6)
        ctx._progress = progress
        ask(ctx, questions(4))
    assert notes[0] == "0/4 samples" and len(notes) == 5
    assert notes[-1] == "4/4 samples, 24 tokens, cost 40.00, about 0.00 to come"


@pytest.mark.parametrize("fault", ["429", "500", "drop"])
def test_a_storm_passes(open_run: OpenRun, fault: str) -> None:
    with serve(storm=[fault] * 30) as server:
        (frame,) = ask(context(open_run, server, concurrency=8), questions(20))
    assert frame["response"].null_count() == 0 and len(server.seen) == 50


@contextmanager
def process(port: int, log: Path) -> Iterator[None]:
    """The server in a process of its own, which is killed at the end."""
    at = ["--port", str(port), "--log", str(log), "--latency", "0.05"]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.openai_server", *at], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert server.stdout and server.stdout.readline()
        yield
    finally:
        server.kill()
        server.wait()
        server.stdout and server.stdout.close()


def test_a_server_that_is_killed_comes_back(
    open_run: OpenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "PAUSE", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = tmp_path / "seen.jsonl"
    ctx = context(open_run, Scripted(url=f"http://127.0.0.1:{port}/v1"), retries=9, concurrency=4)
    with ThreadPoolExecutor(1) as pool:
        with process(port, log):
            asked = pool.submit(ask, ctx, questions(60))
            while not log.exists() or len(log.read_text().splitlines()) < 20:
                time.sleep(0.01)
        assert not asked.done()
        with process(port, log):
            (frame,) = asked.result()
    assert frame["response"].to_list() == [f"m0 says: Question {i}?" for i in range(60)]
    seen = Counter(json.loads(line)["messages"][0]["content"] for line in log.open())
    # Twice only what was under way when the server died.
    assert len(seen) == 60 and seen.total() <= 64
    (facts,) = manifests(ctx)[0]["endpoints_with_others"].values()
    assert facts["repeated"]["no connection"] > 0 and not facts["failed"]


def test_concurrency_is_kept_and_bounded(open_run: OpenRun) -> None:
    with serve(latency=0.3) as server:
        ask(context(open_run, server, agents=3, concurrency=6), questions(18), "p0", "p1", "p2")
    assert [server.load[f"m{n}"].peak for n in range(3)] == [6, 6, 6]
    # Side by side, not one after the other: each began before any had ended.
    assert max(x.first for x in server.load.values()) < min(x.last for x in server.load.values())


def test_a_request_that_fails_for_good_is_a_row(open_run: OpenRun) -> None:
    with serve(faults={"500": 0.2}, sticky=True) as server:
        ctx = context(open_run, server, retries=1, max_failed=0.5)
        (frame,) = ask(ctx, questions(30))
    failed = {s.messages[0]["content"] for s in server.seen if s.outcome == "500"}
    assert 0 < len(failed) < 15
    mute = frame.filter(pl.col("response").is_null())
    assert set(mute["finish_reason"]) == {"failed"} and len(mute) == len(failed)
    manifest = manifests(ctx)[0]
    assert manifest["usage"]["failed"] == len(failed) and manifest["rows"] == 30


def test_too_many_failures_stop_and_what_was_answered_stays(open_run: OpenRun) -> None:
    rows = questions(30)
    with serve(faults={"500": 0.2}, sticky=True) as server:
        ctx = context(open_run, server, retries=0, max_failed=0.05, concurrency=1)
        with pytest.raises(ModelError, match=r"2 of 30 requests to m0 .* HTTP 500"):
            ask(ctx, rows)
        before = len(server.seen)
        assert not manifests(ctx) and 2 < before < 30
        server.faults = {}
        (frame,) = ask(ctx, rows)
    assert frame["response"].null_count() == 0
    # One slot, so nothing was under way at the end: what was answered is not asked again.
    answered = sum(seen.outcome == "answered" for seen in server.seen[:before])
    assert len(server.seen) - before == 30 - answered


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"key": "right"}, "401.*m0 at http.*no key"),
        ({"models": ["other"]}, "404.*m0 at http"),
        ({"faults": {"403": 1.0}}, "403.*m0 at http"),
    ],
)
def test_what_no_repetition_mends_stops_at_once(
    open_run: OpenRun, settings: dict[str, Any], match: str
) -> None:
    with serve(**settings) as server:
        with pytest.raises(ModelError, match=match):
            ask(context(open_run, server, concurrency=2), questions(20))
        assert len(server.seen) <= 2


def test_a_prompt_that_does_not_fit_is_a_row(open_run: OpenRun) -> None:
    with serve(window=100) as server:
        rows = pl.concat([questions(3), questions(4, words=50)[3:]])
        (frame,) = ask(context(open_run, server), rows)
    assert frame["finish_reason"].to_list() == ["stop"] * 3 + ["prompt_too_long"]
    assert len(server.seen) == 4


def test_a_cut_answer_says_so(open_run: OpenRun) -> None:
    with serve(faults={"length": 1.0}) as server:
        (frame,) = ask(context(open_run, server), questions(3))
    assert set(frame["finish_reason"]) == {"length"} and frame["response"].null_count() == 0


def test_an_answer_of_thoughts_alone_is_asked_for_once(open_run: OpenRun) -> None:
    """Half of one letter is nothing; the same request would think as long again."""
    with serve(lambda model, messages: "x", faults={"length": 1.0}) as server:
        ctx = context(open_run, server, max_failed=1)
        (frame,) = ask(ctx, questions(3))
    assert set(frame["finish_reason"]) == {"failed"} and len(server.seen) == 3
    (facts,) = manifests(ctx)[0]["endpoints_with_others"].values()
    (why,) = facts["failed"]
    assert "max_new_tokens" in why and not facts["repeated"]


def test_an_answer_that_fits_beside_no_prompt_stops(open_run: OpenRun) -> None:
    """64 tokens are asked for, and the server has a window of 60."""
    with (
        serve(window=60) as server,
        pytest.raises(ModelError, match=r"max_new_tokens 64 leaves no room .* 60 tokens of m0"),
    ):
        ask(context(open_run, server), questions(3, words=20))
    refusals = {
        "maximum context length is 4096 tokens and your request has 20 input tokens": "4096",
        "maximum context length is 128000 tokens. However, you requested 65535 output": "128000",
        "than the model's context length (32768 tokens)": "32768",
    }
    for text, tokens in refusals.items():
        assert (match := endpoint._WINDOW.search(text)) and match[1] == tokens


def test_what_was_interrupted_may_fail_as_much_in_all(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 of 50 fails for good, which is allowed; after a kill 1 of the 11 that are left does."""
    monkeypatch.setattr(shards, "TELL", 0.0)  # each answer is told, so that the 40th is seen

    @contextmanager
    def killed(title: str) -> Iterator[Callable[[int, int, str], None]]:
        def report(done: int, total: int, note: str) -> None:
            if done == 40:
                raise KeyboardInterrupt

        yield report

    with serve(
        lambda m, messages: "" if messages[-1]["content"] == "Question 7?" else "fine"
    ) as server:
        ctx = context(open_run, server, retries=0, concurrency=1, max_failed=0.02)
        progress, ctx._progress = ctx._progress, killed
        with pytest.raises(KeyboardInterrupt):
            ask(ctx, questions(50))
        ctx._progress = progress
        (frame,) = ask(ctx, questions(50))
    assert frame["finish_reason"].value_counts().sort("count")["count"].to_list() == [1, 49]
    assert manifests(ctx)[0]["rows"] == 50


def test_a_server_speaks_for_what_was_trained(open_run: OpenRun, tmp_path: Path) -> None:
    """It is told once of an adapter that it does not know; forgotten at a restart, told again."""
    trained, gone = tmp_path / "adapter", tmp_path / "gone"
    for folder, weights in ((trained, b"1"), (gone, b"2")):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(weights)
    with serve() as server:
        server.models = ["m0"]
        at = Endpoint(base_url=server.url, model="m0", adapters="load")
        voice = Voice(str(trained), "tokenizer", "0123abcd", at)
        wanted = [
            Request(voice, [{"role": "user", "content": f"Question {n}?"}], SAMPLING, n, "g")
            for n in range(6)
        ]
        engine = openai.OpenAIEngine()
        texts = {i: done.text for i, done in engine.generate(wanted[:3])}
        server.models = ["m0"]
        texts |= {3 + i: done.text for i, done in engine.generate(wanted[3:])}
        assert len(server.loads) == 2  # three requests are under way at once each time
        (name,) = {load["lora_name"] for load in server.loads}
        assert name.startswith("macpo-0123abcd-")
        assert texts == {n: f"{name} says: Question {n}?" for n in range(6)}
        assert {load["lora_path"] for load in server.loads} == {str(trained)}
        # Other weights of the same fingerprint are not those that the server knows.
        other = replace(voice, adapter=str(gone))
        ((_, done),) = engine.generate([replace(wanted[0], voice=other)])
        assert done.text not in texts.values()
        server.models = ["m0"]
        (gone / "adapter_config.json").unlink()
        with pytest.raises(ModelError, match=r"does not load the adapter .*RUNTIME_LORA"):
            list(engine.generate([replace(wanted[0], voice=other)]))


def test_what_failed_before_was_paid_too(open_run: OpenRun) -> None:
    """5 prompts of 2 words; one of them fails at first, so that 12 tokens are read."""
    answers = {"Question 2?": ""}
    with serve(lambda m, messages: answers.get(messages[-1]["content"], "fine")) as server:
        ctx = context(open_run, server, retries=0, concurrency=1, max_failed=0)
        with pytest.raises(ModelError, match="1 of 5"):
            ask(ctx, questions(5))
        answers.clear()
        (frame,) = ask(ctx, questions(5))
    assert frame["response"].to_list() == ["fine"] * 5
    usage = manifests(ctx)[0]["usage"]
    assert usage["prompt_tokens"] == 2 * len(server.seen) == 12


def test_how_models_run_here_is_nothing_to_an_endpoint(open_run: OpenRun) -> None:
    with serve() as server:
        (frame,) = ask(context(open_run, server), questions(3))
        other = partial(open_run, "engine.dtype=float32")
        (again,) = ask(context(other, server), questions(3))
        assert len(server.seen) == 3 and again.equals(frame)
        names = [
            context(run, server).plan.sample_name(Policy(who), "d2", "0")
            for who in ("p0", "student")
            for run in (open_run, other)
        ]
    assert names[0] == names[1] and names[2] != names[3]


def test_endpoints_that_differ_in_extra_alone_are_told_apart(open_run: OpenRun) -> None:
    with serve() as server:
        at = {"base_url": server.url, "model": "m"}
        spoken = [
            f"agents.{effort}="
            + json.dumps(
                {"role": "proposer", "endpoint": {**at, "extra": {"reasoning_effort": effort}}}
            )
            for effort in ("low", "high")
        ]
        ctx = open_run(*spoken, fake=False).context()
        ask(ctx, questions(3), "low", "high")
    facts = manifests(ctx)[0]["endpoints_with_others"].values()
    assert [each["extra"]["reasoning_effort"] for each in facts] == ["low", "high"]
    assert [each["attempts"] for each in facts] == [3, 3]


def test_the_key_is_sent_and_kept_nowhere(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    with serve() as server:
        ask(context(open_run, server, agents=1, api_key_env="TEST_KEY"), questions(2))
        assert {seen.key for seen in server.seen} == {"sk-secret"}
        ask(context(open_run, server, agents=2), questions(2), "p1")
        assert server.seen[-1].key == "none"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(b"sk-secret" in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("status", "match"), [(400, r"not load .* no, \*\*\*;"), (401, "take the key")]
)
def test_a_server_that_repeats_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, match: str
) -> None:
    """It is asked to load an adapter, and names the key in its refusal."""
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    (tmp_path / "adapter_config.json").write_text("{}")
    with serve(models=["m0"], no_load=(status, "no, sk-secret")) as server:
        at = Endpoint(base_url=server.url, model="m0", adapters="load", api_key_env="TEST_KEY")
        voice = Voice(str(tmp_path), "tokenizer", "0123abcd", at)
        wanted = [Request(voice, [{"role": "user", "content": "Question?"}], SAMPLING, 0, "g")]
        with pytest.raises(ModelError, match=match) as error:
            list(openai.OpenAIEngine().generate(wanted))
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize("count", [None, -1, 10**30, "many"])
def test_a_count_that_is_none_spoils_no_answer(open_run: OpenRun, count: object) -> None:
    with serve(usage={"prompt_tokens": count, "completion_tokens": 3}) as server:
        ctx = context(open_run, server)
        (frame,) = ask(ctx, questions(2))
    assert frame["response"].null_count() == 0 and len(server.seen) == 2
    usage = manifests(ctx)[0]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (0, 6)


def test_a_missing_key_is_said_before_anything_is_asked(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with serve() as server:
        ctx = context(open_run, server, api_key_env="NO_SUCH_KEY")
        with pytest.raises(MacpoError, match="set NO_SUCH_KEY"):
            ask(ctx, questions(2))
        assert not server.seen


@pytest.mark.parametrize(
    ("endpoint", "match"),
    [
        ({"base_url": "http://user:pw@host/v1"}, "base_url: looks like a secret"),
        ({"base_url": "host/v1"}, "base_url: write http"),
        ({"base_url": "http://host:abc/v1"}, "base_url: write http"),
        ({"base_url": "http://[::1/v1"}, "base_url: write http"),
        ({"api_key_env": "sk-abc-123"}, "api_key_env: name an environment variable"),
        (
            {"extra": {"api_key": "sk-abc-123"}},
            r"extra\.api_key: looks like a secret.* in agents\.p0\.endpoint\.api_key_env",
        ),
        (
            {"extra": {"a": [{"Authorization": "sk-abc-123"}]}},
            r"extra\.a\.Authorization: looks like",
        ),
    ],
)
def test_a_recipe_holds_no_key(open_run: OpenRun, endpoint: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match) as error:
        context(open_run, Scripted(url="http://127.0.0.1:9/v1"), **endpoint)
    assert "pw" not in str(error.value) and "sk-abc" not in str(error.value)


def test_who_is_trained_needs_weights(open_run: OpenRun) -> None:
    only = '{"role": "teacher", "endpoint": {"base_url": "http://127.0.0.1/v1", "model": "m"}}'
    with pytest.raises(RecipeError, match=r"agents\.teacher1: it is trained"):
        open_run(f"agents.teacher1={only}")


def moaa(tmp_path: Path, server: Scripted, **endpoint: Any) -> list[str]:
    """`macpo gen` of MoAA's SFT data: three proposers and an aggregator over 40 prompts."""
    names = ["p0", "p1", "p2", "last"]
    agents: dict[str, Any] = {"student": {"role": "student", "base": "not/needed"}}
    for name in names:
        at = {"base_url": server.url, "model": name, "concurrency": 4, **endpoint}
        agents[name] = {"role": "proposer", "endpoint": at}
    values = {
        "run": "test",
        "method": "moaa",
        "rounds": 0,
        "data": {"source": "world", "d1": {"count": 40}, "d2": {"count": 2}, "test": {"count": 2}},
        "agents": agents,
        "mixture": {"layers": [names[:3], names[3:]]},
        "judge": {"kind": "gold"},
        "sampling": {"n": 2},
        "select": {"on_filter": "count"},
        "engine": {"shard_size": 8},
    }
    (tmp_path / "moaa.yaml").write_text(yaml.safe_dump(values))
    return [sys.executable, "-m", "macpo", "gen", "--round", "0", "-r", str(tmp_path / "moaa.yaml")]


def written(tmp_path: Path) -> bytes:
    (path,) = (tmp_path / "runs/test/data").glob("round-0-*/pairs.parquet")
    return path.read_bytes()


def await_requests(server: Scripted, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.seen) < count and time.monotonic() < deadline:
        time.sleep(0.005)


def asked(server: Scripted) -> Counter[str]:
    return Counter(json.dumps([seen.model, seen.messages]) for seen in server.seen)


def test_kill_9_and_ctrl_c_lose_little_and_nothing_for_good(tmp_path: Path) -> None:
    """A kill costs each of the three agents at work at most the shard of 8 rows that is being

    filled and the one after it; Ctrl-C what its 4 slots were at, and on busy cores those after.
    """
    with serve() as server:
        subprocess.run(moaa(tmp_path, server), cwd=tmp_path, check=True, capture_output=True)
    whole, pairs = asked(server), written(tmp_path)
    assert set(whole.values()) == {1}
    shutil.rmtree(tmp_path / "runs")
    lost = {signal.SIGKILL: 3 * 2 * 8, signal.SIGINT: 3 * 2 * 4}
    allowed = whole.total()
    with serve(latency=0.05) as server:
        command = moaa(tmp_path, server)
        for count, kill in ((60, signal.SIGINT), (130, signal.SIGKILL)):
            gen = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
            await_requests(server, count)
            gen.send_signal(kill)
            _, output = gen.communicate(timeout=120)
            allowed += lost[kill]
            if kill == signal.SIGINT:
                assert gen.returncode == 130 and "what is finished stays" in output.splitlines()[-1]
                assert "Traceback" not in output and "Task" not in output
            else:
                assert gen.returncode == -kill
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert asked(server).keys() == whole.keys() and asked(server).total() <= allowed
    assert written(tmp_path) == pairs


def test_what_failed_is_left_out_with_its_reason(tmp_path: Path) -> None:
    """A proposer that fails is not missed; where the aggregator fails there is nothing to learn."""
    with serve(faults={"500": 0.2}, sticky=True) as server:
        command = moaa(tmp_path, server, retries=0, max_failed=0.5)
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    failed = Counter(seen.model for seen in server.seen if seen.outcome == "500")
    assert all(failed[name] for name in ("p0", "p1", "p2", "last"))
    turns = sum(seen.model == "last" for seen in server.seen)
    (folder,) = (tmp_path / "runs/test/data").glob("round-0-*")
    pairs, dropped = (pl.read_parquet(folder / f"{f}.parquet") for f in ("pairs", "dropped"))
    assert len(pairs) == turns - failed["last"] and pairs["chosen"].null_count() == 0
    assert dropped["reason"].to_list() == ["failed"] * failed["last"]
