"""Merges a LoRA adapter into its base model, so that the result needs no peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from macpo_data.models import fits
from macpo_data.models.base import Base, load_model, load_tokenizer
from macpo_data.models.templates import make_chat
from macpo_data.models.worker import Report

DTYPE = "bfloat16"  # never into a quantised base, which would lose what the adapter learnt


def merge(
    report: Report, base: Base, adapter: Path, out: Path, chat_template: str = "tokenizer"
) -> dict[str, Any]:
    """Write the merged model and its tokenizer into `out`, and return what its card says.

    The tokenizer gets the template under which the adapter was trained.

    Raises:
        ModelError: the adapter does not belong to this base, or one of them holds NaN.
    """
    report(0, 1, "loading")
    fits.check_adapter(adapter, base)
    model = fits.load_adapter(load_model(base, DTYPE), adapter, base)
    merged = model.merge_and_unload()
    if bad := fits.not_finite(merged.named_parameters()):
        raise fits.no_numbers(f"the merged weights ({bad})", base, adapter)
    merged.save_pretrained(out)
    tokenizer = load_tokenizer(base)
    if chat_template != "tokenizer":
        tokenizer.chat_template = make_chat(tokenizer, chat_template, base.id).template
    tokenizer.save_pretrained(out)
    report(1, 1, "merged")
    return {"dtype": DTYPE}
