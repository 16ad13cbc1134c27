"""A dataset and a starting policy in, an adapter out. Everything comes as an argument."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.chat import Chat, make_chat
from macpo_data.errors import DataError, ModelError
from macpo_data.models import Base, load_model, load_tokenizer
from macpo_data.recipe import DPO, SFT, Lora, Train

Report = Callable[[int, int, str], None]
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Job:
    """One training: what `macpo_train` needs to know, and nothing about rounds or stores."""

    dataset: Path  # parquet with prompt, chosen, rejected and their finish reasons
    column: str  # SFT: chosen or rejected; DPO uses both
    base: Base
    chat_template: str
    start: Path | None  # adapter to continue; None begins a new one
    out: Path
    settings: SFT | DPO
    lora: Lora
    train: Train
    lr_scale: float = 1.0
    seed: int = 0
    fake: bool = False  # write a placeholder, for trying a recipe's logic


@dataclass(frozen=True)
class Encoded:
    """Token ids of a dataset: a prompt and its responses per row."""

    prompts: list[list[int]]
    responses: dict[str, list[list[int]]]
    cut: int  # responses that max_length cut
    dropped: int  # rows whose prompt leaves no room


def train(report: Report, job: Job) -> dict[str, Any]:
    """Train one adapter into `job.out` and return what its manifest says of it.

    Raises:
        ModelError: the base or adapter cannot be loaded, or the loss is not finite.
        DataError: no row fits.
    """
    started = time.monotonic()
    if job.fake:
        facts = _placeholder(job)
    else:
        # Imported here: trl takes seconds to import.
        from transformers import set_seed

        from macpo_train.dpo import train_dpo
        from macpo_train.sft import train_sft

        chat = make_chat(load_tokenizer(job.base), job.chat_template, job.base.id)
        columns = [job.column] if isinstance(job.settings, SFT) else ["chosen", "rejected"]
        data = encode(pl.read_parquet(job.dataset), chat, columns, job.train.max_length)
        set_seed(job.seed)
        model = policy(job)
        run = train_sft if isinstance(job.settings, SFT) else train_dpo
        history = run(report, job, model, chat, data)
        save_adapter(model, job.base, job.out)
        tokens = sum(map(len, data.prompts)) * len(columns)
        tokens += sum(len(r) for side in data.responses.values() for r in side)
        facts = {
            "history": history,
            "rows": len(data.prompts),
            "rows_dropped_too_long": data.dropped,
            "responses_cut": data.cut,
            "tokens_per_epoch": tokens,
            "template_sha256": chat.sha256,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        del model
        _release()
    return {**facts, "seconds": round(time.monotonic() - started, 2)}


def encode(frame: pl.DataFrame, chat: Chat, columns: list[str], max_length: int) -> Encoded:
    """Tokenise a dataset's prompts and the named response columns.

    A response loses its end where prompt and response exceed `max_length`; a row whose prompt
    leaves no room for a response is dropped. Both are counted.

    Raises:
        DataError: no row is left.
    """
    prompts: list[list[int]] = []
    responses: dict[str, list[list[int]]] = {column: [] for column in columns}
    cut = 0
    for row in frame.iter_rows(named=True):
        prompt = chat.prompt_ids(row["prompt"])
        room = max_length - len(prompt)
        if room < 1:
            continue
        prompts.append(prompt)
        for column in columns:
            finished = row.get(f"{column}_finish_reason", "stop") != "length"
            ids = chat.response_ids(row[column], finished)
            cut += len(ids) > room
            responses[column].append(ids[:room])
    if not prompts:
        raise DataError(
            f"none of {len(frame)} rows fits into train.max_length={max_length} tokens; raise it"
        )
    return Encoded(prompts, responses, cut, len(frame) - len(prompts))


def policy(job: Job) -> Any:
    """The base with the adapter to train: a copy of the starting one, or a new one.

    Raises:
        ModelError: the starting adapter does not belong to this base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors import SafetensorError

    model = load_model(job.base, job.train.dtype)
    if job.start is not None:
        try:
            return PeftModel.from_pretrained(model, str(job.start), is_trainable=True)
        except (RuntimeError, ValueError, OSError, SafetensorError) as error:
            first = str(error).strip().split("\n")[0]
            raise ModelError(f"adapter {job.start} does not fit {job.base.id}: {first}") from None
    config = LoraConfig(
        r=job.lora.r,
        lora_alpha=job.lora.alpha,
        lora_dropout=job.lora.dropout,
        target_modules=sorted(job.lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.targets: {str(error).split('.')[0]} ({job.base.id})") from None


def save_adapter(model: Any, base: Base, out: Path) -> None:
    """Write a peft adapter whose configuration names the base as people call it."""
    model.save_pretrained(out, selected_adapters=["default"], save_embedding_layers=False)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = base.id
    config["revision"] = base.revision
    # peft writes this set in an order that changes from run to run.
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    for extra in set(out.iterdir()) - {out / name for name in ADAPTER_FILES}:
        shutil.rmtree(extra) if extra.is_dir() else extra.unlink()


def training_arguments(job: Job, rows: int) -> dict[str, Any]:
    """What SFT and DPO tell transformers' Trainer alike."""
    import torch

    settings, train_ = job.settings, job.train
    micro = min(train_.micro_batch_size or settings.batch_size, settings.batch_size)
    if settings.batch_size % micro:
        raise ModelError(
            f"train.micro_batch_size {micro} does not divide batch_size {settings.batch_size}"
        )
    steps = -(-rows // settings.batch_size) * settings.epochs
    return {
        "output_dir": str(job.out / "trainer"),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate * job.lr_scale,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // micro,
        "lr_scheduler_type": train_.scheduler,
        "warmup_steps": int(train_.warmup * steps),
        "weight_decay": train_.weight_decay,
        "max_grad_norm": train_.max_grad_norm,
        "gradient_checkpointing": train_.gradient_checkpointing,
        "bf16": train_.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "max_length": None,
        "seed": job.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # `callback` stops at a loss that is not finite
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def callback(report: Report, history: list[dict[str, float]], keys: dict[str, str]) -> Any:
    """A Trainer callback that keeps the named metrics of each step and tells the progress.

    Raises (while training):
        ModelError: the loss is not finite.
    """
    import math

    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            row = {new: float(logs[old]) for old, new in keys.items() if old in logs}
            if not math.isfinite(row["loss"]):
                raise ModelError(
                    f"the loss is {row['loss']} at step {state.global_step}; lower the learning "
                    "rate, or set train.dtype=float32"
                )
            history.append({"step": float(state.global_step), **row})
            note = " ".join(f"{k} {v:.3f}" for k, v in row.items() if k in ("loss", "margin"))
            report(state.global_step, state.max_steps, note)

    return Watch()


def quiet(trainer: Any) -> None:
    """Keep transformers from printing each step's metrics: `callback` tells them."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _placeholder(job: Job) -> dict[str, Any]:
    """What the fake engine trains: a file whose content follows from the inputs."""
    import hashlib

    seen = hashlib.sha256(job.dataset.read_bytes())
    seen.update((job.start / ADAPTER_FILES[1]).read_bytes() if job.start else b"")
    settings = [section.identity() for section in (job.settings, job.lora, job.train)]
    seen.update(repr((job.column, settings, job.seed)).encode())
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / ADAPTER_FILES[0]).write_text(json.dumps({"fake": True}), "utf-8")
    (job.out / ADAPTER_FILES[1]).write_bytes(seen.digest())
    return {"fake": True, "history": [], "rows": len(pl.read_parquet(job.dataset))}


def _release() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
