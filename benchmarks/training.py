"""DPO + SFT in pairs per second: shared against plain, and against trl's own command.

Every variant trains in a process of its own on the same pairs, model, dtype, batch and adapter,
the variants in turn. The time is that of the training loop and of the reference passes; loading,
tokenising and imports are left out on all sides. `trl dpo` runs its own script with its own flags.
With `--warmup` each process trains once before it measures, so that kernels are compiled by then;
what that training took longer is told as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.models import add_model_options, dialogues, model_flags, model_words, save_base
from benchmarks.rows import clock, forget_peak, peak_mib, row
from macpo_data.models.base import Base
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.training import DPO, Finetuning, Lora, Train

USUAL = ("shared", "plain", "shared, reference computed", "trl dpo", "trl dpo, precomputed")
VARIANTS = (
    *USUAL,
    "trl dpo, its defaults",  # which compute activations twice
    "trl dpo, precomputed, liger",
)
BATCH, RATE = 8, 1e-4
TARGETS = ["q_proj", "v_proj"]


@dataclass(frozen=True)
class Setting:
    """What all variants have alike."""

    folder: Path
    pairs: int
    micro: int
    checkpointing: bool
    epochs: int
    dtype: str
    finetuning: Finetuning


def prepare(folder: Path, pairs: int, size: str, dtype: str) -> None:
    """A base, the pairs with their scores under it, and the same pairs as trl reads them."""
    from macpo_data.engines.protocol import ScoreRequest, Voice
    from macpo_data.engines.transformers import TransformersEngine

    base = Base(str(save_base(folder / "base", size, dtype)), None)
    engine = TransformersEngine(base, Engine(batch_size=24, dtype=dtype))  # type: ignore[arg-type]
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
        begun = clock()
        try:
            return usual(*args, **kwargs)
        finally:
            spent.append(clock() - begun)

    setattr(owner, name, call)


def one(variant: str, setting: Setting, repeats: int) -> None:
    """Train one variant, once or several times, and print the facts of each time."""
    import transformers

    spent: list[float] = []
    timed(transformers.Trainer, "train", spent)
    if variant.startswith("trl"):
        from trl import DPOTrainer

        timed(DPOTrainer, "_precompute_ref_logps", spent)
    else:
        from macpo_train import dpo

        timed(dpo, "reference_logprobs", spent)
    for _ in range(repeats):
        spent.clear()
        forget_peak()
        out = setting.folder / f"out-{time.time_ns()}"
        run = run_trl if variant.startswith("trl") else run_macpo
        losses = run(variant, setting, out)
        facts = {"seconds": sum(spent), "peak": peak_mib(), "losses": losses}
        print(json.dumps(facts), flush=True)


def run_macpo(variant: str, setting: Setting, out: Path) -> list[float]:
    """As `macpo train` does it."""
    from macpo_train.job import Job
    from macpo_train.train import train

    folder, stored = setting.folder, "computed" not in variant
    facts = train(
        lambda *_: None,
        Job(
            dataset=folder / "pairs.parquet",
            column="chosen",
            base=Base(str(folder / "base"), None),
            chat_template="tokenizer",
            start=None,
            finetuning=setting.finetuning,
            out=out,
            settings=DPO(
                epochs=setting.epochs,
                learning_rate=RATE,
                batch_size=BATCH,
                sft_normalization="token",
                reference="base",
            ),
            lora=Lora(targets=TARGETS),
            train=Train(
                dtype=setting.dtype,  # type: ignore[arg-type]
                max_length=2048,
                micro_batch_size=setting.micro,
                gradient_checkpointing=setting.checkpointing,
                shared_prompt="shared" in variant,
            ),
            scored_under=json.loads((folder / "scored_under.json").read_text()) if stored else None,
        ),
    )
    assert bool(facts["reference_logprobs"]["stored"]) == stored
    assert (facts["shared_prompt"] is True) == ("shared" in variant), facts["shared_prompt"]
    return [step["loss"] for step in facts["history"]]


def run_trl(variant: str, setting: Setting, out: Path) -> list[float]:
    """As `trl dpo` does it: the script that it starts, with flags as a person types them."""
    import runpy

    import torch

    on_gpu = torch.cuda.is_available()
    flags: dict[str, Any] = {
        "model_name_or_path": setting.folder / "base",
        "dataset_name": setting.folder / "trl",
        "output_dir": out,
        "per_device_train_batch_size": setting.micro,
        "gradient_accumulation_steps": BATCH // setting.micro,
        "num_train_epochs": setting.epochs,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "max_length": 2048,
        "dtype": setting.dtype,
        "bf16": setting.dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "gradient_checkpointing": setting.checkpointing,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "save_only_model": True,
        "seed": 0,
        "precompute_ref_log_probs": "precomputed" in variant,
        "use_liger_kernel": "liger" in variant,
        "dataloader_pin_memory": on_gpu,
        "report_to": "none",
    }
    if "defaults" in variant:
        del flags["gradient_checkpointing"]
    words = ["dpo.py", "--loss_type", "sigmoid", "sft", "--loss_weights", "1.0", "0.2"]
    if setting.finetuning == "lora":
        flags |= {"use_peft": True, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
        words += ["--lora_target_modules", *TARGETS]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    sys.argv = words
    runpy.run_module("trl.scripts.dpo", run_name="__main__")
    state = json.loads(next(out.glob("checkpoint-*/trainer_state.json")).read_text())
    return [logs["loss"] for logs in state["log_history"] if "loss" in logs]


def main() -> None:
    """Measure all variants in turn, and print a row for each of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true")
    # With one, precomputing can at best tie: the reference reads each pair once either way.
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--finetuning", choices=["lora", "full"], default="lora")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=USUAL)
    parser.add_argument("--warmup", action="store_true", help="repeat in one process, from warm")
    add_model_options(parser)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    times = asked.repeats + 1 if asked.warmup else 1  # in each process
    if asked.one:
        setting = Setting(
            asked.folder,
            asked.pairs,
            asked.micro,
            asked.checkpointing,
            asked.epochs,
            asked.dtype,
            asked.finetuning,
        )
        return one(asked.one, setting, times)
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), asked.pairs, asked.size, asked.dtype)
        facts: dict[str, list[dict[str, Any]]] = {variant: [] for variant in asked.variants}
        same = [*sys.argv[1:], "--folder", name]
        for _ in range(1 if asked.warmup else asked.repeats):
            for variant in facts:
                command = [sys.executable, "-m", "benchmarks.training", *same, "--one", variant]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.stderr.write(f"{variant}: {done.stderr[-2000:]}\n")
                    continue
                lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
                facts[variant] += [json.loads(line) for line in lines[-times:]]
    show(asked, facts)


def show(asked: argparse.Namespace, facts: dict[str, list[dict[str, Any]]]) -> None:
    """A row for each variant, held against the first."""
    first = asked.variants[0]
    flags = f" --epochs {asked.epochs}" + " --checkpointing" * asked.checkpointing
    flags += " --finetuning full" * (asked.finetuning == "full")
    flags += model_flags(asked.size, asked.dtype)
    for variant, runs in facts.items():
        if not runs:
            continue
        compiling = ""
        if asked.warmup:
            cold, *runs = runs
            extra = cold["seconds"] - statistics.median(f["seconds"] for f in runs)
            compiling = f"; {extra:.1f} s more when cold"
        rates = [asked.epochs * asked.pairs / f["seconds"] for f in runs]
        ratios = [
            b["seconds"] / a["seconds"]
            for a, b in zip(facts[first][-len(runs) :], runs, strict=False)
        ]
        against = f"{first} is {statistics.median(ratios):.2f}x " if ratios else ""
        spread = f"({min(ratios):.2f}-{max(ratios):.2f}); " if ratios else ""
        peak = statistics.median(f["peak"] for f in runs)
        row(
            f"DPO + SFT on {asked.pairs} HH pairs of several turns, batch {BATCH} in parts of "
            f"{asked.micro}, epochs {asked.epochs}"
            f"{', checkpointing' if asked.checkpointing else ''}"
            f"{', all weights' if asked.finetuning == 'full' else ''}"
            f"{model_words(asked.size, asked.dtype)}: {variant}, median of {asked.repeats}",
            f"{statistics.median(rates):.2f} pairs/s; {against}{spread}peak {peak:,.0f} MiB; "
            f"loss {runs[0]['losses'][0]:.4f} to {runs[0]['losses'][-1]:.4f}{compiling}",
            f"python -m benchmarks.training{flags}",
        )


if __name__ == "__main__":
    main()
