"""What the head of a GGUF file says of its model, in a moment and without a package.

A file has a header, then keys with values, then a table of tensors, then their numbers:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package gguf reads the head too, but
takes some ten seconds for a vocabulary of 50,000 tokens, as it makes an array of each.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from macpo_data.errors import ModelError

INSTALL = 'pip install "macpo[gguf]"'
# The kinds of value that have a fixed size, as struct reads them; 8 is a string, 9 an array.
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_DTYPES = {0: "float32", 1: "float16", 30: "bfloat16"}  # kinds of tensor that are plain numbers
# Names of some architectures in GGUF where transformers' table has another spelling.
_SPELT = {"qwen2moe", "qwen3moe", "gpt-oss", "minimax-m2"}
# How words are cut before byte pairs are merged, where transformers' own default is right: GPT-2's.
GPT2_WORDS = ("gpt-2", "phi-2", "olmo", "jais")
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell")
"""Of these each digit is a word of its own. transformers knows none of them, and would give other
ids to a digit behind two spaces."""


@dataclass(frozen=True)
class Tensor:
    """A row of the table of tensors."""

    name: str
    size: int  # numbers
    kind: int  # of ggml's
    offset: int  # bytes from the start of all numbers


@dataclass(frozen=True)
class Head:
    """What the file says before its numbers. Of an array only the length is kept."""

    values: dict[str, Any]
    tensors: tuple[Tensor, ...]
    start: int  # of the numbers, bytes from the start of the file
    bytes: int  # of the whole file

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self.values.get("general.architecture", ""))

    @property
    def dtype(self) -> str:
        """In which numbers the converted weights are exact."""
        kinds = {tensor.kind for tensor in self.tensors} - {0}
        return _DTYPES[kinds.pop()] if len(kinds) == 1 and kinds <= set(_DTYPES) else "float32"

    def config(self) -> dict[str, Any]:
        """The sizes, by the names that transformers' config.json has for them."""
        names = {
            "num_hidden_layers": "block_count",
            "hidden_size": "embedding_length",
            "intermediate_size": "feed_forward_length",
            "num_attention_heads": "attention.head_count",
            "num_key_value_heads": "attention.head_count_kv",
            "head_dim": "attention.key_length",
            "max_position_embeddings": "context_length",
            "vocab_size": "vocab_size",
            "num_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
            "moe_intermediate_size": "expert_feed_forward_length",
        }
        sizes = {
            ours: self.values[f"{self.architecture}.{theirs}"]
            for ours, theirs in names.items()
            if f"{self.architecture}.{theirs}" in self.values
        }
        sizes.setdefault("vocab_size", self.values.get("tokenizer.ggml.tokens", 0))
        tied = all(tensor.name != "output.weight" for tensor in self.tensors)
        kind = {"model_type": self.architecture, "dtype": self.dtype}
        return sizes | kind | {"tie_word_embeddings": tied}


def read_head(file: Path) -> Head:
    """The head of a GGUF file.

    Raises:
        OSError: it cannot be read.
        ValueError: it ends within its head, is no GGUF file, or of a version that is not known.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("it is no GGUF file")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Reader(content).head()
            except (struct.error, IndexError):
                raise ValueError("it is cut short") from None


class _Reader:
    """Goes through the head once."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 4

    def head(self) -> Head:
        version, tensors, values = self._take("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"it is GGUF of version {version}, not {_VERSIONS[-1]}")
        metadata = {self._string(): self._value(*self._take("I")) for _ in range(values)}
        table = tuple(self._tensors(tensors))
        alignment = max(1, int(metadata.get("general.alignment", 32)))
        start = -(-self.at // alignment) * alignment
        return Head(metadata, table, start, len(self.content))

    def _take(self, kinds: str) -> tuple[Any, ...]:
        taken = struct.unpack_from(f"<{kinds}", self.content, self.at)
        self.at += struct.calcsize(f"<{kinds}")
        return taken

    def _skip(self, count: int) -> int:
        """The place before so many bytes."""
        before, self.at = self.at, self.at + count
        if self.at > len(self.content):
            raise IndexError
        return before

    def _string(self) -> str:
        (length,) = self._take("Q")
        start = self._skip(length)
        return self.content[start : self.at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind in _FIXED:
            return self._take(_FIXED[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"it has a value of kind {kind}, which is not known")
        of, count = self._take("IQ")
        if of in _FIXED:
            self._skip(count * struct.calcsize(_FIXED[of]))
        else:
            for _ in range(count):
                self._value(of) if of != _STRING else self._skip(*self._take("Q"))
        return count

    def _tensors(self, count: int) -> Iterator[Tensor]:
        for _ in range(count):
            name, (dimensions,) = self._string(), self._take("I")
            shape = self._take(f"{dimensions}Q")
            kind, offset = self._take("IQ")
            yield Tensor(name, prod(shape), kind, offset)


@cache
def head_of(file: Path) -> Head:
    """The head of a file, read once.

    Raises:
        ModelError: it is not there, cut short, or no GGUF file.
    """
    try:
        return read_head(file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise ModelError(f"{file}: {error}; fetch it anew") from None


def flaws(file: Path, needs_template: bool) -> Iterator[str]:
    """Why a GGUF file cannot become a base.

    Args:
        file: the GGUF file.
        needs_template: whether its own chat template is wanted.
    """
    try:
        head = head_of(file)
    except ModelError as error:
        yield str(error)
        return
    if find_spec("gguf") is None:
        yield f"{file.name} needs the package gguf: {INSTALL}"
    elif _is_cut(head):
        yield f"{file} is cut short; fetch it anew"
    if head.values.get("split.count", 1) not in (0, 1):
        yield f"{file.name} is one of several parts; join them with `llama-gguf-split --merge`"
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    if head.architecture not in {*GGUF_CONFIG_MAPPING, *_SPELT} - {"general", "tokenizer"}:
        yield (
            f"{file.name}: transformers cannot read the architecture {head.architecture or 'none'} "
            "from GGUF; take the model as safetensors"
        )
        return
    yield from _flaws_of_tokenizer(file, head, needs_template)


def _is_cut(head: Head) -> bool:
    """Whether the numbers of a tensor end behind the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for tensor in head.tensors:
        try:
            numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError):  # of a kind that is newer than the package
            continue
        if head.start + tensor.offset + tensor.size // numbers * size > head.bytes:
            return True
    return False


def _flaws_of_tokenizer(file: Path, head: Head, needs_template: bool) -> Iterator[str]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind, words = (head.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if not kind or not head.values.get("tokenizer.ggml.tokens"):
        yield f"{file.name} has no tokenizer; take the model as safetensors"
        return
    known = {*GGUF_PRE_TOKENIZER_SPLITS, *GPT2_WORDS, *DIGITS_APART, None}
    if kind == "gpt2" and words not in known:
        yield (
            f"{file.name}: its tokenizer cuts words as {words} does, which is not known here; "
            "take the model as safetensors"
        )
    if needs_template and not head.values.get("tokenizer.chat_template"):
        yield f"{file.name} brings no chat template: name one with chat_template, such as vicuna"
