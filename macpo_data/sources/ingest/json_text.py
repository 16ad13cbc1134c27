"""JSON text as records, read piece by piece: arrays, lines, indented objects, wrapped lists.

The standard library's decoder is used, because it stops at the end of a value, which lets a large
file pass through a small window, and because it shows each object's keys as they are written, so
that a key that stands twice is seen.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

Record = dict[str, Any]

WINDOW = 1 << 20  # bytes that are read at once
WRAPPERS = ("data", "rows", "examples", "records", "instances")  # keys that hold a file's rows
_SPACE = re.compile(r"[\s\ufeff]*")  # files that were joined may each begin with a byte order mark
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
# The decoder may stumble over the window's edge this many characters before it: `-Infinity`, `\\u`.
_EDGE = 16
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class BrokenText(Exception):
    """Text that is no JSON, with the line where, as a person would count it."""

    def __init__(self, line: int, reason: str) -> None:
        """Keep both for the message."""
        super().__init__(f"line {line}: {reason}")


def records(stream: BinaryIO) -> Iterator[Record]:
    r"""The objects of a JSON text, in order.

    Args:
        stream: UTF-8 or UTF-16. One or more objects, on lines of their own or over many; one or
            more arrays of objects; or one object that holds them under a key such as `data`.

    Raises:
        BrokenText: anything in it is not that.

    >>> import io
    >>> list(records(io.BytesIO(b'{"a": 1}\n{"a": 2}')))
    [{'a': 1}, {'a': 2}]
    """
    window = _Window(stream)
    first: Record | None = None
    count = 0
    while char := window.peek():
        for record in _array(window) if char == "[" else [_object(window)]:
            count += 1
            if count == 1:
                first = record
                continue
            if first is not None:
                yield first
                first = None
            yield record
    if first is not None:
        yield from _unwrapped(first)


def _unwrapped(only: Record) -> list[Record]:
    """The rows inside the only object of a file, or that object."""
    for key in WRAPPERS:
        inner = only.get(key)
        if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner):
            return inner
    return [only]


def _object(window: _Window) -> Record:
    line = window.line
    value = window.value()
    if not isinstance(value, dict):
        raise BrokenText(line, f"it holds {_kind(value)}, not an object such as {{...}}")
    return value


def _array(window: _Window) -> Iterator[Record]:
    """The objects of an array, which is never in memory whole."""
    window.skip()
    while (char := window.peek()) != "]":
        yield _object(window)
        char = window.peek()
        if char == ",":
            window.skip()
            if window.peek() == "]":
                raise BrokenText(window.line, "a comma before ]")
        elif char != "]":
            reason = f"{char!r} where a comma or ] belongs" if char else "the file is cut off"
            raise BrokenText(window.line, reason)
    window.skip()


class _Window:
    """A part of a text, with a place in it up to which it was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._text, self._at = "", 0
        self._decode: codecs.IncrementalDecoder | None = None
        self._ended = False
        self._lines, self._counted = 1, 0  # the line of `_counted`, a place in the text
        self._has_surrogates = False
        self._decoder = json.JSONDecoder(object_pairs_hook=_without_twins)

    @property
    def line(self) -> int:
        """The line of the place."""
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None  # nothing is a match as well
            self._at = space.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Pass one character."""
        self._at += 1

    def value(self) -> Any:
        """The JSON value that begins here, and pass it."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                at_edge = error.pos > len(self._text) - _EDGE
                if (at_edge or error.msg.startswith("Unterminated")) and self._more():
                    continue
                raise BrokenText(*self._explained(error)) from None
            except RecursionError:
                raise BrokenText(self.line, "it is nested too deeply") from None
            except ValueError as error:  # a key that stands twice, a number of too many digits
                raise BrokenText(self.line, str(error).split(";")[0]) from None
            if (
                end > len(self._text) - _EDGE
                and not isinstance(value, dict | list)
                and self._more()
            ):
                continue  # the rest of a number may be to come
            self._check_surrogates(value, end)
            self._at = end
            return value

    def _explained(self, error: json.JSONDecodeError) -> tuple[int, str]:
        """The line of a mistake, and its reason in words."""
        start, text = self.line, self._text
        line = start + text.count("\n", self._at, error.pos)
        before = text[self._at : error.pos].rstrip()
        char = text[error.pos : error.pos + 1]
        if self._ended and (
            error.pos > len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        ):
            return start, "it is cut off; the lines before it are whole"
        if char in "}]" and before.endswith(","):
            return line, f"a comma before {char}"
        column = error.pos - text.rfind("\n", 0, error.pos)
        return line, f"it is no JSON at column {column}: {error.msg[0].lower()}{error.msg[1:]}"

    def _check_surrogates(self, value: Any, end: int) -> None:
        if self._has_surrogates and _ESCAPED_SURROGATE.search(self._text, self._at, end):
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(error.object[error.start]):04x}"
                raise BrokenText(
                    self.line, f"{half} without its other half, as of a text cut within a character"
                ) from None

    def _more(self) -> bool:
        """Read on; False where there is no more. A value that is long doubles what is read."""
        if self._ended:
            return False
        line = self.line
        rest = self._text[self._at :]
        raw = self._stream.read(max(WINDOW, 2 * len(rest)))
        if self._decode is None:
            encoding = "utf-16" if raw[:2] in _UTF16 else "utf-8"
            self._decode = codecs.getincrementaldecoder(encoding)()
        self._ended = not raw
        try:
            new = self._decode.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            whole = error.object[: error.start].decode(error.encoding, "ignore")
            at = line + rest.count("\n") + whole.count("\n")
            byte = error.object[error.start]
            raise BrokenText(
                at, f"it is no {error.encoding.upper()} (byte 0x{byte:02x}; Latin-1 perhaps); save "
                "the file as UTF-8"
            ) from None  # fmt: skip
        self._text, self._at, self._counted = rest + new, 0, 0
        self._has_surrogates = "\\ud" in self._text or "\\uD" in self._text
        return True


def _without_twins(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twin!r} is named twice in one object")
    return record


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {str: "text", list: "a list", bool: "true or false"}.get(type(value), "a number")
