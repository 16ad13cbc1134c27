"""A judge that nobody trained on: the first layers of SmolLM2, fine-tuned on human pairs.

One purpose, harmless answers: HH-RLHF harmless of one turn and of several, and PKU-SafeRLHF. No
pair is learned whose prompt is in HH's test set, or in three tenths of all prompts, by their hash.
One of these is for choosing settings. The others measure the judge, and are left to experiments:
their D1, D2 and test are written beside it. The rest is learned, several pairs of one prompt too,
and loops made from good answers, which no person writes and small models do.

    python -m benchmarks.judge DIR --held-out calibration
    python -m benchmarks.judge DIR
    macpo eval --recipe smollm2_harmless --set eval.reward=DIR/judge

The second measures what the first one trained. Beside it, on the same held-out pairs: the rule of
length, and a linear model of words that learned all pairs, or those of this set alone. Means over
prompts; the judge minus the better linear one is paired.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl

from benchmarks.loops import loop
from benchmarks.models import DATA
from benchmarks.reward_model import by_words, scorer_of
from macpo_data import stats
from macpo_data.generation.reward_model import Scorer, rewards
from macpo_data.models import fits
from macpo_data.models.base import Base, load_chat, load_classifier
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.training import Lora, RewardTraining, Train
from macpo_data.schema import Message
from macpo_run.terminal.progress import progress
from macpo_run.training import make_bases
from macpo_train.job import Job
from macpo_train.train import train

ONE_TURN, TEST = "HH-harmless, one turn", "hh_harmless_test"
LEARNED = {
    ONE_TURN: ("hh_harmless_d1", "hh_harmless_d2"),
    "HH-harmless, several turns": ("hh_harmless_multiturn",),
    "PKU-SafeRLHF": ("pku_saferlhf",),
}
SIDES = ("chosen", "rejected")
LOOPS = 1_500  # pairs whose worse side is a loop
HELD_OUT, CALIBRATION = (0, 1), (2,)  # tenths

BASE = "weakened:packaged:smollm2-135m?drop=20-28"
TEMPLATE = "chatml"  # SmolLM2's own puts a system sentence before each prompt
REWARD = RewardTraining(epochs=1, learning_rate=3e-4)
LORA = Lora(r=16, alpha=32, targets=["all-linear"])
TRAIN = Train(
    dtype="bfloat16",
    max_length=192,
    truncation="keep_end",
    max_truncated=1.0,
    micro_batch_size=2,  # little padding
    warmup=0.05,
)


def main() -> None:
    """A row for each set and each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="folder of data, adapter and judge")
    parser.add_argument("--held-out", choices=["calibration", "test"], default="test")
    asked = parser.parse_args()
    write_parts(asked.out / "data")
    learned, held_out = split(asked.held_out)
    all_pairs = pl.concat(learned.values())
    judge = fit(all_pairs, asked.out)
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in learned.items())
    print(f"{len(all_pairs)} pairs learned: {counts}")
    for name, rows in held_out.items():
        prompts = rows["asked"].n_unique()
        print(f"{name}, {len(rows)} pairs of {prompts} prompts held out ({asked.held_out})")
        chosen, rejected = (rows[side].str.len_chars().cast(int) for side in SIDES)
        longer = (chosen - rejected).to_numpy()
        linear = [apart(by_words(pairs, rows)) for pairs in (all_pairs, learned[name])]
        ours = apart(score(judge, rows))
        best = max(map(right, linear), key=np.mean)
        for what, values in {
            "judge": right(ours),
            "linear model of words, all pairs": right(linear[0]),
            "linear model of words, these pairs": right(linear[1]),
            "the shorter answer wins": right(-longer),
            "judge minus the better linear one": right(ours) - best,
            "the judge prefers the longer": right(ours * np.sign(longer)),
        }.items():
            by_prompt = rows.select("asked", value=values).group_by("asked").agg(pl.mean("value"))
            of = stats.mean(by_prompt["value"].to_numpy())
            print(f"| {what} | {of.mean:.3f} [{of.low:.3f}, {of.high:.3f}] |", flush=True)


def write_parts(folder: Path) -> None:
    """The files of experiments: what of D1 and D2 the judge never sees, and the test set."""
    folder.mkdir(parents=True, exist_ok=True)
    d1, d2 = (read(file).filter(pl.col("tenth").is_in(HELD_OUT)) for file in LEARNED[ONE_TURN])
    for part, rows in {"d1": d1, "d2": d2, "test": read(TEST)}.items():
        rows.select("prompt", *SIDES).write_parquet(folder / f"{part}.parquet")


def split(held: str) -> tuple[dict[str, pl.DataFrame], dict[str, pl.DataFrame]]:
    """Pairs to learn and pairs held out (calibration or test), by set."""
    test = read(TEST)
    tenths = CALIBRATION if held == "calibration" else HELD_OUT
    learned, held_out = {}, {}
    for name, files in LEARNED.items():
        rows = pl.concat(map(read, files)).filter(~pl.col("asked").is_in(set(test["asked"])))
        learned[name] = rows.filter(~pl.col("tenth").is_in({*HELD_OUT, *CALIBRATION}))
        held_out[name] = rows.filter(pl.col("tenth").is_in(tenths))
    if held == "test":
        held_out[ONE_TURN] = test
    learned["loops"] = looping(pl.concat(learned.values())).head(LOOPS)
    held_out["loops"] = looping(held_out[ONE_TURN])
    return learned, held_out


def looping(pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs of the beginning of a good answer and a loop made from it, in a random order."""
    random = Random(0)
    rows = pairs.sample(fraction=1.0, shuffle=True, seed=0).to_dicts()
    drawn = ((row, loop(row["chosen"], random)) for row in rows)
    loops = [row | dict(zip(SIDES, sides, strict=True)) for row, sides in drawn if sides]
    return pl.DataFrame(loops, schema=pairs.schema)


def read(file: str) -> pl.DataFrame:
    """Prompts and both answers of a file beside the project, and which tenth each prompt is in."""
    rows = pl.read_parquet(DATA / f"{file}.parquet", columns=["prompt", *SIDES])
    turns = [last_turn(prompt) for prompt in rows["prompt"]]
    tenths = [int(hashlib.sha256(turn.encode()).hexdigest(), 16) % 10 for turn in turns]
    return rows.with_columns(asked=pl.Series(turns), tenth=pl.Series(tenths))


def last_turn(prompt: Sequence[Message]) -> str:
    """What the user says last, in one spelling."""
    return " ".join(prompt[-1]["content"].lower().split())


def fit(pairs: pl.DataFrame, out: Path) -> Scorer:
    """Train on the pairs, unless that is done; the result is a classifier of one folder."""
    folder, adapter, file = (out / name for name in ("judge", "adapter", "data/pairs.parquet"))
    if not (folder / "tokenizer.json").is_file():
        shuffled = pairs.sample(fraction=1.0, shuffle=True, seed=0)
        shuffled.select("prompt", *SIDES).write_parquet(file)
        make_bases([BASE], progress)
        base = Base(BASE, None)
        job = Job(
            dataset=file, column="chosen", base=base, chat_template=TEMPLATE, start=None,
            out=adapter, settings=REWARD, lora=LORA, train=TRAIN,
        )  # fmt: skip
        with progress(f"training the judge on {len(pairs)} pairs") as report:
            train(report, job)
        model: Any = load_classifier(base, "bfloat16", new_head=True)
        fits.load_adapter(model, adapter, base).merge_and_unload().save_pretrained(folder)
        chat = load_chat(base, TEMPLATE)
        chat.tokenizer.chat_template = chat.template
        chat.tokenizer.save_pretrained(folder)
    return scorer_of(folder)


def score(judge: Scorer, rows: pl.DataFrame) -> list[list[float | None]]:
    """Rewards of chosen and rejected answers."""
    answers = pl.concat(
        rows.select("prompt", response=side, finish_reason=pl.lit("stop")) for side in SIDES
    )
    with progress("scoring held-out pairs") as report:
        both = rewards(report, Engine(), judge, answers)
    return [both[: len(rows)], both[len(rows) :]]


def apart(scores: list[list[float | None]]) -> np.ndarray:
    """By how much each chosen answer scores higher."""
    chosen, rejected = (np.array(side, dtype=float) for side in scores)
    return np.asarray(chosen - rejected)


def right(higher: np.ndarray) -> np.ndarray:
    """1 where the chosen answer scores higher, a half at a tie."""
    return np.asarray((np.sign(higher) + 1) / 2)


if __name__ == "__main__":
    main()
