"""Names that a person may type, each with what it is: for --help, and for a shell that completes.

Nothing here loads a model, or reads a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from macpo_data.outside import parse_object
from macpo_data.shipped_recipes import about, recipes_folder


def recipes() -> dict[str, str]:
    """The shipped recipes."""
    return about(recipes_folder())


def studies() -> dict[str, str]:
    """The shipped studies."""
    return about(recipes_folder() / "studies")


def trainers() -> dict[str, str]:
    """The trainers that `check` and `convert` know."""
    from macpo_data.forms.registry import targets

    return {name: trainer.title for name, trainer in targets().items()}


def machines() -> dict[str, str]:
    """What --on may name: one of each card, and a machine without any."""
    from macpo_data.planning.hardware import CARDS

    cards = {name: f"{card.memory} GB, {card.teraflops} TFLOP/s" for name, card in CARDS.items()}
    return {**cards, "2xCPU-24GB": "two cores"}


def keys() -> dict[str, str]:
    """The keys of a recipe by their dotted paths, those of agents left out, with their meanings."""
    schema = parse_object((recipes_folder() / "schema.json").read_bytes())
    return dict(_keys(schema, schema["$defs"], ()))


def _keys(
    section: dict[str, Any], kinds: dict[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    for name, field in section.get("properties", {}).items():
        if (*path, name) == ("agents",):
            continue
        forms = (form for ref in _references(field)
                 for form in kinds[ref].get("anyOf", [kinds[ref]]))  # fmt: skip
        inside = [form for form in forms if "properties" in form]
        if not inside:
            yield ".".join((*path, name)), field["description"]
        for kind in inside:
            yield from _keys(kind, kinds, (*path, name))


def _references(field: dict[str, Any]) -> Iterator[str]:
    """The kinds of sections that a key may be, of which data has several."""
    for option in (field, *field.get("anyOf", ()), *field.get("oneOf", ())):
        if "$ref" in option:
            yield option["$ref"].rpartition("/")[2]
