"""Schemas of all tables that are exchanged: each column with its type and its meaning.

Rows are polars frames. `check` is called at each door: it refuses a frame that lacks a column or
has another type, and returns it with the columns in the declared order.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal, TypedDict

import polars as pl

from macpo_data.errors import DataError

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

Table = dict[str, pl.DataType]
Part = Literal["d1", "d2", "test", "probe"]


# Of a table of pairs to train on: a row as JSON {prompt, chosen, rejected, tools}, whose messages
# have all their keys, where it is more than text; null where it is not.
WHOLE = "whole"
# Keys of messages, beside role and content, that hold calls of tools, and thoughts.
CALL_KEYS = ("tool_calls", "function_call")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")


class Message(TypedDict):
    """One turn of a conversation, in the form every chat template understands."""

    role: str
    content: str


def message_lists(name: str, values: list[list[Message] | None]) -> pl.Series:
    """Lists of messages as a column of MESSAGES; polars alone would make a series for each row."""
    import pyarrow as pa

    message = pa.struct([("role", pa.large_string()), ("content", pa.large_string())])
    return pl.Series(name, pa.array(values, pa.list_(message)), dtype=MESSAGES)


# What a source yields; see sources/. One row per prompt, unique by prompt_id.
PROMPTS: Table = {
    "prompt_id": pl.String(),  # sha256 of the messages
    "prompt": MESSAGES,  # one or more turns, the last one the user's
    "chosen": pl.String(),  # the human's better answer; null where the source has none
    "rejected": pl.String(),  # the human's worse answer; null where the source has none
    "right": pl.String(),  # what an answer is compared with; null where the source names none
}

# Rows that a source could not use, kept aside.
UNUSABLE: Table = {
    "part": pl.String(),  # d1, d2 or test
    "row": pl.Int64(),  # position in the source
    "reason": pl.String(),  # why the row cannot be used
    "text": pl.String(),  # the row as JSON, shortened
}

# What one policy wrote for one prompt.
SAMPLES: Table = {
    "prompt_id": pl.String(),
    "agent": pl.String(),  # who wrote
    "policy": pl.String(),  # fingerprint of the policy that wrote
    "draw": pl.Int64(),  # 0.. for several answers to one prompt
    "response": pl.String(),  # text, end-of-turn token stripped; null where nothing was written
    "finish_reason": pl.String(),  # stop | length | prompt_too_long | failed (an endpoint)
    "repetition": pl.Float64(),  # share of its 3-word runs that occurred before in it; 0 if none
}

# Log-likelihood of a response under a policy; nats.
SCORES: Table = {
    "sum_logprob": pl.Float64(),  # over response tokens, without the end-of-turn token
    "num_tokens": pl.Int64(),  # response tokens, without the end-of-turn token
    "eot_logprob": pl.Float64(),  # the end-of-turn token's; 0 where the response was cut
    # Of the response and its end-of-turn token, which training learns as well:
    # exp(-(sum_logprob + eot_logprob) / (num_tokens + 1)). A response that was cut has no end:
    # exp(-sum_logprob / num_tokens), no number to rank beside the others'. Null without tokens.
    "perplexity": pl.Float64(),
}

# Every response that was up for selection.
CANDIDATES: Table = {
    **SAMPLES,
    **SCORES,
    "reason": pl.String(),  # the filter that caught it, null if none
    "rank": pl.Int64(),  # 1 = best of its prompt among the usable; null if unusable
    "selected": pl.Boolean(),  # became a chosen response
}

_SIDE: Table = {"agent": pl.String(), "policy": pl.String(), "finish_reason": pl.String(), **SCORES}

# A round's dataset. Scores are those of the learner before training; null where none were made.
PAIRS: Table = {
    "prompt_id": pl.String(),
    "prompt": MESSAGES,
    "chosen": pl.String(),
    "rejected": pl.String(),
    **{f"{side}_{name}": t for side in ("chosen", "rejected") for name, t in _SIDE.items()},
}

# What a judge said of two candidates of a prompt.
MEETINGS: Table = {
    "prompt_id": pl.String(),
    **{f"{side}_{name}": SAMPLES[name] for side in ("a", "b") for name in ("agent", "draw")},
    "first": pl.String(),  # verdict where a was shown first: a, b or tie; null if unreadable
    "second": pl.String(),  # verdict where b was shown first
    "criteria": pl.String(),  # chosen for this pair
    "shown": pl.Boolean(),  # whether the judge was asked: both answers were there
    "win": pl.Float64(),  # 1 a wins, 0 b wins, 0.5 neither or one verdict each
}

# What a step left out, and why.
DROPPED: Table = {
    "prompt_id": pl.String(),
    "agent": pl.String(),  # who wrote it
    "response": pl.String(),
    "reason": pl.String(),
}

# What one policy makes of the probe's pairs.
PROBED: Table = {
    "prompt_id": pl.String(),
    "chosen_perplexity": pl.Float64(),  # as in SCORES; null where it does not fit
    "rejected_perplexity": pl.Float64(),
}

# What its own answers to the probe are worth.
PROBE_SCORES: Table = {
    "prompt_id": pl.String(),
    "score": pl.Float64(),  # by a reward model, or a judge's verdict against round 0's answer
}

# What the policies wrote to the test prompts, with what was said of each answer by itself.
RESPONSES: Table = {
    "prompt_id": pl.String(),
    "agent": pl.String(),
    "behavior": pl.String(),
    "round": pl.Int64(),  # null for the bare base
    "draw": pl.Int64(),  # 0.. for several answers to one prompt
    "response": pl.String(),
    "finish_reason": pl.String(),
    "gold": pl.Float64(),  # by the source's own judge, where it has one
    "reward": pl.Float64(),  # by a reward model; null where none was asked or it does not fit
}

# A judge's verdicts on a policy's answer against the baseline's.
JUDGEMENTS: Table = {
    "prompt_id": pl.String(),
    "agent": pl.String(),
    "behavior": pl.String(),
    "round": pl.Int64(),
    "draw": pl.Int64(),  # of the policy's answer, and of the baseline's where that is a policy
    "against": pl.String(),  # the baseline: a policy, or chosen for the human's answer
    "longer": pl.Int64(),  # characters by which the policy's answer is the longer one
    "first": pl.String(),  # a, b, tie or null: the verdict with the policy's answer (a) shown first
    "second": pl.String(),  # likewise with the baseline's (b) shown first
    "win": pl.Float64(),  # 1 the policy, 0 the baseline, 0.5 a tie or two minds, null unreadable
}

# How good each policy is by each measure.
EVALUATION: Table = {
    "agent": pl.String(),
    "behavior": pl.String(),
    "round": pl.Int64(),  # null for the bare base
    "measure": pl.String(),  # gold | reward | win | win_lc (length-controlled)
    "against": pl.String(),  # win and win_lc: the baseline
    "by": pl.String(),  # who judged: the source, a reward model, a judge
    "mean": pl.Float64(),
    "low": pl.Float64(),  # 95 % bootstrap interval over prompts
    "high": pl.Float64(),
    "chars": pl.Float64(),  # mean length of the answers
    "truncated": pl.Float64(),  # share of the answers that the token limit cut
    "prompts": pl.Int64(),  # that the mean is taken over, each with the mean over its answers
}

# What the Hub gets, and what every other form of it is made from; see forms/trainer.py. The prompt
# is apart, and each answer is a list of one message.
MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})
_ORIGIN: Table = {
    "agent": pl.String(),  # who wrote it; human where the source did
    "model": pl.String(),  # the writer's base
    "model_revision": pl.String(),  # its commit on the Hub; null for what is not there
    "adapter_sha256": pl.String(),  # of the writer's adapter; null for a bare base
    **_SIDE,
}
PUBLISHED: Table = {
    "prompt": MESSAGES,
    "chosen": MESSAGES,
    "rejected": MESSAGES,
    "chosen_text": pl.String(),  # the same as text, for trainers that want it
    "rejected_text": pl.String(),
    "round": pl.Int64(),
    "learner": pl.String(),  # for whom the pairs were chosen
    "prompt_id": pl.String(),
    **{f"{side}_{name}": t for side in ("chosen", "rejected") for name, t in _ORIGIN.items()},
}

# What a dataset without rejected answers is published as; see PUBLISHED.
PUBLISHED_SFT: Table = {
    "prompt": MESSAGES,
    "completion": MESSAGES,
    "round": pl.Int64(),
    "learner": pl.String(),
    "prompt_id": pl.String(),
    **{f"completion_{name}": t for name, t in _ORIGIN.items()},
}

# Every candidate with its prompt and scores, so that others can select anew.
PUBLISHED_CANDIDATES: Table = {"prompt": MESSAGES, **CANDIDATES}


def check(frame: pl.DataFrame, table: Table, what: str) -> pl.DataFrame:
    """Return `frame` with exactly the columns of `table`, in order.

    Raises:
        DataError: a column is missing or has another type.
    """
    problems = [f"no column {name}" for name in table if name not in frame.columns]
    problems += [
        f"{name} is {frame.schema[name]}, not {dtype}"
        for name, dtype in table.items()
        if name in frame.columns and frame.schema[name] not in (dtype, pl.Null())
    ]
    if problems:
        raise DataError(f"{what}: {', '.join(problems)}")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in table.items())


def empty(table: Table) -> pl.DataFrame:
    """A frame of `table` without rows."""
    return pl.DataFrame(schema=table)


def prompt_id(prompt: list[Message]) -> str:
    """Identify a prompt by its messages: sha256 of their canonical JSON, 64 hex digits."""
    turns = [[m["role"], m["content"]] for m in prompt]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()
