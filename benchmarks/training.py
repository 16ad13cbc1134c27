"""DPO + SFT in pairs per second: shared against plain, and against trl's own command.

Every variant trains in a process of its own on the same pairs, model, dtype, batch and adapter,
the variants in turn. The time is that of the training loop and of the reference passes; loading,
tokenising and imports are left out on all sides. `trl dpo` runs its own script with its own flags.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.models import dialogues, save_base
from benchmarks.rows import row
from macpo_data.models import Base
from macpo_data.recipe import DPO, Engine, Lora, Train

VARIANTS = ("shared", "plain", "shared, reference computed", "trl dpo", "trl dpo, precomputed")
BATCH, RATE = 8, 1e-4
TARGETS = ["q_proj", "v_proj"]


def prepare(folder: Path, pairs: int) -> None:
    """A base, the pairs with their scores under it, and the same pairs as trl reads them."""
    from macpo_data.engines import ScoreRequest, Voice
    from macpo_data.engines.transformers import TransformersEngine

    base = Base(str(save_base(folder / "base")), None)
    engine = TransformersEngine(base, Engine(batch_size=24, dtype="float32"))
    voice = Voice(None, "tokenizer", "base")
    frame = dialogues(pairs)
    (folder / "trl").mkdir()
    frame.with_columns(
        pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.col(side))).alias(side)
        for side in ("chosen", "rejected")
    ).write_parquet(folder / "trl" / "train.parquet")
    for side in ("chosen", "rejected"):
        requests = [
            ScoreRequest(voice, r["prompt"], r[side], True, "a")
            for r in frame.iter_rows(named=True)
        ]
        scores = dict(engine.score(requests))
        for name in ("sum_logprob", "num_tokens", "eot_logprob"):
            values = [getattr(scores[i], name) for i in range(len(frame))]
            frame = frame.with_columns(pl.Series(f"{side}_{name}", values))
    frame.write_parquet(folder / "pairs.parquet")
    (folder / "scored_under.json").write_text(json.dumps(engine.scored_under(voice)))


def timed(owner: Any, name: str, spent: list[float]) -> None:
    """Add up the seconds that a function takes."""
    usual = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return usual(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begun)

    setattr(owner, name, call)


def one(
    variant: str, folder: Path, pairs: int, micro: int, checkpointing: bool, epochs: int
) -> None:
    """Train one variant and print its facts."""
    import transformers

    spent: list[float] = []
    timed(transformers.Trainer, "train", spent)
    out = folder / f"out-{time.time_ns()}"
    if variant.startswith("trl"):
        run_trl(variant, folder, out, micro, checkpointing, epochs, spent)
        loss = json.loads(next(out.glob("checkpoint-*/trainer_state.json")).read_text())
        losses = [logs["loss"] for logs in loss["log_history"] if "loss" in logs]
    else:
        losses = run_macpo(variant, folder, out, micro, checkpointing, epochs, spent)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": epochs * pairs / sum(spent), "peak": peak, "losses": losses}))


def run_macpo(
    variant: str,
    folder: Path,
    out: Path,
    micro: int,
    checkpointing: bool,
    epochs: int,
    spent: list[float],
) -> list[float]:
    """As `macpo train` does it."""
    from macpo_train import dpo
    from macpo_train.train import Job, train

    timed(dpo, "reference_logprobs", spent)
    stored = "computed" not in variant
    facts = train(
        lambda *_: None,
        Job(
            dataset=folder / "pairs.parquet",
            column="chosen",
            base=Base(str(folder / "base"), None),
            chat_template="tokenizer",
            start=None,
            out=out,
            settings=DPO(
                epochs=epochs,
                learning_rate=RATE,
                batch_size=BATCH,
                sft_normalization="token",
                reference="base",
            ),
            lora=Lora(targets=TARGETS),
            train=Train(
                dtype="float32",
                max_length=2048,
                micro_batch_size=micro,
                gradient_checkpointing=checkpointing,
                shared_prompt="shared" in variant,
            ),
            scored_under=json.loads((folder / "scored_under.json").read_text()) if stored else None,
        ),
    )
    assert bool(facts["reference_logprobs"]["stored"]) == stored
    return [step["loss"] for step in facts["history"]]


def run_trl(
    variant: str,
    folder: Path,
    out: Path,
    micro: int,
    checkpointing: bool,
    epochs: int,
    spent: list[float],
) -> None:
    """As `trl dpo` does it: the script that it starts, with flags as a person types them."""
    import runpy

    from trl import DPOTrainer

    timed(DPOTrainer, "_precompute_ref_logps", spent)
    flags: dict[str, Any] = {
        "model_name_or_path": folder / "base",
        "dataset_name": folder / "trl",
        "output_dir": out,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": BATCH // micro,
        "num_train_epochs": epochs,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "max_length": 2048,
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": checkpointing,
        "use_peft": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "save_only_model": True,
        "seed": 0,
        "precompute_ref_log_probs": "precomputed" in variant,
        "dataloader_pin_memory": False,
        "report_to": "none",
    }
    words = ["dpo.py", "--loss_type", "sigmoid", "sft", "--loss_weights", "1.0", "0.2"]
    words += ["--lora_target_modules", *TARGETS]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    sys.argv = words
    runpy.run_module("trl.scripts.dpo", run_name="__main__")


def main() -> None:
    """Measure all variants in turn, and print a row for each pair of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true")
    # With one, precomputing can at best tie: the reference reads each pair once either way.
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return one(
            asked.one, asked.folder, asked.pairs, asked.micro, asked.checkpointing, asked.epochs
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, asked.pairs)
        found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        same = ["--pairs", str(asked.pairs), "--micro", str(asked.micro), "--folder", name]
        same += ["--epochs", str(asked.epochs)]
        same += ["--checkpointing"] if asked.checkpointing else []
        for _ in range(asked.repeats):
            for variant, facts in found.items():
                command = [sys.executable, "-m", "benchmarks.training", "--one", variant, *same]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{variant}: {done.stderr[-2000:]}")
                facts.append(json.loads(done.stdout.strip().split("\n")[-1]))
    for variant in VARIANTS:
        rates = [facts["rate"] for facts in found[variant]]
        ratios = [
            a["rate"] / b["rate"] for a, b in zip(found["shared"], found[variant], strict=True)
        ]
        peak = statistics.median(facts["peak"] for facts in found[variant])
        losses = [facts["losses"] for facts in found[variant]]
        row(
            f"DPO + SFT on {asked.pairs} HH pairs of several turns, batch {BATCH} in parts of "
            f"{asked.micro}, epochs {asked.epochs}"
            f"{', checkpointing' if asked.checkpointing else ''}: {variant}, median "
            f"of {asked.repeats}",
            f"{statistics.median(rates):.2f} pairs/s; shared is {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f}); peak {peak:,.0f} MiB; "
            f"loss {losses[0][0]:.4f} to {losses[0][-1]:.4f}",
            f"python -m benchmarks.training --epochs {asked.epochs}"
            + (" --checkpointing" if asked.checkpointing else ""),
        )


if __name__ == "__main__":
    main()
