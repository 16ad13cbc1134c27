"""Make a base of this machine's cache from a GGUF file: once, pinned by the file's sha256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import pre_tokenizers

from macpo_data.bases.gguf import DIGITS_APART, flaws, head_of
from macpo_data.bases.named import folder_of, gguf_file, is_ready, print_of
from macpo_data.errors import ModelError, first_line
from macpo_data.models.worker import Report

PACKAGES = ("torch", "transformers", "tokenizers")


def convert(report: Report, base: str) -> Path:
    """Convert a GGUF file, unless that is done, and return the new folder.

    `report` gets the number of parts done and in all. Another process that converts the same file
    is waited for.

    Raises:
        ModelError: it cannot be read.
    """
    target, file = folder_of(base), gguf_file(base)
    if target is None or file is None:
        raise ModelError(f"{base} is no GGUF file")
    for flaw in flaws(file, needs_template=False):
        raise ModelError(flaw)
    with new_folder(target) as folder:
        if folder:
            try:
                _write(file, folder, report)
            except (OSError, ValueError, NotImplementedError, KeyError, RuntimeError) as error:
                raise ModelError(f"cannot convert {file}: {first_line(error)}") from None
            write_manifest(folder, base, {"gguf": file.name, "made_from": print_of(base)})
            report(3, 3, "parts")
    return target


def _write(file: Path, folder: Path, report: Report) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report(0, 3, "parts")
    named = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    dtype = getattr(torch, head_of(file).dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(**named, dtype=dtype)
    report(1, 3, "parts")
    # Its weights are plain numbers now; what says otherwise would refuse to save them.
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    report(2, 3, "parts")
    tokenizer: Any = AutoTokenizer.from_pretrained(**named)
    if head_of(file).values.get("tokenizer.ggml.pre") in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    tokenizer.save_pretrained(folder)


@contextmanager
def new_folder(target: Path) -> Iterator[Path | None]:
    """A folder that becomes `target` at the end; None where another process made it meanwhile.

    What an earlier process left half done is thrown away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if is_ready(target):
            yield None
            return
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)


def write_manifest(folder: Path, base: str, facts: dict[str, Any]) -> None:
    """What a base was made from and with, and the sha256 of its files; written last."""
    manifest = {
        "base": base,
        **facts,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {package: version(package) for package in PACKAGES},
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
