"""A dataset and a starting policy in, an adapter or a classifier out.

Everything comes as an argument.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.chat import make_chat
from macpo_data.errors import ModelError, first_line
from macpo_data.models import Base, load_model, load_tokenizer
from macpo_data.recipe import DPO, SFT, Confidence, Lora, RewardTraining, Train
from macpo_data.signs import Signs

Report = Callable[[int, int, str], None]
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Job:
    """One training: what `macpo_train` needs to know, and nothing about rounds or stores."""

    dataset: Path  # parquet with prompt, chosen, rejected and their finish reasons
    column: str  # SFT: chosen or rejected; the others use both
    base: Base
    chat_template: str
    start: Path | None  # adapter to continue; None begins a new one
    out: Path
    settings: SFT | DPO | RewardTraining
    lora: Lora
    train: Train
    confidence: Confidence | None = None  # SFT: trust the policy's own predictions as well
    lr_scale: float = 1.0
    seed: int = 0
    fake: bool = False  # write a placeholder, for trying a recipe's logic
    scored_under: dict[str, Any] | None = None  # what the dataset's scores depend on, if known
    reference: Path | None = None  # dpo.reference=initial: that adapter; None: it is `start`
    scores: Path | None = None  # in the dataset's columns, where other scores are the reference's
    cache: Path | None = None  # where log-probabilities of references are kept; None: nowhere
    logs: Path | None = None  # where tensorboard's files go; None: beside `out`
    name: str = ""  # of the curves; empty: that of `out`
    start_signs: Signs = field(default_factory=dict)  # of the training that made `start`, if known


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
    elif job.train.launcher and "WORLD_SIZE" not in os.environ:
        from macpo_train.launch import launch

        facts = launch(report, job)
    else:
        facts = _train(report, job)
    return {**facts, "seconds": round(time.monotonic() - started, 2)}


def _train(report: Report, job: Job) -> dict[str, Any]:
    """`train` in this process, which may be one of several."""
    if "WORLD_SIZE" not in os.environ:
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


def sharded() -> bool:
    """Whether the processes shard the model among them (FSDP), as accelerate is told."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def policy(job: Job) -> Any:
    """The base with the adapter to train: a copy of the starting one, or a new one.

    Raises:
        ModelError: the starting adapter does not belong to this base.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    model = load_model(job.base, job.train.dtype, job.train.quantization, place=not sharded())
    if job.start is not None:
        check_adapter(job.start, job.base)
        try:
            model = PeftModel.from_pretrained(model, str(job.start), is_trainable=True)
        except (RuntimeError, ValueError, OSError, SafetensorError) as error:
            said = first_line(error)
            raise ModelError(f"adapter {job.start} does not fit {job.base.id}: {said}") from None
        _check_whole(job.start, job.base, model)
        return model
    return with_adapter(model, job, "CAUSAL_LM")


def with_adapter(model: Any, job: Job, task: str) -> Any:
    """A model with a new adapter of the job's shape; task is one of peft's.

    Raises:
        ModelError: it has no matrix of `lora.targets`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=job.lora.r,
        lora_alpha=job.lora.alpha,
        lora_dropout=job.lora.dropout,
        target_modules=sorted(job.lora.targets),
        use_rslora=job.lora.rslora,
        task_type=task,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.targets: {str(error).split('.')[0]} ({job.base.id})") from None


def check_adapter(folder: Path, base: Base) -> None:
    """Refuse an adapter of another base; local folders may have moved, so shapes judge those."""
    try:
        config = json.loads((folder / ADAPTER_FILES[0]).read_text("utf-8"))
        of = str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"no adapter in {folder} ({type(error).__name__})") from None
    local = any(Path(name).is_absolute() or Path(name).exists() for name in (of, base.id))
    if of != base.id and not local:
        raise ModelError(f"adapter {folder} was trained on {of}, not on {base.id}; name that base")


def gathered(model: Any) -> dict[str, Any]:
    """The trained weights, whole where each process holds a shard of them."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {n: getattr(p, "full_tensor", lambda p=p: p)().cpu() for n, p in trained.items()}


def _check_whole(folder: Path, base: Base, model: Any) -> None:
    """Refuse an adapter that leaves out layers of the base, which peft would begin anew."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_FILES[1], "pt") as file:
        known = set(file.keys())
    missing = set(get_peft_model_state_dict(model, save_embedding_layers=False)) - known
    if missing:
        raise ModelError(
            f"adapter {folder} lacks {len(missing)} matrices that {base.id} has, such as "
            f"{min(missing)}: it was trained on another base"
        )


def save_adapter(model: Any, base: Base, out: Path, weights: dict[str, Any] | None = None) -> None:
    """Write a peft adapter whose configuration names the base as people call it."""
    model.save_pretrained(
        out, selected_adapters=["default"], save_embedding_layers=False, state_dict=weights
    )
    path = out / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = base.id
    config["revision"] = base.revision
    if isinstance(config["target_modules"], list):  # a set, whose order changes from run to run
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    for extra in set(out.iterdir()) - {out / name for name in ADAPTER_FILES}:
        shutil.rmtree(extra) if extra.is_dir() else extra.unlink()


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
