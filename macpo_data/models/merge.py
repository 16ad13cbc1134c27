"""Merges a LoRA adapter into its base model, so that the result needs no peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from macpo_data.errors import ModelError, first_line
from macpo_data.models.base import Base, load_model, load_tokenizer
from macpo_data.models.chat import make_chat
from macpo_data.models.worker import Report

DTYPE = "bfloat16"  # never into a quantised base, which would lose what the adapter learnt


def merge(
    report: Report, base: Base, adapter: Path, out: Path, chat_template: str = "tokenizer"
) -> dict[str, Any]:
    """Write the merged model and its tokenizer into `out`, and return what its card says.

    The tokenizer gets the template under which the adapter was trained.

    Raises:
        ModelError: the adapter does not belong to this base.
    """
    from peft import PeftModel

    report(0, 1, "loading")
    model = load_model(base, DTYPE)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, OSError, TypeError, KeyError) as error:
        reason = first_line(error)
        raise ModelError(f"adapter {adapter} does not fit {base.id}: {reason}") from None
    merged.save_pretrained(out)
    tokenizer = load_tokenizer(base)
    if chat_template != "tokenizer":
        tokenizer.chat_template = make_chat(tokenizer, chat_template, base.id).template
    tokenizer.save_pretrained(out)
    report(1, 1, "merged")
    return {"dtype": DTYPE}
