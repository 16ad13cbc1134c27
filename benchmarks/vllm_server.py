"""vLLM's own OpenAI-compatible server on this machine, which may be killed and started anew."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError

from macpo_data.engines.vllm_settings import CPU_CACHE, ENVIRONMENT


class VLLMServer:
    """One base, under the name `base`, with room for adapters that are loaded while it runs."""

    def __init__(self, base: str, adapters: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self.log = log
        self._command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        self._command += ["--model", base, "--served-model-name", "base", "--port", str(port)]
        self._command += ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"]
        self._command += ["--kv-cache-memory-bytes", str(CPU_CACHE)]
        if adapters:  # as in engines/vllm.py: one slot has to stay free
            self._command += ["--enable-lora", "--max-loras", str(adapters + 1)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        inside = {k: v for k, v in ENVIRONMENT.items() if "MULTIPROCESSING" not in k}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **inside, **own},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 600
        while not self._answers():
            late = self._process.poll() is not None or time.monotonic() > deadline
            assert not late, self.log.read_text()[-2000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """With the process of its engine; nothing is tidied up."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def load(self, name: str, adapter: Path) -> None:
        """Serve an adapter under a name of its own."""
        body = json.dumps({"lora_name": name, "lora_path": str(adapter)}).encode()
        header = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self.url}/load_lora_adapter", body, header)
        with urllib.request.urlopen(asked, timeout=60):
            pass

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url.removesuffix("v1") + "health", timeout=5):
                return True
        except (URLError, OSError):
            return False


@contextmanager
def serve_base(base: str, adapters: int, log: Path) -> Iterator[VLLMServer]:
    """A server that runs."""
    server = VLLMServer(base, adapters, log)
    try:
        server.start()
        yield server
    finally:
        server.kill()
