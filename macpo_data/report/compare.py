"""Compares two versions of a round: differences in the recipe and in the pairs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macpo_data import hub_client
from macpo_data.errors import DataError, first_line, of_run
from macpo_data.outside import YAML_BYTES, OutsideError, parse_object, parse_yaml, read_bytes
from macpo_data.recipe.data import Columns
from macpo_data.sources.files import is_local, is_plain_file
from macpo_data.sources.ingest.door import frame, open_rows
from macpo_data.sources.ingest.splits import Dataset, default_config
from macpo_data.store.manifests import MANIFEST

_FINGERPRINT = re.compile(r"^[0-9a-f]{8}$")
SCORED = ("chosen_perplexity", "rejected_perplexity", "chosen_num_tokens", "rejected_num_tokens")


@dataclass(frozen=True)
class Version:
    """One version: its pairs, and its recipe if that is known."""

    name: str
    pairs: pl.DataFrame  # prompt_id, prompt, chosen, rejected, and the scores it has
    recipe: dict[str, Any] | None


@dataclass(frozen=True)
class Comparison:
    """What differs."""

    names: tuple[str, str]
    recipe: dict[str, tuple[Any, Any]] | None  # dotted path -> both values; None if not known
    counts: dict[str, int]
    quantiles: dict[str, tuple[tuple[float, ...] | None, tuple[float, ...] | None]]
    changed: pl.DataFrame  # prompt_id, prompt, chosen_a, chosen_b


def load_version(what: str, config: str | None, runs: Path) -> Version:
    """Find a version by its path, its fingerprint, or as org/name@tag.

    Raises:
        DataError: it is not there, or is no set of pairs.
        HubError: the Hub refuses.
    """
    if _FINGERPRINT.match(what):
        manifests = sorted(runs.glob(f"*/data/*-{what}/{MANIFEST}"))
        if not manifests:
            raise DataError(
                f"no dataset {what} under {runs}; `{of_run('status --json')}` lists them"
            )
        return _stored(manifests[0].parent)
    folder = Path(what)
    if (folder / MANIFEST).is_file():
        return _stored(folder)
    place, _, revision = what.rpartition("@")
    if not place or Path(what).expanduser().exists():
        place, revision = what, ""
    if revision and is_local(place):
        raise DataError(f"{place} is on this disk, where nothing has tags; leave out @{revision}")
    config = config if has_configs(place) else None  # the other version's
    judged = open_rows(Dataset(place, config, revision or None), Columns())
    scores = [name for name in SCORED if name in judged.layout.kinds]
    rows = frame(judged, *scores).filter(pl.col("prompt_id").is_not_null())
    return Version(what, rows, _published_recipe(place, config, revision))


def has_configs(what: str) -> bool:
    """Whether a version is one of several configurations; no file and no result of a run is."""
    is_result = _FINGERPRINT.match(what) or (Path(what) / MANIFEST).is_file()
    return not is_result and not is_plain_file(what)


def _stored(folder: Path) -> Version:
    try:
        manifest = parse_object(read_bytes(folder / MANIFEST))
        pairs = pl.read_parquet(folder / "pairs.parquet")
        pairs.select("prompt_id", "prompt", "chosen", "rejected")
        return Version(str(folder), pairs, manifest.get("recipe"))
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        reason = first_line(error)
        raise DataError(
            f"{folder} is no dataset of a round: {reason}; see `{of_run('status')}`"
        ) from None


def _published_recipe(place: str, config: str | None, revision: str) -> dict[str, Any] | None:
    """The recipe that travels along, if macpo published it."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        name = config or default_config(folder / "README.md")
        path = folder / "macpo" / str(name) / "recipe.yaml"
        content = read_bytes(path, YAML_BYTES) if path.is_file() else None
    elif is_local(place):
        content = None
    else:
        with hub_client.one_line("read", place):
            api = hub_client.connect()
            info = hub_client.ask(
                api.repo_info, place, repo_type="dataset", revision=revision or None
            )
            card = hub_client.fetch(api, place, "dataset", str(info.sha), "README.md")
            name = config or default_config(card or b"")
            content = hub_client.fetch(
                api, place, "dataset", str(info.sha), f"macpo/{name}/recipe.yaml"
            )
    try:
        values = None if content is None else parse_yaml(content)
    except OutsideError as error:
        raise DataError(f"{place}: its recipe is damaged ({error}); ask who published it") from None
    return values if isinstance(values, dict) else None


def compare(a: Version, b: Version) -> Comparison:
    """What differs between two versions."""
    one, other = (v.pairs.unique("prompt_id", keep="first", maintain_order=True) for v in (a, b))
    both = one.join(other, on="prompt_id", suffix="_b", maintain_order="left")
    changed = both.filter(pl.col("chosen") != pl.col("chosen_b"))
    counts = {
        "pairs in A": len(a.pairs),
        "pairs in B": len(b.pairs),
        "prompts in both": len(both),
        "prompts only in A": len(one) - len(both),
        "prompts only in B": len(other) - len(both),
        "changed their chosen": len(changed),
        "changed their rejected": len(both.filter(pl.col("rejected") != pl.col("rejected_b"))),
    }
    measures = {
        "chosen characters": pl.col("chosen").str.len_chars(),
        "rejected characters": pl.col("rejected").str.len_chars(),
        **{name.replace("_", " ").replace("num ", ""): pl.col(name) for name in SCORED},
    }
    quantiles = {
        what: (_quantiles(a.pairs, measure), _quantiles(b.pairs, measure))
        for what, measure in measures.items()
    }
    recipe = None if a.recipe is None or b.recipe is None else differences(a.recipe, b.recipe)
    return Comparison(
        (a.name, b.name),
        recipe,
        counts,
        {what: pair for what, pair in quantiles.items() if any(pair)},
        changed.select("prompt_id", "prompt", chosen_a="chosen", chosen_b="chosen_b"),
    )


def differences(a: Any, b: Any, at: str = "") -> dict[str, tuple[Any, Any]]:
    """The leaves in which two recipes differ, by their dotted paths."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return {} if a == b else {at: (a, b)}
    changes: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*a, *b]):
        changes |= differences(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))
    return changes


def _quantiles(pairs: pl.DataFrame, measure: pl.Expr) -> tuple[float, ...] | None:
    if not set(measure.meta.root_names()) <= set(pairs.columns):
        return None
    values = pairs.select(measure.cast(pl.Float64)).to_series().drop_nulls()
    if values.is_empty():
        return None
    return tuple(float(values.quantile(q) or 0.0) for q in (0.05, 0.5, 0.95))
