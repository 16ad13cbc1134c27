"""Scores of answers by a reward model. `score` runs in the process of that model."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from macpo_data.errors import ModelError, of_run
from macpo_data.models import fits
from macpo_data.models.base import Base, load_chat, load_classifier
from macpo_data.models.chat import Chat
from macpo_data.models.worker import Report
from macpo_data.plan import Plan
from macpo_data.recipe.engine import Engine
from macpo_data.recipe.evaluation import TRAINED, RewardModel
from macpo_data.recipe.section import digest
from macpo_data.store.pins import Lock
from macpo_data.store.store import Shards, Store
from macpo_data.versions import versions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Scorer:
    """A reward model made concrete."""

    base: Base
    adapter: str | None  # folder of a peft adapter that brings its own head
    chat_template: str
    head: int | tuple[float, ...] | None
    fingerprint: str

    def facts(self) -> dict[str, Any]:
        """What manifests say of it."""
        return {
            "model": self.base.id,
            "model_revision": self.base.revision,
            "adapter": self.adapter,
            "chat_template": self.chat_template,
            "head": self.head,
        }


def find_scorer(
    plan: Plan, store: Store, lock: Lock, model: RewardModel
) -> tuple[Scorer, dict[str, str]]:
    """A reward model as the recipe describes it, and the content of what it is made from.

    Raises:
        ModelError: it is not there, or not trained yet.
    """
    fake = plan.recipe.engine.name == "fake"
    if model.model != TRAINED:
        agent = model.agent
        head = tuple(model.head) if isinstance(model.head, list) else model.head
        base = Base(agent.base, None) if fake else lock.base(agent)
        named = digest([agent.identity(), model.head])
        return Scorer(base, None, agent.chat_template, head, named), {}
    if not store.is_done(plan.reward_name):
        raise ModelError(f"no reward model is trained yet; run `{of_run('train --reward')}`")
    store.verify(plan.reward_name)
    made_from = {plan.reward_name: str(store.content(plan.reward_name))}
    return trained_scorer(plan, store, lock), made_from


def trained_scorer(plan: Plan, store: Store, lock: Lock) -> Scorer:
    """The run's own reward model."""
    fake, agent = plan.recipe.engine.name == "fake", plan.reward_agent
    folder = str(store.path(plan.reward_name) / "model")
    base, adapter = Base(folder, None), None
    if fake or plan.recipe.reward_finetuning == "lora":
        base, adapter = Base(agent.base, None) if fake else lock.base(agent), folder
    return Scorer(base, adapter, agent.chat_template, None, plan.reward_name.partition("/")[2])


def score(
    report: Report, settings: Engine, scorer: Scorer, rows: pl.DataFrame, shards: Shards
) -> dict[str, Any]:
    """Score what is missing of rows (prompt_id, prompt, response, finish_reason), shard by shard.

    Returns:
        What the manifest says of the circumstances.
    """
    read, facts = _open(scorer, settings)
    missing = shards.missing()
    done, total = 0, sum(len(shards.spans[n]) for n in missing)
    for n in missing:
        part = rows[list(shards.spans[n])]
        shards.write(n, pl.DataFrame({"reward": read(part)}, schema={"reward": pl.Float64}))
        done += len(part)
        report(done, total, "responses")
    return {**facts, **versions()}


def rewards(
    report: Report, settings: Engine, scorer: Scorer, rows: pl.DataFrame
) -> list[float | None]:
    """The rewards of rows as in `score`, kept nowhere."""
    read, _ = _open(scorer, settings)
    values: list[float | None] = []
    for part in rows.iter_slices(settings.shard_size):
        values += read(part)
        report(len(values), len(rows), "responses")
    return values


def accuracy(chosen: list[float | None], rejected: list[float | None]) -> dict[str, Any]:
    """How often the chosen answer scores higher, a tie being half; pairs without a score apart."""
    import numpy as np

    from macpo_data import stats

    both = [
        (c, r) for c, r in zip(chosen, rejected, strict=True) if c is not None and r is not None
    ]
    right = stats.mean(np.array([(c > r) + (c == r) / 2 for c, r in both], dtype=float))
    return {
        "held_out_pairs": len(both),
        "held_out_unscored": len(chosen) - len(both),
        "held_out_accuracy": {k: v if v == v else None for k, v in right._asdict().items()},
    }


Read = Callable[[pl.DataFrame], list[float | None]]


def _fake(scorer: Scorer) -> tuple[Read, dict[str, Any]]:
    """Numbers that follow from the request alone."""

    def read(rows: pl.DataFrame) -> list[float | None]:
        keys = rows.select("prompt_id", "response").iter_rows()
        return [random.Random(f"{scorer.fingerprint} {i} {r}").gauss(0, 1) for i, r in keys]

    return read, {"engine": "fake"}


@cache
def _open(scorer: Scorer, settings: Engine) -> tuple[Read, dict[str, Any]]:
    """Load the model, once per process."""
    if settings.name == "fake":
        return _fake(scorer)
    chat = load_chat(scorer.base, scorer.chat_template)
    model: Any = load_classifier(scorer.base, settings.dtype, new_head=scorer.adapter is not None)
    if scorer.adapter is not None:
        fits.check_adapter(Path(scorer.adapter), scorer.base)
        model = fits.load_adapter(model, Path(scorer.adapter), scorer.base)
    model.eval()
    limit = longest(model.config.get_text_config())

    def read(rows: pl.DataFrame) -> list[float | None]:
        finished = (rows["finish_reason"] == "stop").to_list()
        prompts, (answers,) = chat.row_ids(
            rows["prompt"].to_list(), [rows["response"].to_list()], [finished]
        )
        ids = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        fits.check_ids(model, scorer.base, chat, ids)
        values: list[float | None] = [None] * len(ids)
        fit = sorted(
            (i for i in range(len(ids)) if len(ids[i]) <= limit), key=lambda i: len(ids[i])
        )
        for at in range(0, len(fit), settings.batch_size):
            batch = fit[at : at + settings.batch_size]
            scored = _rewards(model, chat, [ids[i] for i in batch], scorer)
            if not all(map(math.isfinite, scored)):
                raise fits.no_numbers("rewards", scorer.base, scorer.adapter)
            for i, reward in zip(batch, scored, strict=True):
                values[i] = reward
        return values

    facts = {
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "template_sha256": chat.sha256,
    }
    return read, facts


def longest(config: Any) -> int:
    """Tokens that a classifier reads; the positions of RoBERTa's kin begin behind the padding's."""
    positions = int(getattr(config, "max_position_embeddings", 1 << 30))
    behind = re.search("roberta|camembert|longformer|mpnet", str(config.model_type))
    return positions - int(config.pad_token_id) - 1 if behind else positions


def _rewards(model: Any, chat: Chat, ids: list[list[int]], scorer: Scorer) -> list[float]:
    """One batch, padded on the right: a classifier reads at the last token."""
    import torch

    width = max(map(len, ids))
    pad = int(model.config.get_text_config().pad_token_id)
    rows = torch.tensor([row + [pad] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    with torch.inference_mode():
        logits = model(input_ids=rows.to(model.device), attention_mask=mask.to(model.device)).logits
    return one_reward(logits.double(), scorer.head, scorer.base.id).tolist()


def one_reward(
    logits: torch.Tensor, head: int | tuple[float, ...] | None, name: str
) -> torch.Tensor:
    """One number per answer of a model with one output or several.

    Args:
        logits: (B, outputs).
        head: which output, or a weight for each; None where there is one.
        name: of the model, for errors.

    Returns:
        (B,) rewards.

    Raises:
        ModelError: the model has no such output, or several and no choice was made.
    """
    outputs = logits.shape[1]
    if isinstance(head, tuple):
        if len(head) != outputs:
            raise ModelError(f"{name} has {outputs} outputs; give head as many weights")
        return logits @ logits.new_tensor(head)
    if head is None and outputs > 1:
        raise ModelError(f"{name} has {outputs} outputs; choose one, or weigh all, with head")
    if not 0 <= (head or 0) < outputs:
        raise ModelError(f"{name} has outputs 0..{outputs - 1}; choose one of them with head")
    return logits[:, head or 0]
