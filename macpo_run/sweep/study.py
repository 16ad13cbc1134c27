"""A study: one recipe in several variants, each with several seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from macpo_data.errors import MacpoError, RecipeError, did_you_mean
from macpo_data.loading.explain import explain
from macpo_data.loading.load import load_recipe, read_yaml
from macpo_data.outside import YAML_BYTES, OutsideError, parse_yaml, read_text
from macpo_data.recipe import secrets
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import Count, Name, Section, Seed
from macpo_data.shipped_recipes import names_in, recipes_folder
from macpo_run.terminal.lines import say_aside

Settings = dict[str, Any]  # dotted key of the recipe: value
AS_WRITTEN = "as written"  # the one variant of a study that only varies the seed
SHARED = {"run": "--run", "rounds": "--until", "seed": "--seeds"}  # by all variants: its option
_SHIPPED = re.compile(r"^[a-z0-9_]+$")


class Primary(Section):
    """The one comparison that a study is made for, named before its results are seen."""

    first: str  # a variant; its lead over the second one is tested without correction
    second: str  # another variant


class Study(Section):
    """What is compared. Each variant is combined with each point of the grid."""

    recipe: str | None = None  # a name or a file; null: as for every command
    run: Name | None = None  # folder under runs/ that all share; null: the recipe's own
    rounds: Annotated[int, Field(ge=0)] | None = None  # the last one; null: the recipe's
    # So many, from the recipe's seed on, or these.
    seeds: Annotated[Count, Field(le=1000)] | Annotated[list[Seed], Field(min_length=1)] = 1
    agents: list[str] = Field(default=[])  # whom to measure; none: the student
    set: Settings = Field(default={})  # laid over the recipe, for all variants
    # Name in the table: what is laid over the recipe for it.
    variants: dict[str, Settings] = Field(default={})
    # Dotted key of the recipe: its values.
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    primary: Primary | None = None  # null: every comparison is one of many


@dataclass(frozen=True)
class Variant:
    """One recipe of a study, with one of its seeds."""

    name: str
    recipe: Recipe


def shipped() -> list[str]:
    """Names of the studies that come with the package."""
    return names_in(recipes_folder() / "studies")


def load_study(study: str | None, changes: dict[str, Any]) -> Study:
    """Load a study by name or file, or begin an empty one.

    Args:
        study: as a person names it; None for none.
        changes: fields that the command line lays over it.

    Raises:
        MacpoError: there is no such study, or it has mistakes; all at once.
    """
    try:
        values = read_yaml("", _text(study)) if study else {}
        own = Study.model_validate(values).seeds
        return _first_of(own, Study.model_validate(values | changes))
    except RecipeError as error:
        problems = error.problems
    except ValidationError as error:
        problems = explain(error, Study)
    raise MacpoError(f"{f'study {study}' if study else 'sweep'}: {'; '.join(problems)}") from None


def _first_of(own: int | list[int], study: Study) -> Study:
    """A study that is asked for so many seeds takes the first ones of those that it lists.

    Raises:
        MacpoError: it lists fewer.
    """
    asked = study.seeds
    if isinstance(own, int) or isinstance(asked, list):
        return study
    if asked > len(own):
        listed = ", ".join(map(str, own))
        raise MacpoError(
            f"--seeds {asked}: the study lists {len(own)} ({listed}); for seed {asked} alone write "
            f"--seeds {asked},"
        )
    return study.model_copy(update={"seeds": own[:asked]})


def _text(study: str) -> str:
    try:
        if not _SHIPPED.match(study):
            return read_text(Path(study), YAML_BYTES)
        if study in shipped():
            return (recipes_folder() / "studies" / f"{study}.yaml").read_text("utf-8")
    except (OSError, ValueError) as error:
        raise MacpoError(f"cannot read study {study}: {error}; give a YAML file") from None
    raise MacpoError(
        f"no study named {study!r}{did_you_mean(study, shipped())}; shipped are "
        f"{', '.join(shipped())} (a file is given with its path, such as ./mine.yaml)"
    )


def parse_grid(given: Sequence[str]) -> dict[str, list[Any]]:
    """Read `key=a,b,c` as a person types it.

    Raises:
        MacpoError: there is no key or no value, or a key is there twice.
    """
    grid: dict[str, Any] = {}
    for text in given:
        key, _, values = text.partition("=")
        if key in grid:
            raise MacpoError(
                f"--grid {secrets.shown(text)}: {key} was given before; give all its values at once"
            )
        try:
            grid[key] = parse_yaml(f"[{values}]")
        except OutsideError:
            grid[key] = None
        if not key or not isinstance(grid[key], list) or not grid[key]:
            raise MacpoError(f"--grid {secrets.shown(text)}: write it as key.key=value,value")
    return grid


def parse_seeds(text: str) -> int | list[int]:
    """Read `3` (so many) or `3,4,5` (these).

    Raises:
        MacpoError: it is neither.
    """
    if not re.fullmatch(r"\d+(,\d*)*", text):
        raise MacpoError(f"--seeds {text}: write a count such as 3, or seeds such as 3,4,5")
    return [int(seed) for seed in text.split(",") if seed] if "," in text else int(text)


def variants(study: Study, sets: list[str] | None = None) -> list[Variant]:
    """All recipes of a study: seed by seed, variant by variant.

    Args:
        study: what is compared.
        sets: settings from the command line, which have the last word.

    Raises:
        MacpoError: a variant is no valid recipe, or sets what all share, or the primary contrast
            is not between two variants.
    """
    if not study.variants and not study.grid and study.seeds == 1:
        raise MacpoError(
            "nothing to compare: say --grid key=a,b, --seeds 3, or a study: " + ", ".join(shipped())
        )
    named = [*study.set, *(setting.partition("=")[0] for setting in sets or [])]
    if isinstance(study.seeds, list) and "seed" in named:
        raise MacpoError("seed: the study lists its seeds; choose others with --seeds")
    everywhere = [(k, v) for k in ("run", "rounds") if (v := getattr(study, k)) is not None]
    recipes, asides = {}, dict[str, None]()
    for name, settings in _points(study):
        try:
            over = [*study.set.items(), *settings.items(), *everywhere]
            recipes[name] = load_recipe(study.recipe, sets, over, asides.setdefault)
        except RecipeError as error:
            raise RecipeError(f"{error.source}, {secrets.shown(name)}", error.problems) from None
    for line in asides:
        say_aside(line)
    if study.primary is not None:
        _check_primary(study.primary, list(recipes))
    first = next(iter(recipes.values())).seed
    seeds = study.seeds if isinstance(study.seeds, list) else range(first, first + study.seeds)
    if seeds[-1] >= 2**32:
        raise MacpoError(f"seeds: there is none above {2**32 - 1}; set a lower seed")
    return [
        Variant(name, recipe.model_copy(update={"seed": seed}))
        for seed in dict.fromkeys(seeds)
        for name, recipe in recipes.items()
    ]


def _check_primary(primary: Primary, names: list[str]) -> None:
    for side in (primary.first, primary.second):
        if side not in names:
            raise MacpoError(f"primary: no variant {side!r}; choose among: {'; '.join(names)}")
    if primary.first == primary.second:
        raise MacpoError(f"primary: {primary.first!r} is both sides; name two variants")


def _points(study: Study) -> list[tuple[str, Settings]]:
    """Every variant with every point of the grid: its name, and what is laid over.

    Raises:
        MacpoError: it sets what all share, or its name is another's or cannot be shown.
    """
    points: dict[str, Settings] = {}
    for name, settings in (study.variants or {"": {}}).items():
        for values in product(*study.grid.values()):
            point = dict(zip(study.grid, values, strict=True))
            parts = [name, *(f"{key}={_short(key, value)}" for key, value in point.items())]
            label = ", ".join(filter(None, parts)) or AS_WRITTEN
            for key in SHARED.keys() & {*settings, *point}:
                raise MacpoError(f"{label!r}: {key}: all variants share it; say {SHARED[key]}")
            if not label.isprintable():
                raise MacpoError(f"variant {label!r}: its name goes into tables; use plain letters")
            if label in points:
                raise MacpoError(f"two variants are called {label!r}: leave one out, or rename it")
            points[label] = settings | point
    return list(points.items())


def _short(key: str, value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise MacpoError(f"grid {key}: {error}; write its values out") from None
