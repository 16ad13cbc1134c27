"""Starts trainings in worker processes, for a run and for standalone training."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from macpo_data.bases.named import WEAKENED, check_base, folder_of, gguf_file, weakened
from macpo_data.bases.named import is_ready as is_made_ready
from macpo_data.errors import Interrupted
from macpo_data.models.worker import WAKES, Progress, Report, Worker, Workers
from macpo_data.world.bases import base_spec, is_ready
from macpo_data.world.named import WORLD

if TYPE_CHECKING:
    from macpo_train.job import Job


def fit(
    job: Job, title: str, progress: Progress, workers: Workers, shared: bool = False
) -> dict[str, Any]:
    """Train in a process of its own, or one that all bases share; the fake engine needs none."""
    from macpo_train.train import train

    with progress(title) as report:
        if job.fake:
            return train(report, job)
        worker = workers.get("training" if shared else job.base.id)
        facts: dict[str, Any] = worker.call("macpo_train.train:train", job, report=report)
        return facts


def make_bases(bases: list[str], progress: Progress) -> None:
    """Make those bases of this machine's cache that are missing.

    Raises:
        ModelError: there is no such base, or what it is made from cannot be read.
    """
    for base in bases:
        check_base(base)
    weak = [base for base in bases if base.startswith(WEAKENED)]
    whole = dict.fromkeys([*bases, *(weakened(base).base for base in weak)])
    _pretrain([base for base in whole if base.startswith(WORLD)], progress)
    files = [base for base in whole if gguf_file(base)]
    for call, verb, which in (("convert:convert", "converting", files),
                              ("weaken:weaken", "making", dict.fromkeys(weak))):  # fmt: skip
        for base in which:
            if (folder := folder_of(base)) is None or is_made_ready(folder):
                continue
            title = f"{verb} {base} (once, then cached)"
            with progress(title) as report, Worker(f"base {base}") as worker:
                worker.call(f"macpo_train.{call}", base, report=report)


def _pretrain(bases: list[str], progress: Progress) -> None:
    """Make those of the embedded world's bases that are missing."""
    names = dict.fromkeys(base.removeprefix(WORLD) for base in bases)
    missing = [name for name in names if not is_ready(name)]
    if not missing:
        return
    with progress(f"pretraining {', '.join(missing)} (once, then cached)") as report:
        pretrain_bases(missing, report)


def pretrain_bases(names: list[str], report: Report) -> None:
    """Pretrain bases of the embedded world side by side, a process of one thread each.

    Raises:
        MacpoError: a process ended, or the disk refused a write.
    """
    counts = {name: (0, base_spec(name).prompts) for name in names}
    workers: list[Worker] = []

    def pretrain(name: str) -> None:
        def progress(done: int, total: int, note: str) -> None:
            counts[name] = (done, total)
            read, of = (sum(column) for column in zip(*counts.values(), strict=True))
            report(read, of, note)

        with Worker(f"base {name}") as worker:
            workers.append(worker)
            worker.call("macpo_train.pretrain:pretrain", name, report=progress)

    def cost(name: str) -> int:
        spec = base_spec(name)
        return -spec.layers * spec.width**2 * spec.prompts

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            # The longest first, so that the short ones fill the gap.
            futures = [pool.submit(pretrain, name) for name in sorted(names, key=cost)]
            while wait(futures, timeout=WAKES).not_done:
                pass
            for future in futures:
                future.result()
        except (Interrupted, KeyboardInterrupt):
            # The pool would wait for its threads, and those for their processes.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.close(kill=True)
            raise
