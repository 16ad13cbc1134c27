"""All weights of a model to train: loaded whole, and saved as a model that anybody can load.

They are trained in float32, whatever the numbers in which they are multiplied: the small steps of
full fine-tuning are lost in the eight digits of bfloat16 (a step of 1e-6 on a weight of 0.02 rounds
to nothing). With `train.dtype=bfloat16` that is mixed precision, and the checkpoint is bfloat16.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from macpo_data.models.base import Base, load_model
from macpo_data.models.chat import Chat
from macpo_data.models.weights import CONFIG
from macpo_data.outside import parse_object, read_bytes
from macpo_train.job import Job

SHARD = "5GB"  # at most, of a file


def trained_from(base: Base, start: Path | None) -> Base:
    """The base with the weights of a checkpoint, or its own."""
    return base if start is None else replace(base, checkpoint=str(start))


def load(base: Base, start: Path | None, place: bool) -> Any:
    """The model of a checkpoint, or of the base, with weights that can be trained.

    Raises:
        ModelError: it cannot be loaded.
    """
    return load_model(trained_from(base, start), "float32", place=place)


def put(model: Any, base: Base, start: Path | None) -> None:
    """Give a model that is not trained yet the weights of another checkpoint of its base.

    Raises:
        ModelError: it cannot be loaded.
    """
    model.load_state_dict(load(base, start, place=False).state_dict())


def save(model: Any, job: Job, chat: Chat, weights: dict[str, Any]) -> None:
    """Write a model with its tokenizer, in the numbers of `train.dtype`.

    The tokenizer gets the template under which the model was trained.

    Args:
        model: whose configuration is written.
        job: the training.
        chat: how its rows were rendered.
        weights: whole, by name.
    """
    import torch

    dtype = getattr(torch, job.train.dtype)
    numbers = {name: w.to(dtype) if w.is_floating_point() else w for name, w in weights.items()}
    shutil.rmtree(job.out / "trainer", ignore_errors=True)
    model.save_pretrained(job.out, state_dict=numbers, max_shard_size=SHARD)
    path = job.out / CONFIG
    config = parse_object(read_bytes(path))
    config |= {"dtype": job.train.dtype, "_name_or_path": job.base.id}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    chat.tokenizer.chat_template = chat.template
    chat.tokenizer.save_pretrained(job.out)
