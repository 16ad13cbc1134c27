"""A judge that nobody trained on: a head on SmolLM2's frozen states, on human pairs.

The pairs are those of HH-RLHF of several turns and of PKU-SafeRLHF. One whose last user turn occurs
in a D1, D2 or test of the recipes is left out. The frozen base reads each answer once, up to one of
its layers; its normalised state at the answer's end is kept on disk. A logistic regression on the
differences is the reward. Beside it stand the rules of length and a linear model of words.

    python -m benchmarks.judge --base packaged:smollm2-135m --rows 600 --layer 12 --out DIR

Frozen states in place of fine-tuning: one pass, and none backwards, is what two cores bear. Layers
and head are written as a sequence classifier: `macpo eval --set eval.reward=DIR/judge`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.models import DATA
from benchmarks.reward_model import by_words
from macpo_data import stats
from macpo_data.generation.reward_model import accuracy
from macpo_data.models.base import Base, load_chat, load_model, load_tokenizer
from macpo_data.schema import Message
from macpo_run.terminal.progress import progress
from macpo_run.training import make_bases

SETS = {
    "HH-harmless, turns": "hh_harmless_multiturn",
    "HH-helpful, turns": "hh_helpful_multiturn",
    "PKU-SafeRLHF": "pku_saferlhf",
}
USED = ("hh_harmless_d1", "hh_harmless_d2", "hh_harmless_test")
SIDES = ("chosen", "rejected")

BATCH = 8  # answers that are read at once
STRENGTHS = (1e-4, 1e-3, 1e-2)  # of the regression, chosen within the learned pairs


def main() -> None:
    """A row for each set and each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default="packaged:smollm2-135m")
    parser.add_argument("--rows", type=int, default=600, help="pairs of each set")
    parser.add_argument("--layer", type=int, default=12, help="after which the states are taken")
    parser.add_argument("--tokens", type=int, default=320, help="of a row; the start is cut off")
    parser.add_argument("--out", type=Path, required=True, help="folder of states and judge")
    asked = parser.parse_args()
    make_bases([asked.base], progress)
    used = {last_turn(prompt) for file in USED for prompt in read(file)["prompt"]}
    learned, held_out, states = [], [], {}
    for name, file in SETS.items():
        rows = read(file).filter(~pl.col("prompt").map_elements(
            lambda prompt: last_turn(prompt) in used, return_dtype=pl.Boolean))  # fmt: skip
        rows = rows.unique("prompt", keep="first", maintain_order=True)
        rows = rows.sample(min(asked.rows, len(rows)), seed=0, shuffle=True)
        states[name] = read_once(rows, asked.base, asked.layer, asked.tokens, asked.out / file)
        third = len(rows) // 3
        held_out.append((name, rows[:third], states[name][:third]))
        learned.append((name, rows[third:], states[name][third:]))
    words = pl.concat(rows.select(SIDES) for _, rows, _ in learned)
    head = fit(np.concatenate([each for _, _, each in learned]))
    print(f"{len(words)} pairs learned, layer {asked.layer} of {asked.base}")
    for name, rows, each in held_out:
        print(f"{name}, {len(rows)} pairs held out")
        ours = [each[:, side] @ head for side in (0, 1)]
        longer = [rows[side].str.len_chars().cast(float).to_list() for side in SIDES]
        shorter = [[-length for length in lengths] for lengths in longer]
        tell("head on frozen states", [list(side) for side in ours])
        tell("linear model of words", by_words(words, rows))
        tell("the longer answer wins", longer)
        tell("the shorter answer wins", shorter)
        agree = np.mean((ours[0] > ours[1]) == (np.array(longer[0]) > np.array(longer[1])))
        print(f"the head prefers the longer answer of {agree:.3f}")
    save(asked.base, asked.layer, head, asked.out / "judge")


def read(file: str) -> pl.DataFrame:
    """Prompts and both answers of a file beside the project."""
    return pl.read_parquet(DATA / f"{file}.parquet", columns=["prompt", *SIDES])


def last_turn(prompt: Sequence[Message]) -> str:
    """What the user says last, in one spelling."""
    return " ".join(prompt[-1]["content"].lower().split())


@torch.no_grad()
def read_once(rows: pl.DataFrame, base: str, layer: int, tokens: int, cache: Path) -> np.ndarray:
    """States at the end of both answers, pairs x 2 x width; from disk where they are there."""
    file = cache.with_name(f"{cache.name}-{layer}-{tokens}-{len(rows)}.npy")
    if file.is_file():
        return np.asarray(np.load(file))
    begun, loaded = time.monotonic(), Base(base, None)
    model, chat = load_model(loaded, "float32").model, load_chat(loaded, "tokenizer")
    model.layers = model.layers[:layer]
    model.norm.weight.fill_(1)  # the head has weights of its own
    finished = [[True] * len(rows)] * 2
    prompts, sides = chat.row_ids(
        rows["prompt"].to_list(), [rows[side].to_list() for side in SIDES], finished
    )
    ids = [[*prompt, *each][-tokens:] for side in sides
           for prompt, each in zip(prompts, side, strict=True)]  # fmt: skip
    ends = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        width = max(len(ids[n]) for n in batch)
        padded = torch.tensor([[*ids[n], *[0] * (width - len(ids[n]))] for n in batch])
        mask = torch.tensor([[1] * len(ids[n]) + [0] * (width - len(ids[n])) for n in batch])
        given = model(padded, attention_mask=mask, use_cache=False).last_hidden_state
        ends[batch] = given[range(len(batch)), [len(ids[n]) - 1 for n in batch]].numpy()
        if at % (20 * BATCH) == 0:
            print(f"{cache.name}: {at} of {len(ids)}, {time.monotonic() - begun:.0f} s", flush=True)
    states = ends.reshape(2, len(rows), -1).swapaxes(0, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, states)
    return states


@torch.no_grad()
def save(base: str, layer: int, head: np.ndarray, out: Path) -> None:
    """The layers and the head as a sequence classifier of transformers, with the tokenizer."""
    from transformers import AutoModelForSequenceClassification

    loaded = Base(base, None)
    tokenizer = load_tokenizer(loaded)
    model = AutoModelForSequenceClassification.from_pretrained(
        loaded.source, num_hidden_layers=layer, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    model.model.norm.weight.fill_(1)
    model.score.weight.copy_(torch.from_numpy(head)[None])
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}")


def fit(states: np.ndarray) -> np.ndarray:
    """The direction in which chosen answers lie; its strength is chosen on a fifth of the pairs."""
    apart = states[:, 0] - states[:, 1]
    scale = StandardScaler(with_mean=False).fit(apart)
    x, fifth = scale.transform(apart), len(apart) // 5
    order = np.random.default_rng(0).permutation(len(x))
    kept, rest = order[:fifth], order[fifth:]
    right = {c: np.mean(_direction(x[rest], c) @ x[kept].T > 0) for c in STRENGTHS}
    best = max(STRENGTHS, key=lambda c: right[c])
    return np.asarray(_direction(x, best) / scale.scale_)


def _direction(x: np.ndarray, strength: float) -> np.ndarray:
    signs = np.where(np.arange(len(x)) % 2, 1, -1)
    model = LogisticRegression(fit_intercept=False, C=strength, max_iter=1000)
    return np.asarray(model.fit(x * signs[:, None], signs).coef_[0])


def tell(what: str, scores: list[list[float | None]]) -> None:
    """A line of a table."""
    right = stats.Estimate(**accuracy(*scores)["held_out_accuracy"])
    print(f"| {what} | {right.mean:.3f} [{right.low:.3f}, {right.high:.3f}] |")


if __name__ == "__main__":
    main()
