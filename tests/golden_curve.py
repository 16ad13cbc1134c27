"""A golden loss curve: twenty steps of DPO + SFT on a tiny model.

Record it anew, after a change that is meant to change it, with `python tests/golden_curve.py`.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from conftest import make_tiny_base

from macpo_data.models.base import Base
from macpo_data.recipe.training import DPO, Lora, Train
from macpo_data.schema import MESSAGES
from macpo_data.versions import versions
from macpo_train.job import Job
from macpo_train.train import train

PATH = Path(__file__).parent / "golden" / "dpo_curve.json"
SETTINGS = DPO(epochs=4, learning_rate=5e-3, batch_size=4, reference="previous")
LORA = Lora(targets=["q_proj", "v_proj", "o_proj"])
TRAIN = Train(dtype="float32")
TERMS = ("loss", "dpo", "sft", "margin", "grad_norm")


def curve(folder: Path) -> dict[str, list[float]]:
    """Train on twenty made-up pairs from a new adapter; each term, step by step."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What of {'the ' * (n % 4)}number {n}?"}],
            "chosen": f"It is {n}. " * (1 + n % 3),
            "rejected": "No idea " * (1 + n % 5),
        }
        for n in range(20)
    ]
    dataset = folder / "pairs.parquet"
    pl.DataFrame(rows, schema_overrides={"prompt": MESSAGES}).write_parquet(dataset)
    base = Base(str(make_tiny_base(folder / "base")), None)
    job = Job(dataset, "chosen", base, "tokenizer", None, folder / "out", SETTINGS, LORA, TRAIN)
    history: list[dict[str, Any]] = train(lambda *_: None, job)["history"]
    return {term: [round(step[term], 6) for step in history] for term in TERMS}


def main() -> None:
    """Record the curve with its circumstances."""
    with tempfile.TemporaryDirectory() as folder:
        measured = curve(Path(folder))
    circumstances = {
        "command": "python tests/golden_curve.py",
        "dpo": SETTINGS.model_dump(),
        "lora": LORA.model_dump(),
        "train": TRAIN.model_dump(),
        "machine": platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **versions(),
    }
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(
        json.dumps({"circumstances": circumstances, "curve": measured}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
