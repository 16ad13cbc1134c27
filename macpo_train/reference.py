"""Reference log-probabilities for DPO: from generation if valid, cached, or computed.

The learner scored chosen and rejected when the dataset was made. Where the reference is that same
policy, with the same tokens, these scores are what a reference pass would give; where it is the
policy of round 0, that policy scored them before the training. In bfloat16 they
are so up to its rounding: an engine scores with halved weights, training with float32 adapters
under autocast, and the first DPO term misses ln 2 by some 1e-4.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from macpo_data.errors import ModelError
from macpo_data.models.base import voice_identity
from macpo_data.models.chat import Chat
from macpo_data.models.fits import load_adapter, no_numbers
from macpo_data.models.logprobs import answer_logprobs
from macpo_data.models.worker import Report
from macpo_data.recipe.section import digest
from macpo_data.recipe.training import DPO
from macpo_train import checkpoint
from macpo_train.adapter import sharded
from macpo_train.checkpoint import trained_from
from macpo_train.encode import Encoded, finished
from macpo_train.job import Job
from macpo_train.loss import learned

SIDES = ("chosen", "rejected")
LOGPROBS = "log-probabilities"
Logprobs = dict[str, list[float]]


def reference_logprobs(
    report: Report, job: Job, model: Any, chat: Chat, data: Encoded, shared: bool
) -> tuple[Logprobs, dict[str, Any]]:
    """Log-probability of each response under the reference, summed over its tokens.

    Returns:
        Them, and for the manifest how many were stored, cached and computed.
    """
    settings = job.settings
    assert isinstance(settings, DPO)
    weights = reference_weights(job, settings)
    if job.finetuning == "full":
        who = voice_identity(trained_from(job.base, weights), chat, None, job.train.dtype)
    else:
        who = voice_identity(job.base, chat, weights, model.dtype)
    if job.train.quantization != "none":
        who["quantization"] = job.train.quantization
    keys = {
        side: [
            _key(*each)
            for each in zip(data.prompts, data.responses[side], data.read_only[side], strict=True)
        ]
        for side in SIDES
    }
    stored = dict(_stored(job, data, keys)) if job.scored_under == who else {}
    path = job.cache and job.cache / f"{digest(who)}.parquet"
    cached = dict(pl.read_parquet(path).iter_rows()) if path and path.is_file() else {}
    logprobs = cached | stored
    rows = [
        i for i in range(len(data.prompts)) if not all(keys[side][i] in logprobs for side in SIDES)
    ]
    if rows:
        for i, *pair in _compute(report, job, model, chat, data, rows, shared):
            for side, value in zip(SIDES, pair, strict=True):
                logprobs.setdefault(keys[side][i], value)
        if path and PartialState().is_main_process:
            _write(path, logprobs)
    wanted = {key for side in SIDES for key in keys[side]}
    counts = {
        "stored": len(wanted & stored.keys()),
        "cached": len((wanted & cached.keys()) - stored.keys()),
        "computed": len(wanted - cached.keys() - stored.keys()),
    }
    used = {side: [logprobs[key] for key in keys[side]] for side in SIDES}
    return used, {"of": settings.reference, **who, **counts}


def reference_weights(job: Job, settings: DPO) -> Path | None:
    """The reference's adapter or checkpoint; None is the bare base."""
    if settings.reference == "base":
        return None
    return (job.reference or job.start) if settings.reference == "initial" else job.start


@contextmanager
def _speaking(model: Any, job: Job, settings: DPO) -> Iterator[None]:
    """The model as the reference.

    Raises:
        ModelError: the weights do not fit, or the model is sharded and so cannot take them.
    """
    adapter, is_full = reference_weights(job, settings), job.finetuning == "full"
    if adapter == job.start:  # training has not begun yet
        yield
    elif adapter is None and not is_full:
        with model.disable_adapter():
            yield
    elif sharded():
        raise ModelError(
            f"the log-probabilities of dpo.reference={settings.reference} are not all known, and a "
            "sharded model cannot take those weights; train in one process, or on rows that "
            "train.max_length does not cut"
        )
    elif is_full:
        checkpoint.put(model, job.base, adapter)
        try:
            yield
        finally:
            checkpoint.put(model, job.base, job.start)
    else:
        assert adapter is not None
        load_adapter(model, adapter, job.base, "reference")
        model.set_adapter("reference")
        try:
            yield
        finally:
            model.set_adapter("default")
            model.delete_adapter("reference")


def _stored(job: Job, data: Encoded, keys: dict[str, list[str]]) -> Iterator[tuple[str, float]]:
    """The scores made at generation, where they are of the very tokens that are trained on."""
    frame = pl.read_parquet(job.scores or job.dataset)
    if not {f"{side}_sum_logprob" for side in SIDES} <= set(frame.columns):
        return
    rows = frame.rows(named=True)
    for at, index in enumerate(data.rows):
        row = rows[index]
        for side in SIDES:
            total, tokens = row[f"{side}_sum_logprob"], row[f"{side}_num_tokens"]
            trained = len(data.responses[side][at]) - finished(row, side)
            if data.whole[at] and total is not None and tokens == trained:
                value = total + row[f"{side}_eot_logprob"]
                if math.isfinite(value):
                    yield keys[side][at], value


def _compute(
    report: Report, job: Job, model: Any, chat: Chat, data: Encoded, rows: list[int], shared: bool
) -> list[tuple[int, float, float]]:
    """(row, chosen, rejected), the rows shared out among the processes."""
    settings, state = job.settings, PartialState()
    assert isinstance(settings, DPO)
    size = job.train.micro_batch_size or settings.batch_size
    rows = sorted(rows, key=lambda i: (len(data.prompts[i]) + len(data.responses["chosen"][i]), i))
    # As many for each process, for they all take part in gathering what is sharded.
    each = -(-len(rows) // state.num_processes)
    own = (rows * state.num_processes)[state.process_index * each :][:each]
    results: list[tuple[int, float, float]] = []
    # In the numbers in which the policy is trained, so that equal weights give equal values; what
    # is sharded computes in them by itself.
    halved = job.train.dtype == "bfloat16" and not sharded()
    numbers = torch.autocast(PartialState().device.type, torch.bfloat16, enabled=halved)
    model.eval()
    with torch.no_grad(), _speaking(model, job, settings), numbers:
        for at in range(0, len(own), size):
            batch = own[at : at + size]
            report(at, len(own), "reference")
            every, mask = answer_logprobs(
                model,
                [data.prompts[i] for i in batch],
                [[data.responses[side][i] for side in SIDES] for i in batch],
                chat.pad_id,
                shared,
            )
            places = [data.read_only[side][i] for i in batch for side in SIDES]
            logprobs, _ = learned(every, mask, places)
            values = logprobs.sum(1).tolist()
            if not all(map(math.isfinite, values)):
                adapter = reference_weights(job, settings)
                raise no_numbers(LOGPROBS, job.base, adapter, "train.dtype")
            results += zip(batch, values[0::2], values[1::2], strict=True)
    return results if state.num_processes == 1 else list(gather_object(results))


def _key(prompt: list[int], response: list[int], read_only: Sequence[int]) -> str:
    """Name a sequence by its tokens, and by those of them that are not learned; 32 hex digits."""
    ids = array("i", [len(prompt), *prompt, *response, *(-at - 1 for at in read_only)])
    return hashlib.sha256(ids.tobytes()).hexdigest()[:32]


def _write(path: Path, logprobs: dict[str, float]) -> None:
    """Keep what is known of a reference; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    frame = pl.DataFrame(
        list(logprobs.items()), schema={"tokens": pl.String, "logprob": pl.Float64}, orient="row"
    )
    frame.write_parquet(content := BytesIO())  # polars may not say which of the system's errors
    partial.write_bytes(content.getbuffer())
    partial.replace(path)
