"""Runs commands as a person would, kills them, and says what is wrong with how they end.

A command runs in a fork of this process, which has the program imported, so that hundreds of them
take minutes. It has its own session, folder, arguments and output, and ends without cleaning up.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

CPU_LIMIT = 10.0  # seconds of work, whatever else the machine does: more is a hang
LIMIT = 120.0  # seconds of the clock
MODULES = (  # of the program, which the commands need
    "macpo.cli",
    "macpo_data.generation.run_context",
    "macpo_data.hub.pull",
    "macpo_data.hub.push",
    "macpo_data.report.collect",
    "macpo_run.policies",
    "macpo_run.standalone",
)
# What changes the disk, as Python tells its audit hooks; opening to write is one more.
_STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    args: tuple[str, ...]
    code: int | None  # exit status; negative for a signal; None: it was still at work at the limit
    stdout: str
    stderr: str
    cpu: float  # seconds

    @property
    def was_killed(self) -> bool:
        """Whether something killed it."""
        return self.code == -signal.SIGKILL

    def faults(self, cpu: float = CPU_LIMIT) -> list[str]:
        """What no command may do, whatever it is given; `cpu` seconds of work are its bound."""
        faults = []
        if self.code is None or self.cpu > cpu:
            faults.append(f"{'no end' if self.code is None else 'an end'} after {self.cpu:.0f} s")
        if "Traceback" in self.stderr:
            faults.append(f"traceback: {self.stderr.strip().splitlines()[-1][:160]}")
        if _CONTROL.search(self.stdout + self.stderr):
            faults.append("control characters on the screen")
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        # A run that cannot go on says of each step what it waits for.
        # What `check` finds stands in its table.
        starts = ("waiting ", "trainer ")
        waits = any(line.startswith(starts) for line in self.stdout.splitlines())
        if self.code not in (0, None) and not self.was_killed and len(errors) != 1 and not waits:
            faults.append(f"exit {self.code} with {len(errors)} lines of error")
        return faults


def run(
    args: Sequence[str],
    cwd: Path,
    *,
    limit: float = LIMIT,
    die_at: int | None = None,
    die_after: float | None = None,
) -> Ended:
    """Run `macpo` with these arguments.

    Args:
        args: of the command line.
        cwd: where.
        limit: seconds of the clock after which it is ended.
        die_at: kill it right before this change of the disk, counted from 1.
        die_after: kill it after so many seconds.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_the_command(args, cwd, out.fileno(), err.fileno(), die_at)
        code, cpu = _wait(pid, began + limit, None if die_after is None else began + die_after)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
        return Ended(tuple(args), code, texts[0], texts[1], cpu)


def _wait(pid: int, limit: float, kill_at: float | None) -> tuple[int | None, float]:
    """The exit status of a child, None where it had to be ended at the limit; its CPU seconds."""
    over = False
    while True:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        if ended:
            code = None if over else os.waitstatus_to_exitcode(status)
            return code, used.ru_utime + used.ru_stime
        now = time.monotonic()
        over = over or now > limit
        if over or (kill_at is not None and now > kill_at):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _be_the_command(args: Sequence[str], cwd: Path, out: int, err: int, die_at: int | None) -> None:
    """Become the command, and never return."""
    code = 1
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(cwd)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        sys.argv = ["macpo", *args]
        if die_at is not None:
            _die_at(die_at)
        from macpo.cli import main

        main()
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_at(step: int) -> None:
    """Kill this process right before its `step`-th change of the disk."""
    changes = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in _STEPS or (event == "open" and isinstance(args[2], int) and args[2] & _WRITES):
            changes += 1
            if changes == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def imported() -> None:
    """Import what the commands need, so that each fork has it; nothing here may start a thread."""
    for module in MODULES:
        import_module(module)
