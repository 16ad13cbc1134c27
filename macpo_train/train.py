"""Trains one job: a dataset and a starting policy in, an adapter or a classifier out."""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any

import polars as pl

from macpo_data.errors import ModelError
from macpo_data.models.base import load_tokenizer
from macpo_data.models.chat import make_chat
from macpo_data.models.worker import Report
from macpo_data.recipe.training import SFT, RewardTraining
from macpo_train import ranks
from macpo_train.adapter import ADAPTER_FILES, gathered, policy, save_adapter, sharded
from macpo_train.job import Job
from macpo_train.launch import launch


def train(report: Report, job: Job) -> dict[str, Any]:
    """Train one adapter into `job.out` and return what its manifest says of it.

    A training that was killed goes on from its last checkpoint in `job.out`.

    Raises:
        ModelError: the base or adapter cannot be loaded, the loss is not finite, or memory ran out.
        DataError: there is no row, or too many do not fit.
    """
    started = time.monotonic()
    if job.fake:
        facts = _placeholder(job)
    elif job.train.launcher and not ranks.is_launched():
        facts = launch(report, job)
    else:
        facts = _train(report, job)
    return {**facts, "seconds": round(time.monotonic() - started, 2)}


def _train(report: Report, job: Job) -> dict[str, Any]:
    """`train` in this process, which may be one of several."""
    if not ranks.is_launched():
        # One process drives one GPU: over several, transformers would spread each batch unasked.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    # Imported here: trl takes seconds to import.
    import torch
    from accelerate import PartialState
    from transformers import set_seed

    from macpo_train import reward
    from macpo_train.dpo import train_dpo
    from macpo_train.encode import encode
    from macpo_train.memory import ran_out, release, would_fit
    from macpo_train.sft import train_sft

    state = PartialState(cpu=not torch.cuda.is_available())
    chat = make_chat(load_tokenizer(job.base), job.chat_template, job.base.id)
    if job.scored_under and job.scored_under.get("template_sha256") not in (None, chat.sha256):
        raise ModelError(
            f"this dataset was made with another chat template than {job.base.id} has now; set "
            "agents.X.chat_template to that one, or make the dataset again"
        )
    columns = [job.column] if isinstance(job.settings, SFT) else ["chosen", "rejected"]
    data = encode(pl.read_parquet(job.dataset), chat, columns, job.train)
    set_seed(job.seed)
    scores = isinstance(job.settings, RewardTraining)
    fit = train_sft if isinstance(job.settings, SFT) else train_dpo
    facts: dict[str, Any] | None = None
    model: Any = None
    try:
        model = reward.classifier(job) if scores else policy(job)
        facts = (reward.train_reward if scores else fit)(
            report if state.is_main_process else lambda *_: None, job, model, chat, data
        )
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
    if facts is None:  # only here, past the handler, the trainer with all it held is gone
        raise ModelError(would_fit(job, model, chat, data))
    # Every process takes part in gathering what is sharded.
    weights = None if scores else gathered(model)
    if state.is_main_process:
        reward.save(model, job, chat) if scores else save_adapter(model, job.base, job.out, weights)
    state.wait_for_everyone()
    facts |= {
        "rows": len(data.prompts),
        "rows_dropped_too_long": data.dropped,
        "rows_cut": data.cut,
        "tokens_per_epoch": data.tokens,
        "template_sha256": chat.sha256,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "processes": state.num_processes,
        "sharded": sharded(),
    }
    del model
    release()
    return facts


def _placeholder(job: Job) -> dict[str, Any]:
    """What the fake engine trains: a file whose content follows from the inputs."""
    seen = hashlib.sha256(job.dataset.read_bytes())
    seen.update((job.start / ADAPTER_FILES[1]).read_bytes() if job.start else b"")
    sections = (job.settings, job.lora, job.train, job.confidence)
    settings = [section.identity() for section in sections if section]
    seen.update(repr((job.column, settings, job.seed)).encode())
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / ADAPTER_FILES[0]).write_text(json.dumps({"fake": True}), "utf-8")
    (job.out / ADAPTER_FILES[1]).write_bytes(seen.digest())
    return {"fake": True, "history": [], "rows": len(pl.read_parquet(job.dataset))}
