"""LLaMA-Factory: it finds datasets by their names in a file dataset_info.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.forms.shape import Shape
from macpo_data.forms.trainer import (
    CONVERSATIONS,
    WANTS_CONVERSATIONS,
    Answer,
    Form,
    Trainer,
    Tree,
    Use,
)
from macpo_data.schema import MESSAGE, MESSAGES

SHAREGPT = Form(
    "_sharegpt",
    {"prompt": MESSAGES, "chosen": MESSAGE, "rejected": MESSAGE, "prompt_id": pl.String()},
    lambda rows: rows.with_columns(pl.col("chosen", "rejected").list.first()),
    "each side one message.",
)
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def _reads(shape: Shape) -> Answer:
    if shape.prompt == "messages" and shape.sides == "message":
        return True, "formatting: sharegpt, ranking: true"
    return False, "wants each side as one message; as lists, rows vanish without a word"


def _fine_tunes(shape: Shape) -> Answer:
    if shape.conversations:
        return True, "stage: sft, formatting: sharegpt"
    return False, WANTS_CONVERSATIONS


def _dataset_info(tree: Tree, repo: str | None) -> dict[str, bytes]:
    """Each dataset by name, from the Hub, and once more as NAME_local for a copy on disk."""
    info: dict[str, Any] = {}
    for name, configs in sorted(tree.items()):
        pairs = f"{name}{SHAREGPT.suffix}" in configs
        config = f"{name}{(SHAREGPT if pairs else CONVERSATIONS).suffix}"
        ranked = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
        shape = {
            "formatting": "sharegpt",
            **({"ranking": True} if pairs else {}),
            "columns": ranked if pairs else {"messages": "messages"},
            "tags": _TAGS,
        }
        if repo is not None:
            info[name] = {"hf_hub_url": repo, "subset": config, **shape}
        # A copy of the tree is read by its folder: LLaMA-Factory takes all files in it.
        folder = str(Path(configs[config][0]).parent)
        info[f"{name}_local"] = {"file_name": folder, **shape}
    text = json.dumps(info, indent=1, sort_keys=True, ensure_ascii=False)
    return {"dataset_info.json": f"{text}\n".encode()}


TRAINER = Trainer(
    "llama-factory",
    "LLaMA-Factory",
    Use(
        SHAREGPT,
        """\
stage: dpo
dataset_dir: REMOTE:{{ place }}
dataset: {{ name }}
# a copy on disk: dataset_dir: FOLDER, dataset: {{ name }}_local
pref_beta: {{ beta }}
pref_ftx: {{ gamma }}""",
        _reads,
    ),
    Use(
        CONVERSATIONS,
        """\
stage: sft
dataset_dir: REMOTE:{{ place }}
dataset: {{ name }}
# a copy on disk: dataset_dir: FOLDER, dataset: {{ name }}_local""",
        _fine_tunes,
    ),
    files=_dataset_info,
)
