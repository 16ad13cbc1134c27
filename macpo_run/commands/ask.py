"""`macpo ask`: what a model answers."""

from __future__ import annotations

from collections.abc import Sequence

from macpo_run.terminal.lines import say
from macpo_run.terminal.text import plain


def ask(model: str, questions: Sequence[str], tokens: int, sets: list[str] | None) -> None:
    """Print what a model answers to each question."""
    from macpo_run import asking
    from macpo_run.terminal.progress import progress

    answers = asking.ask(model, questions, tokens, sets, progress)
    for question, answer in zip(questions, answers, strict=True):
        say(f"> {plain(question)}")
        text = answer.text if answer.text is not None else f"({answer.finish_reason})"
        cut = f" ... (cut at {tokens} tokens)" if answer.finish_reason == "length" else ""
        say(f"{plain(text)}{cut}\n")
