"""What a policy's folder holds: an adapter beside its base, or a checkpoint of all weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from macpo_data.outside import parse_object, read_bytes

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
CONFIG = "config.json"  # of a checkpoint, as of every model of transformers


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds all weights of a model, and no adapter."""
    return (folder / CONFIG).is_file() and not (folder / ADAPTER_FILES[0]).is_file()


def weights_sha256(folder: Path) -> str:
    """Identify an adapter or a checkpoint by its weights and its configuration, 64 hex digits.

    peft writes the set of target modules in an order that changes from run to run, so lists in an
    adapter's configuration are sorted first.
    """
    if is_checkpoint(folder):
        return _checkpoint_sha256(folder)
    config = parse_object(read_bytes(folder / ADAPTER_FILES[0]))
    config = {k: sorted(v) if isinstance(v, list) else v for k, v in config.items()}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update((folder / ADAPTER_FILES[1]).read_bytes())
    return digest.hexdigest()


def _checkpoint_sha256(folder: Path) -> str:
    digest = hashlib.sha256(read_bytes(folder / CONFIG))
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
