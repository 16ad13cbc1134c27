"""A Hub that is out of reach, silent, or sends without an end: told in one line, and soon."""

from __future__ import annotations

import gzip
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hub_case import run_fake

COMMANDS = [
    ["pull", "org/pairs", "--round", "0"],
    ["push", "--round", "0", "--repo", "org/pairs"],
    ["push", "--round", "0", "--repo", "org/pairs", "--adapters"],
    ["check", "org/data"],
    ["convert", "org/data", "--for", "trl", "--to", "out"],
    ["init", "--data", "org/data", "--to", "own.yaml"],
    ["train", "--dataset", "org/data", "--base", "org/model", "--out", "out"],
    ["run", "--set", "engine.name=transformers", "--set", "agents.student.base=org/model"],
]
# Runs the command, and says after all else how long it slept.
SLEEPS = """
import atexit, sys, time
slept, usual = [0.0], time.sleep
def sleep(seconds):
    slept[0] += seconds
    usual(seconds)
time.sleep = sleep
atexit.register(lambda: print(slept[0], file=sys.stderr))
sys.argv[0] = "macpo"
from macpo.__main__ import main
main()
"""
CHUNK = b"8000\r\n%b\r\n" % (b" " * 0x8000)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
PACKED = gzip.compress(gzip.compress(b" " * 2**28))  # 256 MiB in a kB


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a finished round of it, on the fake engine."""
    return run_fake(tmp_path_factory.mktemp("made"), "--round", "0")


def ask(words: list[str], cwd: Path, hub: str, **env: str) -> tuple[str, float]:
    """The line in which a command ends, and the seconds that it slept, as it does between tries.

    How long it took altogether says more of how busy the machine is.
    """
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(cwd / "hf"), "HF_TOKEN": "hf_goodTokenForTests"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SLEEPS, *words],
        cwd=cwd,
        env={**environment, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    *_, last, slept = done.stderr.strip().split("\n")
    assert done.returncode == 1 and last.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    return last, float(slept)


@contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that hears a request, and then does what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def one(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                connection.recv(2**16)
                talk(connection)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def silent(connection: socket.socket) -> None:
    connection.recv(1)  # until the client has enough


def closing(connection: socket.socket) -> None:
    """End at once."""


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + CHUNKED)
    while True:
        connection.sendall(CHUNK)


def dripping(connection: socket.socket) -> None:
    connection.sendall(HEAD + CHUNKED)
    while True:
        connection.sendall(b"1\r\n \r\n")
        time.sleep(0.2)


def redirecting(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 307 There\r\nLocation: /there\r\n" + CHUNKED)
    while True:
        connection.sendall(CHUNK)


def packed(connection: socket.socket) -> None:
    length = b"Content-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED)
    connection.sendall(HEAD + length + PACKED)


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_a_hub_that_is_gone_is_told_at_once(finished: Path, words: list[str]) -> None:
    """Neither the library's retries (some 25 s) nor ours (15 s) wait for what nobody reached."""
    refused, without_a_name = "http://127.0.0.1:9", "http://no-such-host.invalid"
    for hub in (refused, without_a_name) if words in (COMMANDS[0], COMMANDS[3]) else (refused,):
        output, slept = ask(words, finished, hub)
        assert "cannot be reached" in output and "check the network" in output, output
        assert slept < 3, (hub, output)


def test_a_silent_hub_is_left_after_a_stated_time(finished: Path) -> None:
    with serving(silent) as hub:
        output, _ = ask(COMMANDS[0], finished, hub, MACPO_HUB_TIMEOUT="2")
        stated = re.search(r"gave no answer within (\d+) s", output)
        assert stated and int(stated[1]) in (2, 3), output
        output, _ = ask(COMMANDS[3], finished, hub, MACPO_HUB_TIMEOUT="2")
        assert "the Hub cannot be reached" in output


def test_a_hub_that_breaks_off_every_connection(finished: Path) -> None:
    with serving(closing) as hub:
        output, slept = ask(COMMANDS[0], finished, hub)
    assert "breaks the connection off" in output and slept < 8


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (endless, "larger|more than 67,108,864 bytes|no data file"),
        (redirecting, "more than 67,108,864 bytes|does not answer"),
        (packed, "more than 67,108,864 bytes|no data file"),
        (dripping, "gave no answer within [23] s|no data file"),
    ],
)
def test_an_answer_without_an_end(
    finished: Path, talk: Callable[[socket.socket], None], words: str
) -> None:
    """Its kilobytes are bounded as well as its seconds, packed and unpacked."""
    with serving(talk) as hub:
        for command in (COMMANDS[0], COMMANDS[1], COMMANDS[3]):
            patience = "2" if talk is dripping else "60"  # so that the size ends it, or the time
            output, slept = ask(command, finished, hub, MACPO_HUB_TIMEOUT=patience)
            assert re.search(words, output) and slept < 8, (command, slept, output)
