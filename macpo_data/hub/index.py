"""The index of a published repository, macpo/index.json: which datasets it holds."""

from __future__ import annotations

from typing import Any, TypedDict

from macpo_data.errors import StoreError
from macpo_data.forms import registry
from macpo_data.store.manifests import parse_json

INDEX = "macpo/index.json"
CANDIDATES_SUFFIX = "_candidates"  # the suffix of a configuration that is no trainer's


class Config(TypedDict):
    """One named dataset of the repository."""

    files: list[str]
    features: list[dict[str, Any]]
    rows: int
    bytes: int  # uncompressed
    download: int  # compressed


class Entry(TypedDict):
    """What index.json says of one learner's dataset of one round."""

    round: int
    learner: str
    main: bool  # the recipe's main learner, whose newest round is the default
    tag: str  # under which it is published
    identity: str  # two renderings are the same content where these are equal
    files: dict[str, str]  # path -> sha256
    configs: dict[str, Config]
    facts: dict[str, Any]  # for the card


Index = dict[str, Entry]  # by config name, such as round_2_student


def config_name(round_: int, learner: str) -> str:
    """The name under which a learner's dataset of a round is loaded."""
    return f"round_{round_}_{learner}"


def owned(name: str) -> tuple[str, ...]:
    """The folders of the tree that belong to one learner's dataset of one round."""
    forms = [*registry.forms(True), *registry.forms(False)]
    suffixes = dict.fromkeys([*(form.suffix for form in forms), CANDIDATES_SUFFIX])
    return (*(f"data/{name}{suffix}/" for suffix in suffixes), f"macpo/{name}/")


def read_index(content: bytes | None, where: str) -> Index:
    """Take an index.json apart; None is one that is not there yet.

    Raises:
        StoreError: it is not what macpo writes.
    """
    if content is None:
        return {}
    try:
        index: Index = parse_json(content)
        for name, entry in index.items():
            if config_name(entry["round"], entry["learner"]) != name:
                raise ValueError(name)
            if any(not path.startswith(owned(name)) for path in entry["files"]):
                raise ValueError(name)
            parts = (entry["configs"], entry["facts"]["name"], entry["facts"]["manifest"]["method"])
            if not isinstance(entry["main"], bool) or not all(parts):
                raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{where}/{INDEX} is damaged; choose another place to push to") from None
    return index


def adapters_repo(repo: str) -> str:
    """The model repository that goes with a dataset repository."""
    return f"{repo}-adapters"
