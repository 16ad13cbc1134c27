"""Loads a recipe: its YAML file, overrides on top, validated values as the result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from macpo_data.errors import MacpoError, RecipeError, did_you_mean
from macpo_data.loading.beside import start_beside
from macpo_data.loading.conflicts import conflicts, unfilled, untrainable
from macpo_data.loading.explain import explain
from macpo_data.outside import YAML_BYTES, OutsideError, parse_yaml, read_text
from macpo_data.recipe import secrets
from macpo_data.recipe.recipe import Recipe, TrainSettings, text_files
from macpo_data.shipped_recipes import names_in, recipes_folder

# Names a person types after --recipe; a path or a name with a suffix is a file.
_SHIPPED = re.compile(r"^[a-z0-9_]+$")
# What a training without a recipe takes where nothing is said, other than a recipe does.
_WITHOUT_RECIPE = (("dpo", "reference", "previous"), ("train", "dtype", "auto"))


def load_settings(sets: list[str] | None) -> TrainSettings:
    """Defaults with `a.b=c` settings laid over them.

    Raises:
        RecipeError: anything is wrong; all mistakes at once.
    """
    values: dict[str, Any] = {}
    problems = [p for setting in sets or [] if (p := _apply(values, setting))]
    problems += secrets.problems(values)
    for section, key, default in _WITHOUT_RECIPE:
        if isinstance(own := values.setdefault(section, {}), dict):
            own.setdefault(key, default)
    if not problems:
        objective = "sft" if values.get("objective") == "sft" else "dpo"
        problems = untrainable(values, objective)
        if values.get("confidence") and objective == "dpo":
            problems.append("confidence: only objective=sft reads it")
        try:
            settings = TrainSettings.model_validate(values)
        except ValidationError as error:
            problems = explain(error, TrainSettings) + problems
    if problems:
        raise RecipeError("--set", problems)
    return settings


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return names_in(recipes_folder())


def recipe_text(recipe: str | None) -> tuple[str, str]:
    """Find a recipe: (where it is, its YAML).

    `None` is ./macpo.yaml where there is one, else quickstart.

    Raises:
        MacpoError: there is no such recipe.
    """
    if recipe is None:
        recipe = "macpo.yaml" if Path("macpo.yaml").is_file() else "quickstart"
    if _SHIPPED.match(recipe):
        if recipe not in shipped():
            raise MacpoError(
                f"no recipe named {recipe!r}{did_you_mean(recipe, shipped())}; shipped are "
                f"{', '.join(shipped())} (a file is given with its path, such as ./mine.yaml)"
            )
        return recipe, (recipes_folder() / f"{recipe}.yaml").read_text("utf-8")
    try:
        return recipe, read_text(Path(recipe), YAML_BYTES)
    except FileNotFoundError:
        raise MacpoError(
            f"no recipe file {recipe}; `macpo init` writes ./macpo.yaml, shipped are "
            f"{', '.join(shipped())}"
        ) from None
    except (OSError, ValueError) as error:
        raise MacpoError(f"cannot read recipe {recipe}: {error}; give a YAML file") from None


def read_yaml(source: str, text: str) -> dict[str, Any]:
    """Parse a file that is a mapping of keys.

    Raises:
        RecipeError: it is none, or beyond the bounds of what is read; a key stands twice.
    """
    try:
        values = parse_yaml(text)
    except OutsideError as error:
        raise RecipeError(source, [str(error)]) from None
    if not isinstance(values, dict):
        raise RecipeError(
            source, ["not a mapping of keys; `macpo init quickstart` writes a recipe to look at"]
        )
    return values


def load_recipe(
    recipe: str | None = None,
    sets: list[str] | None = None,
    over: Sequence[tuple[str, Any]] = (),
    say: Callable[[str], None] | None = None,
) -> Recipe:
    """Load and validate a recipe by name or file, with `a.b=c` settings laid over it.

    Args:
        recipe: as a person names it.
        sets: settings from the command line; they have the last word.
        over: (dotted path, value) of a study, laid over the file before them.
        say: prints a line about a path that does not start at the recipe's folder. Paths of a
            file do; those of `sets` and `over` start at the working directory.

    Raises:
        RecipeError: anything is wrong; all mistakes at once, with dotted paths.
        MacpoError: there is no such recipe.
    """
    source, text = recipe_text(recipe)
    values = read_yaml(source, text)
    if not _SHIPPED.match(source):
        for line in start_beside(values, Path(source).expanduser().parent):
            if say:
                say(line)
    problems = [p for path, value in over if (p := _lay(values, path, value))]
    problems += [p for setting in sets or [] if (p := _apply(values, setting))]
    problems += secrets.problems(values)  # first of all: what else is said may repeat a value
    if problems:
        raise RecipeError(source, problems)
    if isinstance(values.get("agents"), dict):  # null takes one out
        values["agents"] = {k: v for k, v in values["agents"].items() if v is not None}
    return _validate(source, values)


def check_text(source: str, text: str) -> Recipe:
    """The recipe of a YAML text, of which no file is looked for.

    Raises:
        RecipeError: anything is wrong.
    """
    return _validate(source, read_yaml(source, text))


def _validate(source: str, values: dict[str, Any]) -> Recipe:
    """Check raw values, each by itself and against each other."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = explain(error, Recipe) + conflicts(values)
        raise RecipeError(source, problems) from None
    if problems := conflicts(values) + unfilled(recipe) + [*_keys_in_texts(recipe)]:
        raise RecipeError(source, problems)
    return recipe


def _keys_in_texts(recipe: Recipe) -> Iterator[str]:
    """A line for each text in a file of its own that holds a key: it is published as well."""
    for section, key in text_files(recipe.model_dump(mode="json")):
        try:
            text = read_text(Path(section[key]).expanduser(), YAML_BYTES)
        except (OSError, ValueError):
            continue  # whoever reads it says so
        if line := secrets.line_of_key(text):
            yield f"{section[key]}, line {line}: looks like a secret, and is published; remove it"


def _apply(values: dict[str, Any], setting: str) -> str | None:
    """Lay `a.b=c` over nested `values`; return what is wrong with it, or None."""
    path, equals, text = setting.partition("=")
    if not equals or not all(path.split(".")):
        return f"--set {secrets.shown(path)}: write it as key.key=value"
    try:
        value = parse_yaml(text)
    except OutsideError as error:
        return f"--set {secrets.shown(path)}: the value is {error}"
    return _lay(values, path, value)


def _lay(values: dict[str, Any], path: str, value: Any) -> str | None:
    """Lay a value over nested `values` at a dotted path; return what is wrong, or None."""
    *keys, last = path.split(".")
    at = values
    for key in keys:
        child = at.setdefault(key, {})
        if child is None:
            child = at[key] = {}
        if not isinstance(child, dict):
            return f"{secrets.shown(path)}: {secrets.shown(key)} is not a section"
        at = child
    at[last] = deepcopy(value)
    return None
