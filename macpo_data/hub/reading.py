"""Files of a published round, from the Hub or a folder: bounded in size, checked where they lie."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl

from macpo_data import hub_client
from macpo_data.errors import DataError, HubError, first_line
from macpo_data.outside import JSON_BYTES, YAML_BYTES, OutsideError, read_bytes
from macpo_data.schema import CANDIDATES, DROPPED, PAIRS, check

# A file of what was published, of so many bytes at most; None if it is not there.
Read = Callable[[str, int], bytes | None]

TABLES = {"pairs.parquet": PAIRS, "candidates.parquet": CANDIDATES, "dropped.parquet": DROPPED}
WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")
TABLE_BYTES = 4 * 1024**3
WEIGHT_BYTES = 16 * 1024**3  # LoRA of a model with 400 billion weights has some 4 GB
TABLE_ROWS = 20_000_000
# Of arrow, all but the first; polars itself panics at some damaged files.
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
UNPACKED = 64 * 1024**3  # bytes of a table in memory


def folder(root: Path) -> Read:
    """What `push --to` wrote."""

    def read(path: str, most: int) -> bytes | None:
        file = root / path
        try:
            return read_bytes(file, most) if file.is_file() else None
        except OutsideError as error:
            raise HubError(f"{file} is {error}; ask who published it") from None

    return read


def repository(repo: str, kind: hub_client.RepoType, revision: str) -> Read:
    """A repository on the Hub, at the commit that the revision names."""
    api = hub_client.connect()
    commit = str(hub_client.ask(api.repo_info, repo, repo_type=kind, revision=revision).sha)
    return partial(hub_client.fetch, api, repo, kind, commit)


def under(read: Read, prefix: str) -> Read:
    """The same, with paths that begin below a folder."""
    return lambda file, most: read(f"{prefix}/{file}", most)


def must(read: Read, path: str, place: str) -> bytes:
    """A file that has to be there, of a recipe or of JSON.

    Raises:
        HubError: it is not, or it is too large.
    """
    content = read(path, YAML_BYTES if path.endswith((".yaml", ".jinja", ".txt")) else JSON_BYTES)
    if content is None:
        raise HubError(f"{place} has no {path}; it was not published whole")
    return content


def most_of(file: str) -> int:
    """How many bytes a file of a result may have."""
    return TABLE_BYTES if file in TABLES else WEIGHT_BYTES


def check_table(content: bytes, file: str) -> int:
    """Check that a pulled table has the columns that it is read by, and nothing else.

    Returns:
        Its rows.

    Raises:
        DataError: it is no parquet file, too large, or has other columns or none of its values.
    """
    import pyarrow.parquet as pq

    table = TABLES[file]
    try:
        facts = pq.read_metadata(io.BytesIO(content))
        size = sum(facts.row_group(n).total_byte_size for n in range(facts.num_row_groups))
        if facts.num_rows > TABLE_ROWS or size > UNPACKED:
            raise DataError(f"{file} unpacks to {facts.num_rows:,} rows and {size:,} bytes")
        frame = pl.read_parquet(io.BytesIO(content))
    except _UNREADABLE as error:
        raise DataError(f"{file} is no parquet file ({first_line(error)})") from None
    if unknown := [name for name in frame.columns if name not in table]:
        raise DataError(f"{file} has a column {unknown[0]!r} that no such table has")
    rows = check(frame, table, file)
    needed = [name for name in ("prompt_id", "prompt") if name in table]
    if any(rows[name].null_count() for name in needed):
        raise DataError(f"{file} has rows without {' or '.join(needed)}")
    return len(rows)
