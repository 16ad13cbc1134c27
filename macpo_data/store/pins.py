"""lock.json: the revision of each model and dataset at its first use, used from then on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter

from macpo_data.bases.named import is_local_base
from macpo_data.errors import DataError, ModelError, StoreError
from macpo_data.models import base as models
from macpo_data.models.base import Base
from macpo_data.outside import parse_json, read_bytes
from macpo_data.recipe.agents import Agent
from macpo_data.recipe.data import Data
from macpo_data.recipe.section import written
from macpo_data.sources.files import is_local, resolve
from macpo_data.sources.places import mores, paths
from macpo_data.store.store import write_json

_PINS = TypeAdapter(dict[str, dict[str, str | None]])  # by kind and by what is pinned


class Lock:
    """The pins of one run. Resolving needs the network once; what is pinned is read from disk."""

    def __init__(self, root: Path) -> None:
        """`root` is runs/<run>."""
        self.path = root / "lock.json"
        root.mkdir(parents=True, exist_ok=True)

    def base(self, agent: Agent) -> Base:
        """An agent's base at its pinned revision.

        Raises:
            ModelError: it is not pinned yet and cannot be resolved.
        """
        key = f"{written(agent.base)}@{agent.revision}"
        revision = self._pin("models", key, lambda: models.resolve(agent))
        if is_local_base(agent.base) and revision != models.resolve(agent):
            raise ModelError(
                f"{agent.base} changed since this run first used it; restore it, or give the "
                "recipe another `run` name (--set run=NAME)"
            )
        return Base(agent.base, revision, agent.trust_remote_code)

    def data(self, data: Data) -> dict[str, str | None]:
        """Each dataset that the recipe names, with its pin: a commit, or a local file's sha256.

        Raises:
            DataError: one cannot be reached, or a local file is not what it was.
        """
        pins = self.datasets(paths(data), getattr(data, "revision", "main"))
        for more in mores(data):
            pins |= self.datasets([more.path], more.revision)
        return pins

    def datasets(self, paths: list[str], revision: str = "main") -> dict[str, str | None]:
        """Each of these datasets with its pin, as in `data`.

        Raises:
            DataError: one cannot be reached, or a local file is not what it was.
        """
        pins: dict[str, str | None] = {}
        for path in paths:
            now = resolve(path, revision) if is_local(path) else None
            pin = self._pin("data", f"{written(path)}@{revision}", partial(resolve, path, revision))
            if now is not None and pin != now:
                raise DataError(
                    f"{path} changed since this run first read it; restore it, or give the recipe "
                    "another `run` name (--set run=NAME)"
                )
            pins[path] = pin
        return pins

    def licence(self, path: str, resolve: Callable[[], str | None]) -> str | None:
        """The licence that a dataset states, as it was when first asked for; None for none."""
        return self._pin("licences", path, resolve)

    def pins(self) -> dict[str, dict[str, str | None]]:
        """Everything that is pinned, without asking anybody.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            pins = parse_json(read_bytes(self.path)) if self.path.exists() else {}
            return {"models": {}, "data": {}} | _PINS.validate_python(pins, strict=True)
        except ValueError:  # pydantic's own error is one
            raise StoreError(
                f"{self.path} is damaged; restore it, or delete it to pin anew"
            ) from None

    def _pin(self, kind: str, key: str, resolve: Callable[[], str | None]) -> str | None:
        pinned = self.pins().get(kind, {})
        if key in pinned:  # for good, so that no lock is needed, which a read-only disk has not
            return pinned[key]
        with FileLock(self.path.with_name(".lock.json.lock")):
            pins = self.pins()
            own = pins.setdefault(kind, {})
            if key not in own:
                own[key] = resolve()
                write_json(self.path, pins)
            return own[key]
