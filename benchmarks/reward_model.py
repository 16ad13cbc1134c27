"""A tiny reward model on real pairs, beside what knows only lengths or words.

`macpo train --reward` as a person runs it, on HH-RLHF harmless D1, from a random Llama whose
tokenizer is trained on D1; then the same held-out pairs by the rule that the shorter answer wins,
and by logistic regression on TF-IDF of the answers. Settings were chosen on D2 (--held-out d2); the
test pairs were scored once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.models import DATA, llama, tokenizer
from macpo_data import stats
from macpo_data.generation.reward_model import Scorer, accuracy
from macpo_data.loading.load import load_recipe
from macpo_data.models.base import Base
from macpo_run.policies import train_reward
from macpo_run.rounds import Run
from macpo_run.terminal.progress import progress

FILES = {part: str(DATA / f"hh_harmless_{part}.parquet") for part in ("d1", "d2", "test")}


def main() -> None:
    """One row per method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--held-out", choices=["d2", "test"], default="test")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="over the recipe")
    asked = parser.parse_args()
    other = "d2" if asked.held_out == "test" else "test"
    with tempfile.TemporaryDirectory() as folder:
        base = save_base(Path(folder) / "base", asked.width, asked.layers)
        files = {"d1": FILES["d1"], "d2": FILES[other], "test": FILES[asked.held_out]}
        sets = [f"data.{part}={{path: {path}}}" for part, path in files.items()]
        sets += [f"reward.base={base}", "reward.full=true", "train.dtype=float32"]
        sets += ["reward.learning_rate=1e-3", "reward.epochs=3", *asked.set]
        begun = time.monotonic()
        recipe = load_recipe("hh_harmless", sets)
        with Run(recipe, Path(folder) / "runs", progress, print) as run:
            trained = train_reward(run)
            learned = pl.read_parquet(trained / "pairs.parquet")
            held_out = run.context().prompts("test").drop_nulls(["chosen", "rejected"])
        manifest = json.loads((trained / "manifest.json").read_text("utf-8"))
        seconds = time.monotonic() - begun
    print(f"{len(learned)} pairs learned, {len(held_out)} held out ({asked.held_out})")
    tell(f"reward model, {seconds:.0f} s with all around it", manifest)
    sides = [held_out[side].str.len_chars() for side in ("chosen", "rejected")]
    tell("the shorter answer wins", accuracy(*[(-side.cast(float)).to_list() for side in sides]))
    tell("TF-IDF and logistic regression", accuracy(*by_words(learned, held_out)))


def tell(what: str, facts: dict[str, object]) -> None:
    """A line of a table."""
    right = stats.Estimate(**facts["held_out_accuracy"])  # type: ignore[arg-type]
    print(f"| {what} | {right.mean:.3f} [{right.low:.3f}, {right.high:.3f}] |")


def save_base(folder: Path, width: int, layers: int) -> Path:
    """A random Llama with a tokenizer of D1's answers."""
    texts = pl.read_parquet(FILES["d1"])
    fast = tokenizer(4096, [*texts["chosen"], *texts["rejected"]])
    llama(len(fast), width, layers).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def scorer_of(folder: Path) -> Scorer:
    """A classifier of one output whose folder brings its chat template."""
    return Scorer(Base(str(folder), None), None, "tokenizer", None, str(folder))


def by_words(learned: pl.DataFrame, held_out: pl.DataFrame) -> list[list[float | None]]:
    """Scores of chosen and rejected answers by a linear model of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    words.fit([*learned["chosen"], *learned["rejected"]])
    apart = words.transform(learned["chosen"]) - words.transform(learned["rejected"])
    signs = np.where(np.arange(len(learned)) % 2, 1, -1)
    model = LogisticRegression(fit_intercept=False, C=1.0)
    model.fit(apart.multiply(signs[:, None]).tocsr(), signs)
    return [
        list(words.transform(held_out[side]) @ model.coef_[0]) for side in ("chosen", "rejected")
    ]


if __name__ == "__main__":
    main()
