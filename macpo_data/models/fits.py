"""Whether adapter, base, tokenizer and rows belong together, asked before the first step.

What torch says of those that do not is an index error, deep inside, or nothing at all: an adapter
of another base of the same shape loads, and answers nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo_data.bases.named import folder_print
from macpo_data.errors import ModelError, first_line
from macpo_data.models.base import Base
from macpo_data.models.chat import Chat
from macpo_data.models.weights import ADAPTER_FILES, CONFIG
from macpo_data.outside import parse_object, read_bytes

if TYPE_CHECKING:
    import torch

ALL_LINEAR = "all-linear"
# A revision that two people cannot mean differently: a commit, or the print of a folder.
_PINNED = re.compile(r"[0-9a-f]{40}|(print|sha256):[0-9a-f]{64}")
_HEADS = {"score", "classifier"}  # of classifiers, which peft trains whole


def check_ids(model: Any, base: Base, chat: Chat, ids: Iterable[Sequence[int]]) -> None:
    """Refuse rows with tokens for which the model has no embeddings.

    A tokenizer may well have more entries than that, where no row uses them.

    Args:
        model: its weights are not read.
        base: for errors.
        chat: the tokenizer, whose padding counts as well.
        ids: token ids, rows of them.

    Raises:
        ModelError: with the token.
    """
    held = int(model.get_input_embeddings().weight.shape[0])
    top = max((max(row) for row in ids if row), default=0)
    top = max(top, chat.pad_id)
    if top >= held:
        token = chat.tokenizer.convert_ids_to_tokens(top)
        raise ModelError(
            f"the tokenizer of {base.id} has {len(chat.tokenizer)} entries, and the model "
            f"embeddings for {held}: the rows use {token!r}, number {top}; name the base whose "
            "tokenizer this is, or give it embeddings (resize_token_embeddings) and save it anew"
        )


def check_positions(model: Any, base: Base, longest: int) -> str | None:
    """Refuse rows that are longer than a model's learned positions.

    Args:
        model: its weights are not read.
        base: for errors.
        longest: tokens of the longest row.

    Returns:
        A note, where positions are computed and the rows are longer than any that it was made for.

    Raises:
        ModelError: with the length that would do.
    """
    if (learned := learned_positions(model)) is not None and longest > learned:
        raise ModelError(
            f"{base.id} has {learned} learned positions, and the longest row has {longest} tokens; "
            f"set train.max_length={learned}"
        )
    made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if learned is None and made_for and longest > made_for:
        return f"the longest row has {longest} tokens, and {base.id} was made for {made_for}"
    return None


def learned_positions(model: Any) -> int | None:
    """Tokens for whose places a model has learned a vector each; None where it computes them."""
    from torch.nn import Embedding

    for name, module in model.named_modules():
        if isinstance(module, Embedding) and re.search("wpe|position", name.rpartition(".")[2]):
            # The first places of RoBERTa's kin, and of OPT, are not used.
            behind = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - getattr(module, "offset", behind))
    return None


def matrices(model: Any) -> list[str]:
    """Names of the matrices that an adapter can be put on, without the head's."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, Linear | Conv1D) and module is not head and name not in _HEADS:
            *rest, last = name.split(".")
            names.add(f"{rest[-1]}.{last}" if last.isdigit() and rest else last)
    return sorted(names)


def lora_targets(
    model: Any, base: Base, wanted: Collection[str], head_is_read: bool
) -> tuple[list[str], list[str]]:
    """The names that peft takes, and those of `lora.targets` that are not there.

    Args:
        model: its weights are not read.
        base: for errors.
        wanted: `lora.targets`.
        head_is_read: the loss takes the head's matrix by itself, without an adapter on it.

    Raises:
        ModelError: none is there, or the head is among them; with the names that there are.
    """
    there = matrices(model)
    if ALL_LINEAR in wanted:
        return there, []
    missing = [name for name in sorted(wanted) if not _has(model, name)]
    names = f"{base.id} has {', '.join(there)}; or set lora.targets={ALL_LINEAR}"
    if len(missing) == len(wanted):
        raise ModelError(f"lora.targets: no {' or '.join(missing)} in this model; {names}")
    head = model.get_output_embeddings()
    on_head = [n for n, m in model.named_modules() if m is head and _matches(n, wanted)]
    if head_is_read and on_head:
        raise ModelError(
            f"lora.targets: {on_head[0]} is the head, which preference training keeps; {names}"
        )
    return sorted(wanted), missing


def _has(model: Any, wanted: str) -> bool:
    return any(_matches(name, [wanted]) for name, _ in model.named_modules())


def _matches(name: str, wanted: Collection[str]) -> bool:
    """As peft reads a list of names."""
    return any(name == each or name.endswith(f".{each}") for each in wanted)


def check_adapter(folder: Path, base: Base, another_base: bool | None = None) -> str | None:
    """Refuse an adapter that was made for another base.

    Args:
        folder: of a peft adapter.
        base: that it is to be put on.
        another_base: whether a person wants it so; None where nobody can say.

    Returns:
        A note for a person, where its base cannot be compared, or is another one.

    Raises:
        ModelError: there is no adapter, or it names another base, or another revision of this one.
    """
    try:
        config = parse_object(read_bytes(folder / ADAPTER_FILES[0]))
        of, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no adapter in {folder}: its {ADAPTER_FILES[0]} cannot be read, or names no base "
            f"({type(error).__name__})"
        ) from None
    if not isinstance(of, str) or not of:  # of a model that had no name
        return f"adapter {folder} does not say of which base it is; it is taken to be {base.id}"
    same = _is_same(of, str(revision), base)
    if same:
        return None
    made_for = f"{of}@{revision}" if revision else of
    if another_base:
        return f"adapter {folder} was made for {made_for}, and goes on with {base.id}"
    if same is None:
        return f"adapter {folder} names {of}, which is not there; it is taken to be {base.id}"
    now = base.id if base.id != of else f"{base.id}@{base.revision}"
    wish = "" if another_base is None else ", or, if this one is meant, --set another_base=true"
    raise ModelError(
        f"adapter {folder} was made for {made_for}, not for {now}; name that base{wish}"
    )


def check_checkpoint(folder: Path, base: Base) -> None:
    """Refuse a checkpoint of all weights that was trained from another base.

    Raises:
        ModelError: it is an adapter, or no checkpoint, or another base's.
    """
    if (folder / ADAPTER_FILES[0]).is_file():
        raise ModelError(
            f"{folder} is an adapter, and full fine-tuning starts from a whole model: fold it into "
            "its base (`push --merge`), or set train.finetuning=lora"
        )
    try:
        of = parse_object(read_bytes(folder / CONFIG)).get("_name_or_path")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no checkpoint in {folder}: its {CONFIG} cannot be read ({type(error).__name__})"
        ) from None
    if of and not _is_same(str(of), "None", base):
        raise ModelError(
            f"checkpoint {folder} was trained from {of}, not from {base.id}; name that base"
        )


def _is_same(of: str, revision: str, base: Base) -> bool | None:
    """Whether an adapter's base is this one; None: it is a folder that is not there any more."""
    here = str(base.revision)
    pinned = bool(_PINNED.fullmatch(revision) and _PINNED.fullmatch(here))
    if pinned and revision.partition(":")[1] == here.partition(":")[1]:
        return revision == here
    if of == base.id:
        return True
    named, given = Path(of).expanduser(), Path(base.source)
    if named.is_dir():
        return given.is_dir() and (
            named.samefile(given) or folder_print(named) == folder_print(given)
        )
    is_path = of.startswith((".", "/", "~")) or revision.startswith("print:")
    return None if is_path else False


def load_adapter(
    model: Any, folder: Path, base: Base, name: str = "default", trainable: bool = False
) -> Any:
    """Put an adapter onto a base, or beside others that it has; the model of peft.

    Raises:
        ModelError: its weights are no finite numbers, or do not fit.
    """
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError

    check_weights(folder)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name, is_trainable=trainable)
            return model
        return PeftModel.from_pretrained(model, str(folder), name, is_trainable=trainable)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, OSError, TypeError, KeyError, SafetensorError) as error:
        reason = first_line(error)
        raise ModelError(f"adapter {folder} does not fit {base.id}: {reason}") from None


def check_weights(folder: Path) -> None:
    """Refuse an adapter with a weight that is NaN or infinite, or whose file is damaged.

    Raises:
        ModelError: with the weight's name.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / ADAPTER_FILES[1], "pt") as file:
            bad = not_finite((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter {folder} cannot be read: {first_line(error)}") from None
    if bad is not None:
        raise ModelError(f"adapter {folder}: {bad} holds NaN or infinite weights; train it anew")


def not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first name with a weight that is NaN or infinite; None where all are finite."""
    import torch

    return next((name for name, each in weights if not torch.isfinite(each).all()), None)


def no_numbers(
    what: str, base: Base, adapter: str | Path | None, setting: str = "engine.dtype"
) -> ModelError:
    """That a model computes NaN or infinite values, for a person to mend.

    Args:
        what: is not finite.
        base: the model.
        adapter: that is on it, if any.
        setting: names the numbers in which it computes.
    """
    who = base.id if adapter is None else f"{base.id} with the adapter {adapter}"
    return ModelError(
        f"{what} of {who} are NaN or infinite: its weights are damaged, or too large for these "
        f"numbers; set {setting}=float32, or fetch it, or train it, anew"
    )
