"""What somebody else wrote, as values: one door for JSON and one for YAML, both within bounds.

A file may come from another person, another process or another version. So its size, its depth and
what it can grow to are bounded before anything is made of it. Every mistake is one `OutsideError`.
"""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic_core import from_json

from macpo_data.errors import MacpoError

JSON_BYTES = 64 * 1024 * 1024  # the longest history of a training has some MB
# Python's own YAML reader takes eight times as long as libyaml, and some seconds are enough.
_SLOWER = 1 if yaml.__with_libyaml__ else 4
YAML_BYTES = 1024 * 1024 // _SLOWER  # the longest recipe has some 20 kB
MAX_NODES = 50_000 // _SLOWER  # of YAML: keys, values and lists
MAX_DEPTH = 64  # of YAML; JSON's parser has a bound of its own, some 200
MAX_DIGITS = 400  # of a number; a float has some 300

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class OutsideError(MacpoError, ValueError):
    """What was read is no JSON or YAML, or it is beyond the bounds. The message names no file."""


def open_bytes(path: Path) -> BufferedReader:
    """Open what may be anything. A pipe that nobody writes into is empty, and not waited for.

    Raises:
        OSError: it cannot be read.
    """

    def without_waiting(name: str, flags: int) -> int:
        handle = os.open(name, flags | os.O_NONBLOCK)
        os.set_blocking(handle, True)  # where somebody writes, what comes is waited for
        return handle

    return open(path, "rb", opener=without_waiting)


def read_bytes(path: Path, most: int = JSON_BYTES) -> bytes:
    """The content of a file that may be of any size.

    Raises:
        OutsideError: it is larger than `most` bytes.
        OSError: it cannot be read.
    """
    with open_bytes(path) as file:
        content = file.read(most + 1)
    _check_size(len(content), most)
    return content


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """The text of a file that may be of any size.

    Raises:
        OutsideError: it is larger than `most` bytes.
        ValueError: it is no UTF-8.
        OSError: it cannot be read.
    """
    text = read_bytes(path, most).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(content: bytes | str, most: int = JSON_BYTES) -> Any:
    """JSON as values.

    Raises:
        OutsideError: it is none, or larger or deeper than anything that macpo writes.
    """
    _check_size(len(content), most)
    try:
        return from_json(content)  # which itself refuses more than some 200 levels
    except ValueError as error:
        raise OutsideError(f"not valid JSON: {error}") from None


def parse_object(content: bytes | str, most: int = JSON_BYTES) -> dict[str, Any]:
    """JSON that is a mapping of keys.

    Raises:
        OutsideError: as `parse_json`, or it is no mapping.
    """
    values = parse_json(content, most)
    if not isinstance(values, dict):
        raise OutsideError("not a mapping of keys")
    return values


def parse_yaml(text: str | bytes, most: int = YAML_BYTES) -> Any:
    """YAML of one document as values. Aliases are refused, for a few of them may name billions.

    Raises:
        OutsideError: it is none, or beyond the bounds; with the line where that is known.
    """
    try:
        return yaml.load(_within_bounds(text, most), _Loader)
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        raise _refused(error) from None


def compose_yaml(text: str, most: int = YAML_BYTES) -> yaml.Node | None:
    """YAML of one document as nodes, which know their place in the text.

    Raises:
        OutsideError: as `parse_yaml`.
    """
    try:
        return yaml.compose(_within_bounds(text, most), _SafeLoader)
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        raise _refused(error) from None


class _Problem(yaml.MarkedYAMLError):
    """Something that YAML allows and we do not. Its words are ours, so they may be shown."""


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Safe YAML that refuses a key that stands twice, and numbers that take long to read."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """YAML itself would silently take the last of the values."""
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                value = self.construct_object(key)
                if value in keys:
                    raise _Problem(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
                keys.add(value)
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        """Reading a number takes time with the square of its length."""
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if is_number and len(node.value) > MAX_DIGITS:
            raise _Problem(
                problem=f"a number of more than {MAX_DIGITS} digits", problem_mark=node.start_mark
            )
        return super().construct_scalar(node)


def _within_bounds(text: str | bytes, most: int) -> str | bytes:
    """The same text, after a look at its events, of which each is one key, value or list."""
    _check_size(len(text), most)
    depth = 0
    for count, event in enumerate(yaml.parse(text, _SafeLoader)):
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = f"aliases (*{event.anchor}) are not read; write the value out"
        elif count > MAX_NODES:
            problem = f"more than {MAX_NODES:,} keys and values"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            problem = f"deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else None
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if problem:
            raise _Problem(problem=problem, problem_mark=cast(yaml.Mark, event.start_mark))
    return text


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise OutsideError(f"larger than {most:,} bytes")


def _refused(error: Exception) -> OutsideError:
    if isinstance(error, OutsideError):
        return error
    mark = getattr(error, "problem_mark", None)
    line = f" at line {mark.line + 1}" if mark else ""
    # Of these the words are the parser's alone; others repeat what stands there, a key perhaps.
    is_plain = isinstance(error, _Problem | yaml.parser.ParserError | yaml.scanner.ScannerError)
    why = f": {getattr(error, 'problem', '')}" if is_plain else ""
    return OutsideError(f"not valid YAML{line}{why}")
