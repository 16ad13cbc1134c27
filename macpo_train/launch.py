"""Multi-process training: started from an accelerate config, or by an outside launcher.

The processes (see `process`) tell their progress and result in lines on stdout; they end when this
process does, for their stdin is a pipe that it holds.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from macpo_data.errors import MacpoError, ModelError
from macpo_data.models.worker import Report
from macpo_data.outside import parse_object
from macpo_data.recipe.launcher import read_launcher
from macpo_train.job import Job

SIGN = "\x1emacpo "  # begins a line that is meant for us


def launch(report: Report, job: Job) -> dict[str, Any]:
    """Train in the processes that `train.launcher` describes and return what `train` returns.

    Raises:
        ModelError: the config cannot be read, or a process failed.
        MacpoError: as raised there.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.pickle"
        path.write_bytes(pickle.dumps(job))
        process = subprocess.Popen(
            [*_command(str(job.train.launcher)), "-m", "macpo_train.process", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(str(job.train.launcher)),
        )
        assert process.stdin and process.stdout
        result: dict[str, Any] = {}
        for line in process.stdout:
            if not line.startswith(SIGN):
                sys.stderr.write(line)
                continue
            message = parse_object(line.removeprefix(SIGN))
            if "progress" in message:
                report(*message["progress"])
            else:
                result = message
        process.stdin.close()
        code = process.wait()
    if "error" in result:
        raise {"ModelError": ModelError}.get(result["kind"], MacpoError)(result["error"])
    if "facts" not in result:
        raise ModelError(
            f"the processes of {job.train.launcher} ended (exit code {code}) before the training "
            "did; what they said stands above"
        )
    return dict(result["facts"])


def _command(config: str) -> list[str]:
    """What starts the processes, up to the module."""
    values = read_launcher(config)
    if values.use_cpu and values.distributed_type != "FSDP":
        # accelerate starts several processes without GPUs through MPI only.
        run = ["torch.distributed.run", "--standalone"]
        return [sys.executable, "-m", *run, f"--nproc-per-node={values.num_processes}"]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]


def _environment(config: str) -> dict[str, str]:
    """What the processes see; where the config says `use_cpu`, that is no GPU."""
    return os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if read_launcher(config).use_cpu else {})
