"""Parquet files of one configuration, written and read in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data.hub.index import Config
from macpo_data.schema import Table, check
from macpo_data.store.store import sha256

BATCH_ROWS = 10_000  # in memory at once
SHARD_ROWS = 250_000  # per file


class Shards:
    """One configuration's parquet files, written batch by batch."""

    def __init__(self, root: Path, name: str, table: Table) -> None:
        """Nothing is written yet."""
        self.name, self.table = name, table
        self._root, self._folder = root, root / "data" / name
        self._folder.mkdir(parents=True)
        self._writer: Any = None
        self._rows: list[int] = []  # of each file

    def write(self, frame: pl.DataFrame) -> None:
        """Add rows; a file is closed when it is full."""
        import pyarrow.parquet as pq

        schema = arrow_schema(self.table)
        rows = check(frame, self.table, self.name)
        arrow = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)
        if self._writer is None or self._rows[-1] + len(rows) > SHARD_ROWS:
            self._shut()
            self._writer = pq.ParquetWriter(
                self._part(len(self._rows)), schema, compression="zstd", write_page_index=True
            )
            self._rows.append(0)
        self._writer.write_table(arrow)
        self._rows[-1] += len(rows)

    def close(self) -> Config:
        """Give the files their names, which carry a hash of the content."""
        import pyarrow.parquet as pq

        if self._writer is None:
            self.write(pl.DataFrame(schema=self.table))
        self._shut()
        files, size, download = [], 0, 0
        count = len(self._rows)
        for at in range(count):
            part = self._part(at)
            meta = pq.read_metadata(part)
            size += sum(meta.row_group(g).total_byte_size for g in range(meta.num_row_groups))
            download += part.stat().st_size
            name = f"train-{at:05d}-of-{count:05d}-{sha256(part)[:12]}.parquet"
            files.append(str(part.replace(self._folder / name).relative_to(self._root)))
        return {
            "files": files,
            "features": [feature(name, dtype) for name, dtype in self.table.items()],
            "rows": sum(self._rows),
            "bytes": size,
            "download": download,
        }

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}"

    def _shut(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def batches(path: Path) -> Iterator[pl.DataFrame]:
    """The rows of a parquet file, some thousand at once."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


# How both arrow and `datasets` call what is neither a message nor a list of them.
_KINDS = {pl.String: "string", pl.Int64: "int64", pl.Float64: "float64", pl.Boolean: "bool"}


def arrow_schema(table: Table) -> Any:
    """A table's columns in the types of arrow, as they are written."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])

    def convert(dtype: pl.DataType) -> Any:
        if isinstance(dtype, pl.List):
            return pa.list_(message)
        return message if isinstance(dtype, pl.Struct) else pa.type_for_alias(_KINDS[type(dtype)])

    return pa.schema([(name, convert(dtype)) for name, dtype in table.items()])


def feature(name: str, dtype: pl.DataType) -> dict[str, Any]:
    """A column as the card's dataset_info declares it, in the form that `datasets` reads."""
    message = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
    if isinstance(dtype, pl.List):
        return {"name": name, "list": message}
    if isinstance(dtype, pl.Struct):
        return {"name": name, "struct": message}
    return {"name": name, "dtype": _KINDS[type(dtype)]}
