"""One function for each trainer: its own loading or conversion, on the rendered folder.

Each checks that all rows arrive and that prompt, chosen and rejected are what they were.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import polars as pl

NAME = "round_1_student"
# What torchtune imports, and its data code does not use.
TORCHTUNE = (
    "torchao", "torchao.dtypes", "torchao.dtypes.nf4tensor", "torchao.quantization",
    "torchao.quantization.qat", "torchao.quantization.qat.linear",
    "torchao.quantization.quant_api", "torchao.utils", "torchao.prototype", "torchvision",
    "torchvision.transforms", "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)  # fmt: skip


def stand_in(*names: str) -> None:
    """Put an empty module where a package imports one that its data code does not use."""
    for name in names:
        module: Any = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        module.__version__ = "0.12.0"
        module.__getattr__ = lambda attribute: MagicMock(name=attribute)
        sys.modules[name] = module


def expected(tree: Path) -> list[dict[str, Any]]:
    """The store's own pairs."""
    (path,) = tree.glob(f"macpo/{NAME}/data/*/pairs.parquet")
    return pl.read_parquet(path).to_dicts()


def tokenizer() -> Any:
    """A real tokenizer with a chat template, trained on the spot."""
    from macpo_train.pretrain import train_tokenizer

    return train_tokenizer()


def llamafactory(tree: Path) -> int:
    """parser, loader and converter as `llamafactory-cli train` calls them, on a local folder."""
    stand_in("torchaudio")
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list

    (attribute,) = get_dataset_list([f"{NAME}_local"], str(tree))
    data = SimpleNamespace(
        dataset_dir=str(tree), streaming=False, max_samples=None, preprocessing_num_workers=None,
        overwrite_cache=True, media_dir=None,
    )  # fmt: skip
    model = SimpleNamespace(cache_dir=None, hf_hub_token=None)
    training = SimpleNamespace(local_process_index=0, dataloader_num_workers=0)
    rows = list(_load_single_dataset(attribute, model, data, training))
    for row, pair in zip(rows, expected(tree), strict=True):
        assert [m["content"] for m in row["_prompt"]] == [m["content"] for m in pair["prompt"]]
        assert [m["content"] for m in row["_response"]] == [pair["chosen"], pair["rejected"]]
    return len(rows)


def torchtune(tree: Path) -> int:
    """Its preference dataset, which loads, converts to messages and tokenises."""
    stand_in(*TORCHTUNE)
    from torchtune.datasets import preference_dataset

    class Bytes:
        """A tokenizer of bytes, that keeps the mask of each message."""

        def tokenize_messages(self, messages: list[Any]) -> tuple[list[int], list[bool]]:
            pairs = [(b, m.masked) for m in messages for b in m.text_content.encode()]
            return [b for b, _ in pairs], [masked for _, masked in pairs]

    rows = preference_dataset(Bytes(), source=str(tree), name=f"{NAME}_full")
    for at, pair in enumerate(expected(tree)):
        prompt = "".join(m["content"] for m in pair["prompt"]).encode()
        earlier = "".join(m["content"] for m in pair["prompt"] if m["role"] == "assistant")
        for side in ("chosen", "rejected"):
            assert bytes(rows[at][f"{side}_input_ids"]) == prompt + pair[side].encode()
            kept = [label for label in rows[at][f"{side}_labels"] if label != -100]
            # The user's turns carry no loss; the assistant's earlier ones do, in torchtune.
            assert bytes(kept) == (earlier + pair[side]).encode()
    return len(rows)


def openrlhf(tree: Path) -> int:
    """Its preprocessing of a row, with --data.apply_chat_template, on the default configuration."""
    from datasets import load_dataset
    from openrlhf.datasets.reward_dataset import preprocess_data

    rows = load_dataset(str(tree), split="train")
    template = tokenizer().apply_chat_template
    for row, pair in zip(rows, expected(tree), strict=True):
        prompt, chosen, rejected, _ = preprocess_data(
            row, None, "prompt", "chosen", "rejected", template, is_dpo=True
        )
        assert pair["prompt"][-1]["content"] in prompt
        assert pair["chosen"] in chosen and pair["rejected"] in rejected
        assert prompt == template(pair["prompt"], tokenize=False, add_generation_prompt=True)
    return len(rows)


def axolotl(tree: Path) -> int:
    """Its DPO strategy chat_template.default with the fields of the card."""
    from axolotl.prompt_strategies.dpo.chat_template import default
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    fields = {
        "field_messages": "prompt",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "chat_template": "tokenizer_default",
    }
    cfg = DictDefault({"chat_template": "tokenizer_default", "datasets": [fields]})
    transform, _ = default(cfg)
    known = tokenizer()
    rows = load_dataset(str(tree), NAME, split="train")
    for row, pair in zip(rows, expected(tree), strict=True):
        seen = transform(row, tokenizer=known)
        assert pair["prompt"][-1]["content"] in seen["prompt"]
        assert seen["chosen"].startswith(pair["chosen"])
        assert seen["rejected"].startswith(pair["rejected"])
    return len(rows)


def alignment_handbook(tree: Path) -> int:
    """Its loader with a configuration, and its split into prompt, chosen and rejected for DPO."""
    # The one fetches a dataset when it is imported, the others are of an older hub library.
    stand_in("alignment.decontaminate", "alignment.model_utils", "alignment.release")
    from alignment.data import apply_chat_template, get_datasets

    known = tokenizer()
    columns = ["chosen", "rejected"]
    rows = get_datasets({str(tree): 1.0}, ["train"], [f"{NAME}_full"], columns, shuffle=False)
    for row, pair in zip(rows["train"], expected(tree), strict=True):
        seen = apply_chat_template(row, known, "dpo", auto_insert_empty_system_msg=False)
        assert seen["text_prompt"] == known.apply_chat_template(pair["prompt"], tokenize=False)
        assert pair["chosen"] in seen["text_chosen"] and pair["rejected"] in seen["text_rejected"]
    return len(rows["train"])


READERS: dict[str, Callable[[Path], int]] = {
    "llamafactory": llamafactory,
    "torchtune": torchtune,
    "openrlhf": openrlhf,
    "axolotl": axolotl,
    "alignment_handbook": alignment_handbook,
}

if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    name, folder = sys.argv[1:]
    count = READERS[name](Path(folder))
    print(f"{name} {version(name.replace('_', '-'))}: {count} pairs read as they were")
