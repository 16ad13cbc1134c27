"""Exports a policy's answers in the formats of AlpacaEval, MT-Bench and Arena-Hard.

Policies write with the recipe's own sampling; MT-Bench's temperatures by category are not applied.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from macpo_data.errors import DataError
from macpo_data.generation.mixture import as_rows
from macpo_data.generation.run_context import RunContext
from macpo_data.plan import Policy
from macpo_data.recipe.section import digest
from macpo_data.schema import Message
from macpo_data.sources.ingest.files import read_file
from macpo_data.store.store import atomic

IDS = ("uid", "question_id", "id", "idx")


@dataclass(frozen=True)
class Question:
    """A conversation that a policy continues turn by turn."""

    id: Any  # as the evaluator has it
    opening: list[Message]  # up to the first answer
    turns: list[str]  # what the user says after each answer but the last
    row: dict[str, Any]  # as it stands in the file

    @property
    def text(self) -> str:
        """What the user says first."""
        return self.opening[-1]["content"]


def export(ctx: RunContext, policy: Policy, form: str, prompts: Path, to: Path) -> tuple[int, int]:
    """Answer an evaluator's prompts and write the answers in its form; how many, how many empty.

    An answer that could not be written, such as to a prompt that is too long, is an empty one.

    Raises:
        DataError: the prompts cannot be read.
    """
    questions = read_questions(prompts)
    answers = converse(ctx, policy, questions)
    name = f"{ctx.recipe.run}-{policy}"
    text = FORMS[form](name, questions, answers)
    with atomic(to) as temporary:
        temporary.write_text(text, "utf-8")
    return len(questions), sum(not all(turns) for turns in answers)


def read_questions(path: Path) -> list[Question]:
    """Prompts in any of the forms in which these evaluators have them.

    Raises:
        DataError: a row has no prompt.
    """
    questions = []
    for n, row in enumerate(chain.from_iterable(read_file(path))):
        messages = _messages(row.get("turns") or row.get("prompt") or row.get("instruction"))
        if not messages:
            raise DataError(
                f"{path}, row {n}: no turns, prompt or instruction in it; check the file"
            )
        opening, later = messages, []
        if row.get("turns"):
            opening, later = messages[:1], [turn["content"] for turn in messages[1:]]
        name = next((row[key] for key in IDS if row.get(key) is not None), n)
        questions.append(Question(name, opening, later, row))
    if not questions:
        raise DataError(f"{path}: it holds no row; check the file")
    return questions


def _messages(value: Any) -> list[Message]:
    """A text, texts or messages as messages; none where anything else is among them."""
    texts = value if isinstance(value, list) else [value]
    entries = [{"role": "user", "content": t} if isinstance(t, str) else t for t in texts]
    messages = [Message(role=m.get("role") or "user", content=m.get("content") or "")
                for m in entries if isinstance(m, dict)]  # fmt: skip
    fit = all(isinstance(text, str) and text for m in messages for text in m.values())
    return messages if fit and len(messages) == len(entries) else []


def converse(ctx: RunContext, policy: Policy, questions: list[Question]) -> list[list[str]]:
    """Answer the first turns, then the second ones in the context of the first answers, ..."""
    answers: list[list[str]] = [[] for _ in questions]
    for turn in range(1 + max((len(question.turns) for question in questions), default=0)):
        speaking = [n for n, question in enumerate(questions) if turn <= len(question.turns)]
        rows = as_rows([_so_far(questions[n], answers[n]) for n in speaking])
        (written,) = ctx.ask([(policy, rows)], ctx.recipe.sampling, f"export-{turn}")
        for n, text in zip(speaking, written["response"], strict=True):
            answers[n].append(text or "")
    return answers


def _so_far(question: Question, answers: list[str]) -> list[Message]:
    messages = list(question.opening)
    for answer, turn in zip(answers, question.turns, strict=False):
        messages += [Message(role="assistant", content=answer), Message(role="user", content=turn)]
    return messages


def _alpaca_eval(name: str, questions: list[Question], answers: list[list[str]]) -> str:
    """The list that `alpaca_eval --model_outputs` reads."""
    rows = [
        {"instruction": question.text, "output": first, "generator": name}
        | {key: question.row[key] for key in ("dataset",) if question.row.get(key)}
        for question, (first, *_) in zip(questions, answers, strict=True)
    ]
    return json.dumps(rows, ensure_ascii=False, indent=1)


def _mt_bench(name: str, questions: list[Question], answers: list[list[str]]) -> str:
    """FastChat's data/mt_bench/model_answer/NAME.jsonl."""
    return _lines(
        {
            "question_id": question.id,
            "answer_id": digest([name, question.id, turns]),
            "model_id": name,
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": time.time(),
        }
        for question, turns in zip(questions, answers, strict=True)
    )


def _arena_hard(name: str, questions: list[Question], answers: list[list[str]]) -> str:
    """arena-hard-auto 2's data/BENCH/model_answer/NAME.jsonl.

    Style control reads `metadata`, which the evaluator's own utils/add_markdown_info.py fills.
    """
    return _lines(
        {
            "uid": question.id,
            "ans_id": digest([name, question.id, answer]),
            "model": name,
            "messages": [*question.opening, {"role": "assistant", "content": {"answer": answer}}],
            "tstamp": time.time(),
            "metadata": {},
        }
        for question, (answer, *_) in zip(questions, answers, strict=True)
    )


def _lines(rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


FORMS: dict[str, Callable[[str, list[Question], list[list[str]]], str]] = {
    "alpaca_eval": _alpaca_eval,
    "mt_bench": _mt_bench,
    "arena_hard": _arena_hard,
}
