"""The LoRA adapter to train: created or loaded onto its base model, checked, and saved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from macpo_data.errors import ModelError, first_line
from macpo_data.models import fits
from macpo_data.models.base import Base, load_model
from macpo_data.models.weights import ADAPTER_FILES
from macpo_data.outside import parse_object, read_bytes
from macpo_data.recipe.training import DPO
from macpo_train.job import Job


def sharded() -> bool:
    """Whether the processes shard the model among them (FSDP), as accelerate is told."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def policy(job: Job) -> Any:
    """The base with the adapter to train: a copy of the starting one, or a new one.

    Raises:
        ModelError: the starting adapter does not belong to this base.
    """
    model = load_model(job.base, job.train.dtype, job.train.quantization, place=not sharded())
    if job.start is None:
        return with_adapter(model, job, "CAUSAL_LM")
    model = fits.load_adapter(model, job.start, job.base, trainable=True)
    _check_whole(job.start, job.base, model)
    return model


def with_adapter(model: Any, job: Job, task: str) -> Any:
    """A model with a new adapter of the job's shape; task is one of peft's.

    Raises:
        ModelError: it has no matrix of `lora.targets`.
    """
    from peft import LoraConfig, get_peft_model

    reads_head = isinstance(job.settings, DPO)
    targets, _ = fits.lora_targets(model, job.base, job.lora.targets, reads_head)
    config = LoraConfig(
        r=job.lora.r,
        lora_alpha=job.lora.alpha,
        lora_dropout=job.lora.dropout,
        target_modules=targets,
        use_rslora=job.lora.rslora,
        task_type=task,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason, names = first_line(error).split(". ")[0], ", ".join(fits.matrices(model))
        raise ModelError(f"lora.targets: {reason}; {job.base.id} has {names}") from None


def gathered(model: Any) -> dict[str, Any]:
    """The trained weights, whole where each process holds a shard of them."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {n: getattr(p, "full_tensor", lambda p=p: p)().cpu() for n, p in trained.items()}


def _check_whole(folder: Path, base: Base, model: Any) -> None:
    """Refuse an adapter that leaves out layers of the base, which peft would begin anew."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_FILES[1], "pt") as file:
        saved = set(file.keys())
    missing = set(get_peft_model_state_dict(model, save_embedding_layers=False)) - saved
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
    config = parse_object(read_bytes(path))
    config["base_model_name_or_path"] = base.id
    config["revision"] = base.revision
    if isinstance(config["target_modules"], list):  # a set, whose order changes from run to run
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    for extra in set(out.iterdir()) - {out / name for name in ADAPTER_FILES}:
        shutil.rmtree(extra) if extra.is_dir() else extra.unlink()
