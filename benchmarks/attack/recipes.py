"""Damaged recipes: shipped ones with a line, a word or a value spoilt, by a slip or by malice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.attack.command import run
from macpo_data.loading.load import recipe_text, shipped

VALUES = (
    "null", "-1", "0", "1e309", ".nan", "true", "''", "[]", "{}", "[[[[]]]]", "{a: {b: {c: 1}}}",
    "2026-11-29", "1:30:00", "!!python/object/apply:os.system [true]", "&a [*a]", "*a", "|",
    "\"\\e[31m\"", "\"\\0\"", "../../etc/passwd", "~", "world:none", "999999999999999999999999",
    "'" + "x" * 100_000 + "'", "[" * 300 + "]" * 300,
)  # fmt: skip
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12))


def _value(lines: list[str], rng: random.Random) -> None:
    at = rng.choice([n for n, line in enumerate(lines) if ":" in line])
    lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(VALUES)}"


def _lost(lines: list[str], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


def _twice(lines: list[str], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    lines.insert(at, lines[at])


def _moved(lines: list[str], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))))


def _indented(lines: list[str], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    lines[at] = rng.choice([" ", "  ", "\t", "\u00a0"]) + lines[at]


def _misspelt(lines: list[str], rng: random.Random) -> None:
    at = rng.choice([n for n, line in enumerate(lines) if line.strip()])
    letter = rng.randrange(len(lines[at]))
    lines[at] = lines[at][:letter] + rng.choice("x_:#'\"-\u202e\x00") + lines[at][letter + 1 :]


def _cut(lines: list[str], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines)) :]


def _bomb(lines: list[str], rng: random.Random) -> None:
    lines[:] = [*BOMB.splitlines(), *lines]


def _keys(lines: list[str], rng: random.Random) -> None:
    lines += [f"key_{n}: {n}" for n in range(30_000)]


def _long(lines: list[str], rng: random.Random) -> None:
    lines += [f"# {'x' * 100}" for _ in range(50_000)]


SLIPS: list[Callable[[list[str], random.Random], None]] = [
    _value, _value, _value, _value, _lost, _twice, _moved, _indented, _misspelt, _misspelt, _cut,
]  # fmt: skip
MALICE = [_bomb, _keys, _long]


def damaged_recipes(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Spoil the shipped recipes in turn and load each, `count` times.

    Yields:
        Each loading as an empty text, and each fault as a line.
    """
    rng = random.Random(seed)
    names = shipped()
    for trial in range(count):
        name = names[trial % len(names)]
        lines = recipe_text(name)[1].splitlines()
        damage = MALICE[trial] if trial < len(MALICE) else rng.choice(SLIPS)
        damage(lines, rng)
        file = folder / "spoilt.yaml"
        file.write_text("\n".join(lines) + "\n", "utf-8", "surrogatepass")
        for args in (("run", "--until", "1", "--dry-run"), ("status",)):
            ended = run([*args, "-r", "./spoilt.yaml"], folder)
            where = f"{trial}: {name}, {damage.__name__[1:]}: macpo {' '.join(args)}"
            yield from (f"{where}: {fault}" for fault in ended.faults())
        yield ""
