"""Mixture of agents: each layer of models reads the answers of the layer before (MoAA)."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from macpo_data.generation.context import Context
from macpo_data.plan import Policy
from macpo_data.prompts import fill
from macpo_data.recipe.generation import Mixture
from macpo_data.schema import MESSAGES, SAMPLES, Message, empty, prompt_id

# What a turn of a conversation was answered to, and by whom.
TURNS = {**SAMPLES, "layer": pl.Int64()}


def policies(mixture: Mixture | None) -> tuple[Policy, ...]:
    """Everybody who writes, in order."""
    names = [name for layer in mixture.layers for name in layer] if mixture else []
    return tuple(Policy(name) for name in dict.fromkeys(names))


def write(
    ctx: Context, mixture: Mixture, prompts: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Answer conversations turn by turn; earlier turns are those that the mixture answered.

    An assistant's turn that the source has is replaced by the answer of the last layer's first
    agent, whatever is kept. Where a turn got no answer, the conversation ends.

    Args:
        ctx: of the run.
        mixture: as the recipe describes it.
        prompts: prompt_id, prompt; the last turn is the user's.

    Returns:
        The prompt of every turn (prompt_id, prompt; unique), and all answers to them as TURNS:
        by prompt, then layer (0 is the proposers'), then agent.
    """
    talks = [_user_turns(prompt) for prompt in prompts["prompt"].to_list()]
    so_far: list[list[Message]] = [head for head, _ in talks]
    prompts_by_turn, answered = [], [empty(TURNS)]
    for turn in range(max((len(users) for _, users in talks), default=0)):
        live = [
            n for n, (head, users) in enumerate(talks)
            if len(users) > turn and len(so_far[n]) == len(head) + 2 * turn
        ]  # fmt: skip
        contexts = [[*so_far[n], talks[n][1][turn]] for n in live]
        rows = as_rows(contexts)
        written = _layers(ctx, mixture, rows.unique("prompt_id", maintain_order=True))
        last = written.filter(pl.col("layer") == len(mixture.layers) - 1)
        responses = dict(
            last.unique("prompt_id", keep="first").select("prompt_id", "response").rows()
        )
        for n, context, row in zip(live, contexts, rows["prompt_id"], strict=True):
            if responses[row]:
                so_far[n] = [*context, {"role": "assistant", "content": responses[row]}]
        is_last = [len(talks[n][1]) == turn + 1 for n in live]
        wanted = (
            rows if mixture.turns == "all" else rows.filter(pl.Series(is_last, dtype=pl.Boolean))
        )
        prompts_by_turn.append(wanted)
        answered.append(written.join(wanted, on="prompt_id", how="semi", maintain_order="left"))
    turns = pl.concat(prompts_by_turn).unique("prompt_id", maintain_order=True)
    answers = pl.concat(answered).unique(
        ["prompt_id", "layer", "agent", "draw"], maintain_order=True
    )
    return turns, answers


def teach(ctx: Context, mixture: Mixture, prompts: pl.DataFrame) -> pl.DataFrame:
    """What a mixture, as a teacher, answers to conversations as they stand, as SAMPLES."""
    answers = _layers(ctx, mixture, prompts.select("prompt_id", "prompt"))
    return answers.filter(pl.col("layer") == taken(mixture)).select(*SAMPLES)


def taken(mixture: Mixture) -> int:
    """Whose answers are used: the last layer's, or for an ablation those of the first."""
    return len(mixture.layers) - 1 if mixture.keep == "aggregate" else 0


def _layers(ctx: Context, mixture: Mixture, rows: pl.DataFrame) -> pl.DataFrame:
    """What each layer writes to these prompts, as TURNS."""
    written: list[pl.DataFrame] = []
    proposals: list[list[str]] = [[] for _ in range(len(rows))]
    for layer, agents in enumerate(mixture.layers):
        inputs = rows
        if layer:
            prompts = rows["prompt"].to_list()
            inputs = as_rows(
                [
                    aggregation(mixture, p, proposed)
                    for p, proposed in zip(prompts, proposals, strict=True)
                ]
            )
        answers = _ask(ctx, mixture, agents, inputs, layer)
        # What was asked is the layer's affair; the answer is to the conversation.
        answers = [
            a.with_columns(rows["prompt_id"], layer=pl.lit(layer, pl.Int64)) for a in answers
        ]
        written += answers
        texts = zip(*(a["response"].to_list() for a in answers), strict=True)
        proposals = [[text for text in proposed if text] for proposed in texts]
    frame = pl.concat(written)
    return rows.select("prompt_id").join(
        frame, on="prompt_id", how="left", maintain_order="left_right"
    )


def _ask(
    ctx: Context, mixture: Mixture, agents: Sequence[str], rows: pl.DataFrame, layer: int
) -> list[pl.DataFrame]:
    """An answer of each agent of a layer; one that stands there twice draws twice."""
    draws = [list(agents[:n]).count(agent) for n, agent in enumerate(agents)]
    by_slot: dict[int, pl.DataFrame] = {}
    for draw in sorted(set(draws)):
        slots = [n for n, each in enumerate(draws) if each == draw]
        wanted = [(Policy(agents[n]), rows) for n in slots]
        answers = ctx.ask(wanted, mixture.sampling, f"layer{layer}", draw)
        by_slot |= dict(zip(slots, answers, strict=True))
    return [by_slot[n] for n in range(len(agents))]


def aggregation(mixture: Mixture, prompt: list[Message], answers: list[str]) -> list[Message]:
    """The conversation with the answers of the layer before; the conversation stays as it is."""
    if not answers:
        return prompt
    numbered = "\n\n".join(f"{n}. {text}" for n, text in enumerate(answers, start=1))
    return tell(prompt, fill(mixture.prompt, answers=numbered), mixture.insert)


def tell(prompt: list[Message], text: str, insert: str) -> list[Message]:
    """Put a text before a conversation: into its system message, or before the first turn."""
    head, rest = _head(prompt)
    if insert == "user":
        first: Message = {"role": "user", "content": f"{text}\n\n{rest[0]['content']}"}
        return [*head, first, *rest[1:]]
    system = "\n\n".join([*(m["content"] for m in head), text])
    return [{"role": "system", "content": system}, *rest]


def _head(prompt: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, if there is one, and the rest."""
    cut = int(prompt[0]["role"] == "system")
    return prompt[:cut], prompt[cut:]


def _user_turns(prompt: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, if there is one, and what the user said."""
    head, rest = _head(prompt)
    return head, [message for message in rest if message["role"] == "user"]


def as_rows(prompts: list[list[Message]]) -> pl.DataFrame:
    """Conversations as rows that can be asked: (prompt_id, prompt)."""
    return pl.DataFrame(
        {"prompt_id": [prompt_id(prompt) for prompt in prompts], "prompt": prompts},
        schema={"prompt_id": pl.String, "prompt": MESSAGES},
    )
