"""Worker processes for heavy work, so that its memory is freed when it ends.

`Worker.call("module:function", ...)` runs a function there and passes its progress on. The
function's first argument is `report(done, total, note)`. A worker dies with its parent, however
that ends.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

from macpo_data.errors import Interrupted, MacpoError, ModelError, hidden_os_error

# The libraries' own bars and notices, which would run across ours.
QUIET = {
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# Seconds. Once polars has worked, a system call that SIGINT breaks off begins again before Python
# may look: whoever waits wakes now and then.
WAKES = 0.5
Report = Callable[[int, int, str], None]  # done, of how many, and a note for whoever waits
Progress = Callable[[str], AbstractContextManager[Report]]  # of what, as a person reads it


class Closed(ABC):
    """What holds processes, and gives their memory back at the end of a `with`."""

    def __enter__(self) -> Self:
        """Nothing is to be done."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End them; after Ctrl-C, in the middle of their work."""
        self.close(kill=kind in (Interrupted, KeyboardInterrupt))

    @abstractmethod
    def close(self, kill: bool = False) -> None:
        """End them; with `kill`, in the middle of their work."""


class Worker(Closed):
    """One process that does one call after another."""

    def __init__(self, name: str) -> None:
        """Start it. `name` says in errors what it works on, such as a base model."""
        self.name = name
        # A killed worker leaves a lock of tqdm's behind, of which Python would tell at the end.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        context = mp.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child,), name=f"macpo {name}")
        self._process.start()
        child.close()

    def call(self, function: str, *args: Any, report: Report) -> Any:
        """Run `module:function` there and return its value.

        Raises:
            MacpoError: as raised there, or the process was killed.
            RuntimeError: a bug there, with its traceback.
        """
        self._exchange(lambda: self._pipe.send((function, args)))
        while True:
            while not self._exchange(lambda: self._pipe.poll(WAKES)):
                pass
            kind, value = self._exchange(self._pipe.recv)
            if kind == "progress":
                report(*value)
            elif kind == "value":
                return value
            elif isinstance(value, MacpoError | OSError):
                raise value
            else:
                raise RuntimeError(f"in the process of {self.name}:\n{value}")

    def _exchange(self, talk: Callable[[], Any]) -> Any:
        """Talk to the process, or say that it is gone."""
        try:
            return talk()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise ModelError(
                f"the process of {self.name} ended (exit code {self._process.exitcode}); if memory "
                "ran out, lower engine.batch_size or train.micro_batch_size, then run it again"
            ) from None

    def close(self, kill: bool = False) -> None:
        """End the process and give its memory back; with `kill`, in the middle of its work."""
        with suppress(OSError):
            self._pipe.send(None)
        if not kill:
            self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


class Key(NamedTuple):
    """What a worker is there for."""

    name: str
    engine: str | None


class Workers(Closed):
    """At most `limit` workers; the one used longest ago is closed for a new one."""

    def __init__(self, limit: int) -> None:
        """No process is started yet."""
        self.limit = limit
        self._workers: dict[Key, Worker] = {}

    def get(self, name: str, engine: str | None = None) -> Worker:
        """The worker of that name, started if it is not there.

        Args:
            name: of the base that it holds, or of its work.
            engine: one with memory of its own, beside which its process runs nothing else.
        """
        key = Key(name, engine)
        worker = self._workers.pop(key, None)
        if worker is None:
            while len(self._workers) >= self.limit:
                self._workers.pop(next(iter(self._workers))).close()
            worker = Worker(name if engine is None else f"{name} ({engine})")
        self._workers[key] = worker
        return worker

    def has(self, name: str) -> bool:
        """Whether a worker of that name runs, or of that base by another engine."""
        return any(key.name == name for key in self._workers)

    def close_engines(self) -> None:
        """Close those that run an engine with memory of its own."""
        for key in [key for key in self._workers if key.engine is not None]:
            self._workers.pop(key).close()

    def close(self, kill: bool = False) -> None:
        """Close all."""
        while self._workers:
            self._workers.popitem()[1].close(kill)


def _serve(pipe: Connection) -> None:
    """The child's loop. A thread reads the pipe, so that the parent's death is noticed at once."""
    os.environ.update(QUIET)
    calls: list[tuple[str, tuple[Any, ...]] | None] = []
    arrived = threading.Condition()

    def receive() -> None:
        while True:
            try:
                call = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            with arrived:
                calls.append(call)
                arrived.notify()

    threading.Thread(target=receive, daemon=True).start()
    while True:
        with arrived:
            arrived.wait_for(lambda: calls)
            call = calls.pop(0)
        if call is None:
            return
        function, args = call
        module, _, attribute = function.partition(":")
        try:
            value = getattr(import_module(module), attribute)(
                lambda done, total, note="": pipe.send(("progress", (done, total, note))), *args
            )
            pipe.send(("value", value))
        except (MacpoError, OSError) as error:
            pipe.send(("error", error))
        except BaseException as error:
            pipe.send(("error", hidden_os_error(error) or traceback.format_exc()))
