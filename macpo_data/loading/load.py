"""Loads a recipe: its YAML file, overrides on top, validated values as the result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from macpo_data.errors import MacpoError, RecipeError
from macpo_data.loading.conflicts import conflicts, unfilled, untrainable
from macpo_data.loading.explain import explain
from macpo_data.recipe.recipe import Recipe, TrainSettings
from macpo_data.shipped_recipes import recipes_folder

# Names a person types after --recipe; a path or a name with a suffix is a file.
_SHIPPED = re.compile(r"^[a-z0-9_]+$")


def load_settings(sets: list[str] | None) -> TrainSettings:
    """Defaults with `a.b=c` settings laid over them.

    Raises:
        RecipeError: anything is wrong; all mistakes at once.
    """
    values: dict[str, Any] = {"dpo": {"reference": "previous"}}
    problems = [p for setting in sets or [] if (p := _apply(values, setting))]
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
    files = recipes_folder().iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


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
                f"no recipe named {recipe!r}; shipped are {', '.join(shipped())} "
                "(a file is given with its path, such as ./mine.yaml)"
            )
        return recipe, (recipes_folder() / f"{recipe}.yaml").read_text("utf-8")
    try:
        return recipe, Path(recipe).read_text("utf-8")
    except FileNotFoundError:
        raise MacpoError(
            f"no recipe file {recipe}; `macpo init` writes ./macpo.yaml, shipped are "
            f"{', '.join(shipped())}"
        ) from None
    except (OSError, ValueError) as error:
        raise MacpoError(f"cannot read recipe {recipe}: {error}; give a YAML file") from None


class _DoubleKey(yaml.MarkedYAMLError):
    """A key that stands twice; YAML itself would silently take the last."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1:
                raise _DoubleKey(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(source: str, text: str) -> dict[str, Any]:
    """Parse a file that is a mapping of keys.

    Raises:
        RecipeError: it is none, or a key stands twice.
    """
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        why = f": {error.problem}" if isinstance(error, _DoubleKey) else ""
        raise RecipeError(source, [f"not valid YAML{line}{why}"]) from None
    if not isinstance(values, dict):
        raise RecipeError(
            source, ["not a mapping of keys; `macpo init quickstart` writes a recipe to look at"]
        )
    return values


def load_recipe(
    recipe: str | None = None,
    sets: list[str] | None = None,
    over: Sequence[tuple[str, Any]] = (),
) -> Recipe:
    """Load and validate a recipe by name or file, with `a.b=c` settings laid over it.

    Args:
        recipe: as a person names it.
        sets: settings from the command line; they have the last word.
        over: (dotted path, value) of a study, laid over the file before them.

    Raises:
        RecipeError: anything is wrong; all mistakes at once, with dotted paths.
        MacpoError: there is no such recipe.
    """
    source, text = recipe_text(recipe)
    values = read_yaml(source, text)
    problems = [p for path, value in over if (p := _lay(values, path, value))]
    problems += [p for setting in sets or [] if (p := _apply(values, setting))]
    if problems:
        raise RecipeError(source, problems)
    if isinstance(values.get("agents"), dict):  # null takes one out
        values["agents"] = {k: v for k, v in values["agents"].items() if v is not None}
    return _validate(source, values)


def _validate(source: str, values: dict[str, Any]) -> Recipe:
    """Check raw values, each by itself and against each other."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = explain(error, Recipe) + conflicts(values)
        raise RecipeError(source, problems) from None
    if problems := conflicts(values) + unfilled(recipe):
        raise RecipeError(source, problems)
    return recipe


def _apply(values: dict[str, Any], setting: str) -> str | None:
    """Lay `a.b=c` over nested `values`; return what is wrong with it, or None."""
    path, equals, text = setting.partition("=")
    if not equals or not all(path.split(".")):
        return f"--set {setting}: write it as key.key=value"
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return f"--set {setting}: the value is not valid YAML"
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
            return f"{path}: {key} is not a section"
        at = child
    at[last] = deepcopy(value)
    return None
