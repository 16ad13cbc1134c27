"""The data that MACPO's authors released: a folder of their repository for each of three datasets.

A folder, such as data/HH-Helpful, holds JSON lists of {instruction, input, output}: weak_teachers/
has D1's human answers, good and bad in a file each, and the pairs of each teacher and round;
strong_students/ has the labels on D2, likewise, and the student's pairs. What stands here of its
shape is read off the release (github.com/youganglyu/MACPO). Rows stay as they are: in their order,
with their duplicates, and with a whole dialogue as text in one instruction.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.errors import DataError
from macpo_data.outside import OutsideError, parse_json, read_bytes
from macpo_data.schema import Part

TEACHERS, STUDENTS = "weak_teachers", "strong_students"
BATCH = 1000  # records that are handed on at once
_STAGE = re.compile(r"_stage(\d+)_")
_MEND = "clone github.com/youganglyu/MACPO anew, with all its data"

Record = dict[str, Any]
_Row = tuple[str, list[str]]  # an instruction, and one answer, or the chosen and the rejected


def is_release(folder: Path) -> bool:
    """Whether a folder holds one dataset of the release."""
    return (folder / TEACHERS).is_dir() and (folder / STUDENTS).is_dir()


def sha256(folder: Path) -> str:
    """Pin a folder: the hash of its files' names and contents."""
    files = sorted(folder.rglob("*.json"))
    sums = [f"{path.relative_to(folder)} {_sum(path)}" for path in files]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def read_part(place: str, part: Part) -> Iterator[list[Record]]:
    """The rows of a part: D1 with both human answers, D2's prompts alone, the test with the good.

    D2's answers are a teacher's, which macpo makes by itself; `round_0_student` has the released.

    Raises:
        DataError: the folder is not there, or a file is not of the release's form.
    """
    folder = Path(place).expanduser()
    if not is_release(folder):
        raise DataError(_not_there(folder))
    if part == "d1":
        yield from read_round(folder, "round_0_teachers")
    elif part == "d2":
        rows = _read(_one(folder, folder / STUDENTS, is_bad=False), 1)
        yield from _batched({"prompt": _prompt(text)} for text, _ in rows)
    else:
        rows = _read(_one(folder, folder, is_bad=False), 1)
        asked = ((_prompt(text), _answer(answers[0])) for text, answers in rows)
        yield from _batched({"prompt": prompt, "completion": answer} for prompt, answer in asked)


def read_round(folder: Path, config: str | None) -> Iterator[list[Record]]:
    """The pairs of a learner in a round, as those of a published round are read.

    Args:
        folder: of one dataset.
        config: round_0_teachers and round_0_student (answers to imitate, and bad ones), then
            round_1_student, round_1_llama and so on, with the release's names of its teachers.

    Raises:
        DataError: there is no such configuration, or a file is not of the release's form.
    """
    names = configs(folder)
    if config not in names:
        raise DataError(
            f"{folder} has no {config or 'default'}; choose --config {', '.join(names)}"
        )
    if (file := names[config]) is not None:
        pairs = _read(file, 2)
        yield from _batched(_pair(text, *answers) for text, answers in pairs)
        return
    where = folder / (TEACHERS if config == "round_0_teachers" else STUDENTS)
    yield from _batched(_side_by_side(*(_one(folder, where, is_bad=b) for b in (False, True))))


def configs(folder: Path) -> dict[str, Path | None]:
    """The rounds by the names of their configurations, with the file of each.

    Those of round 0 have None: they are made of two files.
    """
    names: dict[str, Path | None] = {"round_0_teachers": None, "round_0_student": None}
    for path in sorted(folder.glob("*/*.json")):
        if stage := _STAGE.search(path.name):
            is_student = path.parent.name == STUDENTS
            learner = "student" if is_student else path.stem.rpartition("_")[2]
            names[f"round_{stage[1]}_{learner}"] = path
    return dict(sorted(names.items()))


def tell_apart(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of which those of one prompt have different ids: the first has the prompt's own."""
    seen: dict[str, int] = {}
    ids: list[str | None] = []
    for prompt_id in rows["prompt_id"]:
        turn = seen[prompt_id] = seen.get(prompt_id, -1) + 1
        is_first = prompt_id is None or turn == 0
        again = f"{prompt_id} {turn}".encode()
        ids.append(prompt_id if is_first else hashlib.sha256(again).hexdigest())
    return rows.with_columns(prompt_id=pl.Series(ids, dtype=pl.String))


def _one(folder: Path, where: Path, is_bad: bool) -> Path:
    """The one file of answers, good or bad ones, that belongs to no later round.

    Raises:
        DataError: there is none, or several.
    """
    files = [path for path in sorted(where.glob("*.json")) if not _STAGE.search(path.name)]
    meant = [path for path in files if ("_neg" in path.stem) == is_bad]
    if len(meant) == 1:
        return meant[0]
    what = f"{len(meant)} files" if meant else "no file"
    kind = "bad answers" if is_bad else "good answers"
    raise DataError(f"{where} has {what} of {kind} (*.json), and not one; {_MEND}")


def _side_by_side(good: Path, bad: Path) -> Iterator[Record]:
    """The rows of two files with the same instructions in the same order."""
    pairs = itertools.zip_longest(_read(good, 1), _read(bad, 1))
    for n, (one, other) in enumerate(pairs):
        if one is None or other is None or one[0] != other[0]:
            raise DataError(
                f"{bad}: row {n} has not the instruction that {good.name} has there; {_MEND}"
            )
        yield _pair(one[0], one[1][0], other[1][0])


def _read(path: Path, answers: int) -> list[_Row]:
    """The rows of a file, each with so many answers.

    Raises:
        DataError: it is no list of them.
    """
    try:
        rows = parse_json(read_bytes(path))
    except (OSError, OutsideError) as error:
        raise DataError(f"cannot read {path}: {error}; {_MEND}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: it is no list of rows; {_MEND}")
    return [_row(path, n, row, answers) for n, row in enumerate(rows)]


def _row(path: Path, n: int, row: Any, answers: int) -> _Row:
    values = row if isinstance(row, dict) else {}
    asked = [values.get("instruction"), values.get("input", "")]
    output = values.get("output")
    written = [output] if isinstance(output, str) else output
    wanted = "an output that is text" if answers == 1 else "an output of two texts"
    if not all(isinstance(each, str) for each in asked):
        raise DataError(f"{path}: row {n} has no instruction; {_MEND}")
    is_list = isinstance(written, list) and all(isinstance(each, str) for each in written)
    if not is_list or not written or len(written) != answers:
        raise DataError(f"{path}: row {n} has not {wanted}; {_MEND}")
    return "\n".join(filter(None, asked)), list(written)


def _pair(instruction: str, good: str, bad: str) -> Record:
    return {"prompt": _prompt(instruction), "chosen": _answer(good), "rejected": _answer(bad)}


def _prompt(instruction: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": instruction}]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _batched(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(itertools.islice(records, BATCH)):
        yield batch


def _sum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _not_there(folder: Path) -> str:
    """Why a folder is none of the release, and what to name instead."""
    inside = [each.parent for each in sorted(folder.glob(f"*/{TEACHERS}"))]
    inside += [each.parent for each in sorted(folder.glob(f"*/*/{TEACHERS}"))]
    if inside:
        return f"{folder} holds several datasets; name one: {', '.join(map(str, inside))}"
    what = f"has no {TEACHERS} and {STUDENTS}" if folder.is_dir() else "is not there"
    return (
        f"{folder} {what}; data.path is a dataset's folder in a clone of "
        "github.com/youganglyu/MACPO, such as MACPO/data/HH-Helpful"
    )
