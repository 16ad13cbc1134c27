"""The index of a published repository, macpo/index.json: which datasets it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from macpo_data.errors import StoreError
from macpo_data.forms import registry
from macpo_data.outside import OutsideError, parse_json, read_bytes

INDEX = "macpo/index.json"
CANDIDATES_SUFFIX = "_candidates"  # the suffix of a configuration that is no trainer's


_STRICT = ConfigDict(strict=True, extra="allow")  # a newer macpo may say more


@with_config(_STRICT)
class Config(TypedDict):
    """One named dataset of the repository."""

    files: list[str]
    features: list[dict[str, Any]]
    rows: int
    bytes: int  # uncompressed
    download: int  # compressed


@with_config(_STRICT)
class Numbers(TypedDict):
    """A dataset in numbers."""

    pairs: int
    prompts: int
    candidates: int
    dropped_by_reason: dict[str, int]
    caught_by_reason: dict[str, int]
    chosen_by_agent: dict[str, int]


@with_config(_STRICT)
class Told(TypedDict):
    """What the card tells of a dataset's manifest."""

    method: str
    content: str
    seal: str
    summary: Numbers
    reads: dict[str, Any]
    versions: dict[str, str]


@with_config(_STRICT)
class Facts(TypedDict):
    """What the card says of one learner's dataset of one round, if it is the newest one."""

    name: str  # in the run
    manifest: Told
    learner_base: str
    licence: str | None
    agents: list[dict[str, str | None]]
    starts: list[dict[str, Any]]
    data: dict[str, Any]
    sources: NotRequired[list[str]]
    pins: dict[str, str | None]
    dpo: dict[str, Any]
    preferences: NotRequired[bool]
    quantiles: dict[str, list[float | None]]
    sample: dict[str, Any]


@with_config(_STRICT)
class Entry(TypedDict):
    """What index.json says of one learner's dataset of one round."""

    round: int
    learner: str
    main: bool  # the recipe's main learner, whose newest round is the default
    tag: str  # under which it is published
    identity: str  # two renderings are the same content where these are equal
    files: dict[str, str]  # path -> sha256
    configs: dict[str, Config]
    facts: Facts  # for the card


Index = dict[str, Entry]  # by config name, such as round_2_student
_INDEX: TypeAdapter[Index] = TypeAdapter(Index)


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
        _INDEX.validate_python(index)  # whose copy would have its keys in another order
        for name, entry in index.items():
            if config_name(entry["round"], entry["learner"]) != name:
                raise ValueError(name)
            if any(not path.startswith(owned(name)) for path in entry["files"]):
                raise ValueError(name)
    except ValueError:  # pydantic's own error is one
        mend = "ask who published it, or push to another place"
        raise StoreError(f"{where}/{INDEX} is damaged; {mend}") from None
    return index


def index_of(folder: Path) -> Index:
    """What the index.json of a folder holds; nothing where there is none.

    Raises:
        StoreError: it is not what macpo writes.
    """
    index = folder / INDEX
    try:
        content = read_bytes(index) if index.is_file() else None
    except OutsideError as error:
        raise StoreError(f"{index} is {error}; choose another folder") from None
    return read_index(content, str(folder))


def adapters_repo(repo: str) -> str:
    """The model repository that goes with a dataset repository."""
    return f"{repo}-adapters"
