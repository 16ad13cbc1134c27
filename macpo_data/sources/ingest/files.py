"""One data file as batches of records, whatever its kind; a large one is never in memory whole."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

from macpo_data.errors import DataError, first_line
from macpo_data.outside import open_bytes
from macpo_data.sources.ingest import json_text
from macpo_data.sources.ingest.json_text import BrokenText, Record

Batches = Iterator[list[Record]]

BATCH = 1000  # records of a batch
TEXTS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*TEXTS, *(f"{t}{c}" for t in TEXTS for c in (".gz", ".zst")), ".parquet", ".arrow")
_MAGIC = {b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


def is_data(path: Path) -> bool:
    """Whether a file of a folder may hold rows, by its name."""
    return path.name.endswith(SUFFIXES) and path.name not in _FACTS


_FACTS = ("manifest.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json",
          "state.json")  # fmt: skip


def read_file(path: str | Path) -> Batches:
    """The records of a file: JSON in any layout, CSV, TSV, parquet or Arrow, .gz and .zst too.

    Raises:
        DataError: it cannot be read, with the line where there is one.
    """
    file = Path(path).expanduser()
    try:
        with ExitStack() as opened:
            stream: BinaryIO = opened.enter_context(open_bytes(file))
            kind = _kind(file.name, stream)
            if kind in (".gz", ".zst"):
                stream, kind = _unpacked(stream, kind), _kind(file.name[: -len(kind)], None)
            readers: dict[str, Callable[[], Batches]] = {
                ".parquet": lambda: _parquet(stream),
                ".arrow": lambda: _arrow(stream),
                ".csv": lambda: _batched(_table(stream, None)),
                ".tsv": lambda: _batched(_table(stream, "\t")),
            }
            yield from readers.get(kind, lambda: _batched(json_text.records(stream)))()
    except GeneratorExit:  # whoever reads has enough; what is below is for mistakes
        raise
    except FileNotFoundError:
        raise DataError(f"no file {path}; a path starts at this folder") from None
    except (BrokenText, csv.Error) as error:
        raise DataError(f"cannot read {path}, {error}; mend the file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}; it is cut short") from None
    except _arrow_errors() as error:
        raise DataError(
            f"cannot read {path}: {first_line(error)}; it is damaged, cut short or of another kind "
            "than its name says"
        ) from None
    except IsADirectoryError:
        raise DataError(
            f"{path} is a folder; name its files, such as {str(path).rstrip('/')}/x.parquet"
        ) from None
    except (OSError, ValueError) as error:  # a name that can be none
        why = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"cannot read {path}: {why}; check the file") from None


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException,)


def _kind(name: str, stream: BinaryIO | None) -> str:
    """What a file is: by its first bytes where they say so, else by its name."""
    if stream is not None:
        head = stream.read(4)
        stream.seek(0)
        for magic, kind in _MAGIC.items():
            if head.startswith(magic):
                return kind
    return next((s for s in (".parquet", ".arrow", ".csv", ".tsv", ".gz") if name.endswith(s)), "")


def _unpacked(stream: BinaryIO, kind: str) -> BinaryIO:
    if kind == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    import pyarrow

    return cast(BinaryIO, pyarrow.CompressedInputStream(stream, "zstd"))


def _batched(records: Iterator[Record]) -> Batches:
    while batch := list(itertools.islice(records, BATCH)):
        yield batch


def _parquet(stream: BinaryIO) -> Batches:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream)
    _refuse_twins(file.schema_arrow.names)
    for batch in file.iter_batches(BATCH):
        yield as_records(batch)


def _arrow(stream: BinaryIO) -> Batches:
    """A file or a stream of Arrow's IPC; `datasets` writes the latter."""
    import pyarrow

    try:
        reader = pyarrow.ipc.open_stream(stream)
    except pyarrow.ArrowInvalid:
        stream.seek(0)
        file = pyarrow.ipc.open_file(stream)
        reader = (file.get_batch(n) for n in range(file.num_record_batches))
    for batch in reader:
        _refuse_twins(batch.schema.names)
        for at in range(0, batch.num_rows, BATCH):
            yield as_records(batch.slice(at, BATCH))


def as_records(batch: Any) -> list[Record]:
    """Records of an Arrow batch or table.

    A struct has all fields that any row has: those that are null are not there.
    """
    import pyarrow

    nested = any(pyarrow.types.is_nested(field.type) for field in batch.schema)
    records: list[Record] = batch.to_pylist()
    return [{k: _bare(v) for k, v in r.items()} for r in records] if nested else records


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items() if v is not None}
    return [_bare(each) for each in value] if isinstance(value, list) else value


def _refuse_twins(names: list[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ValueError(f"the column {twins[0]} is named twice")


def _table(stream: BinaryIO, delimiter: str | None) -> Iterator[Record]:
    """The rows of a table in text; all values are text."""
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        head = text.readline()
        if delimiter is None:
            delimiter = next((mark for mark in ",;\t" if mark in head), ",")
        rows = csv.reader(itertools.chain([head], text), delimiter=delimiter, strict=True)
        names = next(rows, [])
        _refuse_twins(names)
        for row in rows:
            if row and len(row) != len(names):
                reason = f"it has {len(row)} fields, and the first line {len(names)}"
                raise BrokenText(rows.line_num, reason)
            if row:
                yield dict(zip(names, row, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is no UTF-8 (byte 0x{error.object[error.start]:02x}; Latin-1 perhaps)"
        ) from None
    except csv.Error as error:
        raise BrokenText(rows.line_num, f"{error}") from None
