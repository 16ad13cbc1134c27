"""Starts trainings in worker processes, for a run and for standalone training."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

from macpo_data.models.worker import Progress, Report, Worker, Workers
from macpo_data.world.bases import base_spec, is_ready
from macpo_data.world.named import WORLD, check_world_base

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


def pretrain(bases: list[str], progress: Progress) -> None:
    """Make those of the embedded world's bases that are missing."""
    bases = [base for base in bases if base.startswith(WORLD)]
    for base in bases:
        check_world_base(base)
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

    def pretrain(name: str) -> None:
        def progress(done: int, total: int, note: str) -> None:
            counts[name] = (done, total)
            read, of = (sum(column) for column in zip(*counts.values(), strict=True))
            report(read, of, note)

        with closing(Worker(f"base {name}")) as worker:
            worker.call("macpo_train.pretrain:pretrain", name, report=progress)

    def cost(name: str) -> int:
        spec = base_spec(name)
        return -spec.layers * spec.width**2 * spec.prompts

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # The longest first, so that the short ones fill the gap.
        list(pool.map(pretrain, sorted(names, key=cost)))
