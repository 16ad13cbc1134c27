"""An OpenAI-compatible server for tests: answers by a function, and fails where it is told to.

    python -m tests.openai_server --port 8000 --latency 0.5 --fault 500=0.02 --log seen.jsonl

Faults are drawn for each attempt at a request from its content, so that a run repeats itself:
a status such as 429 or 500, hang (no answer at all), drop (the connection is closed), garbage (not
JSON), endless (content that never ends), bomb (17 MiB that are packed into some kB), empty (no
text), length (half the text, cut by the token limit).
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

HEAD = b"HTTP/1.1 200 Scripted\r\nContent-Type: application/json\r\n"
PACKED = gzip.compress(b" " * 17 * 1024 * 1024)
# What is sent once, and then again and again.
BODIES = {
    "endless": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"8000\r\n%b\r\n" % (b" " * 0x8000)),
    "bomb": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
             % (len(PACKED), PACKED), b""),
}  # fmt: skip
Messages = list[dict[str, str]]
Answer = Callable[[str, Messages], str]


def echo(model: str, messages: Messages) -> str:
    """Say who speaks, and to what."""
    return f"{model} says: {messages[-1]['content']}"


@dataclass
class Seen:
    """A request as it came."""

    model: str
    messages: Messages
    body: dict[str, Any]  # all of it
    key: str | None  # the bearer token
    attempt: int  # 0.. of the same messages to the same model
    outcome: str  # answered, or the fault


@dataclass
class Load:
    """How busy one model was kept."""

    under_way: int = 0
    peak: int = 0
    first: float = 0.0  # when the first request came
    last: float = 0.0  # when the last one left
    busy: float = 0.0  # integral of the used slots over time, seconds

    def change(self, by: int, slots: int) -> None:
        now = time.monotonic()
        self.first = self.first or now
        self.busy += min(self.under_way, slots) * (now - (self.last or now))
        self.under_way += by
        self.peak = max(self.peak, self.under_way)
        self.last = now

    def share(self, slots: int) -> float:
        """Of the slots, on average from the first request to the last."""
        return self.busy / (slots * (self.last - self.first))


@dataclass
class Scripted:
    """What the server does, and what it saw."""

    answer: Answer = echo
    latency: float = 0.0  # seconds for an answer, half to one and a half of it
    slots: int = 1024  # requests that a model works on at once; more of them wait
    faults: dict[str, float] = field(default_factory=dict)  # share of attempts by fault
    sticky: bool = False  # each attempt at a request has the fault of the first one
    storm: list[str] = field(default_factory=list)  # faults of the next requests, whatever they are
    retry_after: str | None = None  # what a 429 says
    key: str | None = None  # another one gets 401
    models: list[str] | None = None  # another one gets 404
    window: int | None = None  # characters of messages that fit; more get 400
    usage: dict[str, Any] | None = None  # in place of what was used
    no_load: tuple[int, str] | None = None  # status and words for whoever asks for an adapter
    log: Path | None = None  # every request as a line of JSON
    seen: list[Seen] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)  # adapters that were asked for
    load: dict[str, Load] = field(default_factory=dict)
    url: str = ""
    _attempts: Counter[str] = field(default_factory=Counter)
    _free: dict[str, asyncio.Semaphore] = field(default_factory=dict)

    async def start(self, port: int) -> asyncio.Server:
        server = await asyncio.start_server(self._connection, "127.0.0.1", port, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        return server

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, until it is closed."""
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
                }
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                if head.startswith("POST") and "/chat/completions " in head:
                    status, body = await self._chat(json.loads(content), headers, reader)
                elif head.startswith("POST") and "/load_lora_adapter " in head:
                    status, body = self._load(json.loads(content))
                else:
                    shares = {model: load.share(self.slots) for model, load in self.load.items()}
                    status, body = 200, json.dumps(shares)
                if status == 0:
                    break
                if body in BODIES:
                    writer.write(BODIES[body][0])
                    while BODIES[body][1]:
                        writer.write(BODIES[body][1])
                        await writer.drain()
                    continue
                extra = f"Retry-After: {self.retry_after}\r\n" if self.retry_after else ""
                payload = body.encode()
                writer.write(
                    f"HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\n{extra}"
                    f"Content-Length: {len(payload)}\r\n\r\n".encode()
                    + payload
                )
                await writer.drain()
        writer.close()

    async def _chat(
        self, body: dict[str, Any], headers: dict[str, str], reader: asyncio.StreamReader
    ) -> tuple[int, str]:
        """Status and body; status 0 closes the connection."""
        model, messages = body["model"], body["messages"]
        load = self.load.setdefault(model, Load())
        free = self._free.setdefault(model, asyncio.Semaphore(self.slots))
        load.change(+1, self.slots)
        try:
            async with free:
                content = json.dumps([model, messages])
                attempt = self._attempts[content]
                self._attempts[content] += 1
                fault = self._fault(content, attempt, headers, body)
                key = headers.get("authorization", "").removeprefix("Bearer ") or None
                self._note(Seen(model, messages, body, key, attempt, fault or "answered"))
                if fault == "hang":
                    await reader.read(1)  # until the client has enough
                    return 0, ""
                if fault not in ("401", "404", "429"):
                    await asyncio.sleep(self.latency * random.Random(content).uniform(0.5, 1.5))
                return self._reply(model, messages, fault)
        finally:
            load.change(-1, self.slots)

    def _load(self, body: dict[str, Any]) -> tuple[int, str]:
        """As vLLM's server does it: an adapter that it sees becomes a model."""
        self.loads.append(body)
        if self.no_load:
            return self.no_load[0], json.dumps({"error": {"message": self.no_load[1]}})
        if self.models is None or not (Path(body["lora_path"]) / "adapter_config.json").is_file():
            return 400, json.dumps({"error": {"message": "no such adapter"}})
        self.models.append(body["lora_name"])
        return 200, "{}"

    def _fault(
        self, content: str, attempt: int, headers: dict[str, str], body: dict[str, Any]
    ) -> str | None:
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return "401"
        if self.models is not None and body["model"] not in self.models:
            return "404"
        if self.window and sum(len(m["content"]) for m in body["messages"]) > self.window:
            return "400"
        if self.storm:
            return self.storm.pop(0)
        draw = random.Random(f"{content} {0 if self.sticky else attempt}").random()
        for fault, share in self.faults.items():
            draw -= share
            if draw < 0:
                return fault
        return None

    def _reply(self, model: str, messages: Messages, fault: str | None) -> tuple[int, str]:
        if fault == "drop":
            return 0, ""
        if fault in BODIES:
            return 200, fault
        if fault == "garbage":
            return 200, "<html>it works!</html>"
        if fault and fault.isdigit():
            message = f"HTTP {fault}, scripted"
            if fault == "400":
                message = f"This model's maximum context length is {self.window}"
            return int(fault), json.dumps({"error": {"message": message}})
        text = "" if fault == "empty" else self.answer(model, messages)
        if fault == "length":
            text = text[: len(text) // 2]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if fault == "length" else "stop",
        }
        usage = self.usage or {
            "prompt_tokens": sum(len(m["content"].split()) for m in messages),
            "completion_tokens": len(text.split()),
        }
        return 200, json.dumps({"id": "0", "model": model, "choices": [choice], "usage": usage})

    def _note(self, seen: Seen) -> None:
        self.seen.append(seen)
        if self.log:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(seen)) + "\n")


@contextmanager
def serve(answer: Answer = echo, port: int = 0, **settings: Any) -> Iterator[Scripted]:
    """A server in a thread of this process; it may be told otherwise while it runs."""
    scripted = Scripted(answer, **settings)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(scripted.start(port))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield scripted
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _close(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--fault", action="append", default=[], metavar="FAULT=SHARE")
    parser.add_argument("--sticky", action="store_true")
    parser.add_argument("--answer", default="tests.openai_server:echo", metavar="MODULE:FUNCTION")
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    module, _, name = given.answer.partition(":")
    faults = {fault: float(share) for fault, _, share in (f.partition("=") for f in given.fault)}
    scripted = Scripted(
        getattr(import_module(module), name),
        given.latency, given.slots, faults, given.sticky, log=given.log,
    )  # fmt: skip

    async def run() -> None:
        server = await scripted.start(given.port)
        print(scripted.url, flush=True)
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
