"""Trains one job: a dataset and a starting policy in; an adapter, checkpoint or classifier out."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import replace
from typing import Any

import polars as pl

from macpo_data.errors import ModelError
from macpo_data.models.base import has_bfloat16, load_tokenizer, skeleton
from macpo_data.models.templates import make_chat
from macpo_data.models.weights import ADAPTER_FILES, CONFIG, weights_sha256
from macpo_data.models.worker import Report
from macpo_data.recipe.training import SFT, RewardTraining
from macpo_train import checkpoint, ranks
from macpo_train.adapter import gathered, policy, save_adapter, sharded
from macpo_train.checks import check_model, check_start, check_trained
from macpo_train.encode import encode
from macpo_train.job import Job
from macpo_train.launch import launch


def train(report: Report, job: Job) -> dict[str, Any]:
    """Train one policy or reward model into `job.out` and return what its manifest says of it.

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
    from macpo_train.memory import ran_out, release, would_fit
    from macpo_train.sft import train_sft
    from macpo_train.watch import say

    state = PartialState(cpu=not torch.cuda.is_available())
    settings = job.train.on(bfloat16=has_bfloat16())
    if settings != job.train:
        lacks = "a GPU that has it" if settings.dtype == "bfloat16" else "a GPU without bfloat16"
        device = lacks if torch.cuda.is_available() else "a CPU"
        say(f"train.dtype=auto is {settings.dtype} here, on {device}")
    job = replace(job, train=settings)
    chat = make_chat(load_tokenizer(job.base), job.chat_template, job.base.id)
    if job.scored_under and job.scored_under.get("template_sha256") not in (None, chat.sha256):
        raise ModelError(
            f"this dataset was made with another chat template than {job.base.id} has now; set "
            "agents.X.chat_template to that one, or make the dataset again"
        )
    columns = [job.column] if isinstance(job.settings, SFT) else ["chosen", "rejected"]
    data = encode(pl.read_parquet(job.dataset), chat, columns, job.train)
    for line in filter(None, [chat.thought_rule, *data.account()]):
        say(line)
    scores, is_full = isinstance(job.settings, RewardTraining), job.finetuning == "full"
    check_start(job)
    outline = skeleton(job.base, classifier=scores)
    if outline is not None:
        check_model(job, outline, chat, data)
    set_seed(job.seed)
    fit = train_sft if isinstance(job.settings, SFT) else train_dpo
    facts: dict[str, Any] | None = None
    model: Any = None
    try:
        if scores:
            model = reward.classifier(job)
        elif is_full:
            model = checkpoint.load(job.base, job.start, place=not sharded())
        else:
            model = policy(job)
        if outline is None:
            check_model(job, model, chat, data)
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
    check_trained(weights.items() if weights else model.named_parameters())
    if state.is_main_process:
        if weights is None:
            reward.save(model, job, chat)
        elif is_full:
            checkpoint.save(model, job, chat, weights)
        else:
            save_adapter(model, job.base, job.out, weights)
    state.wait_for_everyone()
    facts |= {
        "dtype": "float32" if scores and is_full else job.train.dtype,
        **({"finetuning": "full"} if is_full else {}),
        "rows": len(data.prompts),
        "rows_dropped_too_long": data.dropped,
        "rows_cut": data.cut,
        "rows_same_after_cut": data.same,
        "rows_unsayable": dict(data.unsayable),
        "rows_without_earlier_thoughts": data.without_thoughts,
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
    is_full = job.finetuning == "full"
    if job.start and is_full:
        seen.update(weights_sha256(job.start).encode())
    elif job.start:
        seen.update((job.start / ADAPTER_FILES[1]).read_bytes())
    sections = (job.settings, job.lora, job.train, job.confidence)
    settings = [section.identity() for section in sections if section]
    seen.update(repr((job.column, settings, job.seed)).encode())
    job.out.mkdir(parents=True, exist_ok=True)
    config, numbers = (CONFIG, "model.safetensors") if is_full else ADAPTER_FILES
    (job.out / config).write_text(json.dumps({"fake": True}), "utf-8")
    (job.out / numbers).write_bytes(seen.digest())
    return {"fake": True, "history": [], "rows": len(pl.read_parquet(job.dataset))}
