"""Downloads a published round into a store, after checking it against its manifests.

Nothing of what is fetched is believed before it is checked: names come from the recipe's own plan,
bytes are compared with the hashes of a sealed manifest, and code is never run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from macpo_data import hub_client
from macpo_data.errors import HubError, RecipeError, plain
from macpo_data.hub import arrivals
from macpo_data.hub.index import INDEX, Index, read_index
from macpo_data.hub.reading import (
    Read,
    folder,
    must,
    repository,
)
from macpo_data.loading.load import load_recipe
from macpo_data.methods.registry import make_plan
from macpo_data.outside import JSON_BYTES, OutsideError, parse_json, parse_yaml
from macpo_data.plan import Plan, Step
from macpo_data.recipe.recipe import Recipe, text_files
from macpo_data.recipe.section import written
from macpo_data.sources.files import is_local
from macpo_data.sources.places import all_paths
from macpo_data.store.pins import Lock
from macpo_data.store.store import Store, atomic, holds, write_json

Say = Callable[[str], None]
_SHOWN = 20  # tags, of which a repository may have any number
_TEXT = re.compile(r"template-[0-9a-f]{12}\.jinja|prompt-[0-9a-f]{12}\.txt")


class Pins(BaseModel):
    """The revisions with which a round was made."""

    model_config = ConfigDict(strict=True, frozen=True)

    models: dict[str, str | None] = {}
    data: dict[str, str | None] = {}


_STARTS = TypeAdapter(list[arrivals.Start])


@dataclass(frozen=True)
class PublishedRecipe:
    """A recipe that came with a round, and the texts that it keeps in files of their own."""

    values: dict[str, Any]
    texts: dict[str, str]  # by file
    named: list[tuple[dict[str, Any], str]]  # section and key where each is named

    def files(self, to: Path) -> dict[Path, str]:
        """What to write for it to stand in a file: the texts beside it, and last of all it."""
        for section, key in self.named:
            section[key] = Path(section[key]).name  # it lies beside the recipe
        recipe = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)
        return {**{to.parent / name: text for name, text in self.texts.items()}, to: recipe}


def pull_round(
    place: str,
    round_: int,
    runs: Path,
    recipe_to: Path,
    learner: str | None,
    revision: str | None,
    say: Say,
    local_paths: bool = False,
) -> list[str]:
    """Bring a published round into a store.

    Args:
        place: a dataset on the Hub, or a folder in its form.
        round_: which round.
        runs: folder of all runs.
        recipe_to: where to write the recipe.
        learner: only this one's dataset.
        revision: tag or commit; by default the round's tag.
        say: prints what takes a while.
        local_paths: whether its recipe may name files and folders of this machine.

    Returns:
        What was brought, one line each, and what is missing.

    Raises:
        HubError: it is not there, or not what its manifests say.
    """
    here = Path(place).is_dir()
    repo = place if here else hub_client.check_repo(place, or_path=True)
    with nullcontext() if here else hub_client.one_line("pull from", repo):
        if here:
            read = folder(Path(place))
        else:
            read = repository(place, "dataset", revision or _tag(place, round_, learner))
        # 1. What is there.
        entries = _entries(read, place, round_, learner)
        main = next((name for name, e in entries.items() if e["main"]), next(iter(entries)))
        published = _recipe(read, place, main)
        files = published.files(recipe_to)
        fresh = _fresh(files)

        # 2. The recipe, checked as it will stand, in a place where nobody looks for it.
        with TemporaryDirectory() as private:
            for path, text in published.files(Path(private) / "macpo.yaml").items():
                path.write_bytes(text.encode())
            plan = _plan(place, main, Path(private) / "macpo.yaml", local_paths)
            store = Store(runs / plan.recipe.run, say)
            steps = _steps(plan, entries, place)
            starts = [start for name in steps for start in _starts(read, place, name)]
            lines = [f"wrote    {recipe_to}"] if recipe_to in fresh else []
            pins = _pins(read, place, main)
            _check_listed(read, place, entries)
            with store.in_use():
                _lock(pins, place, store)

                # 3. Datasets, then the adapters from which they are trained.
                for name, step in steps.items():
                    result = plan.name(step)
                    lines.append(arrivals.dataset(store, result, entries[name], read, name))
                for start in starts:
                    lines += arrivals.adapter(plan, store, start)

        # 4. The recipe in its place, now that it leads to what is there.
        for path in _fresh(files):
            with atomic(path) as temporary:
                temporary.write_bytes(files[path].encode())
        return list(dict.fromkeys(lines))


def _fresh(files: dict[Path, str]) -> list[Path]:
    """Which texts are not there yet.

    Raises:
        HubError: another one stands in the place of one.
    """
    for path, text in files.items():
        if path.exists() and not holds(path, text.encode()):
            raise HubError(f"{path} is another one; choose a name with --recipe-to FILE")
    return [path for path in files if not path.exists()]


def _plan(place: str, name: str, file: Path, local_paths: bool) -> Plan:
    """What a published recipe leads to.

    Raises:
        RecipeError: it has mistakes.
        HubError: it reads files of this machine.
    """
    try:
        recipe = load_recipe(str(file))
    except RecipeError as error:
        raise RecipeError(f"of {place}", error.problems) from None
    if not local_paths and (own := _local_paths(recipe)):
        raise HubError(
            f"{place}: its recipe reads {', '.join(map(plain, own))} of this machine; say "
            "--local-paths if it may, or train without it: `macpo train --dataset "
            f"{place} --config {name}`"
        )
    return make_plan(recipe)


def _starts(read: Read, place: str, name: str) -> list[arrivals.Start]:
    """The adapters from which a dataset is trained, and to which it is held."""
    try:
        return _STARTS.validate_python(parse_json(must(read, f"macpo/{name}/adapters.json", place)))
    except ValueError:  # pydantic's own error is one
        raise HubError(
            f"{place}: what it says of its adapters is damaged; ask who published it"
        ) from None


def _tag(repo: str, round_: int, learner: str | None) -> str:
    """The round's tag, or that of the one learner."""
    _, tags = hub_client.commits(hub_client.connect(), repo, "dataset")
    wanted = [f"round-{round_}", *([f"round-{round_}-{learner}"] if learner else [])]
    for tag in wanted:
        if tag in tags:
            return tag
    shown = ", ".join([*sorted(tags)[:_SHOWN], *(["..."] if len(tags) > _SHOWN else [])])
    raise HubError(
        f"{repo} has no tag {' or '.join(wanted)}; it has {shown or 'none'} "
        "(name one, or a commit, with --revision)"
    )


def _entries(read: Read, place: str, round_: int, learner: str | None) -> Index:
    """What is published of a round, or of one learner's."""
    content = read(INDEX, JSON_BYTES)
    if content is None:
        raise HubError(
            f"{place} was not made by macpo; `macpo train --dataset {place}` trains on it"
        )
    index = read_index(content, place)
    entries = {
        name: entry
        for name, entry in index.items()
        if entry["round"] == round_ and learner in (None, entry["learner"])
    }
    if not entries:
        names = ", ".join(sorted(index))
        raise HubError(f"{place} has no such dataset; choose --round and --learner of {names}")
    return entries


def _check_listed(read: Read, place: str, entries: Index) -> None:
    """Compare what stands beside the datasets with what the index lists."""
    for name, entry in entries.items():
        for file in ("recipe.yaml", "adapters.json", "lock.json"):
            path = f"macpo/{name}/{file}"
            content = must(read, path, place)
            if hashlib.sha256(content).hexdigest() != entry["files"].get(path):
                raise HubError(
                    f"{place}: {path} is not the one that the index lists; ask who published it"
                )


def _recipe(read: Read, place: str, name: str) -> PublishedRecipe:
    """The recipe of a round, without what only its author may allow."""
    content = must(read, f"macpo/{name}/recipe.yaml", place)
    try:
        values: dict[str, Any] = parse_yaml(content)
        agents = list(values["agents"].values())
        named = list(text_files(values))
        values["train"]["launcher"] = None  # a file of another machine
        if isinstance(values.get("eval"), dict):
            values["eval"]["ceiling"] = False  # its dataset is not published
        for agent in agents:
            # Running code that a stranger's base brings is for the person here to allow.
            agent["trust_remote_code"] = False
            # So is sending a key to a server that a stranger names.
            if isinstance(agent.get("endpoint"), dict):
                agent["endpoint"]["api_key_env"] = None
    except OutsideError as error:
        raise HubError(f"{place}: its recipe is damaged ({error}); ask who published it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HubError(f"{place}: its recipe is damaged; ask who published it") from None
    texts: dict[str, str] = {}
    for section, key in named:
        file = str(section[key])
        # A file of this machine would be sent to whatever server the stranger's recipe names.
        if not _TEXT.fullmatch(file):
            raise HubError(
                f"{place}: its recipe reads the file {plain(file)}, which was not published with "
                "it; ask who published it"
            )
        text = must(read, f"macpo/{name}/{file}", place)
        if hashlib.sha256(text).hexdigest()[:12] != Path(file).stem.rpartition("-")[2]:
            raise HubError(f"{place}: {file} is not what its name says; ask who published it")
        texts[file] = text.decode("utf-8", "replace")
    return PublishedRecipe(values, texts, named)


def _local_paths(recipe: Recipe) -> list[str]:
    """The data and models of a recipe that are read from this machine's disk."""
    judges = [judge.reward for judge in (recipe.judge, recipe.eval.judge) if judge]
    rewards = [reward.model for reward in (recipe.eval.reward, *judges) if reward]
    named = [*all_paths(recipe.data), *recipe.select.test_sets, recipe.reward.base or ""]
    named += [*rewards, *(agent.base for agent in recipe.agents.values())]
    return [written(path) for path in dict.fromkeys(named) if path and is_local(path)]


def _steps(plan: Plan, entries: Index, place: str) -> dict[str, Step]:
    """The gen step of each entry; the recipe has to lead to the very same names."""
    gens = {(s.round, s.learner): s for s in plan.steps if s.kind == "gen" and not s.is_ceiling}
    steps = {}
    for name, entry in entries.items():
        step = gens.get((entry["round"], entry["learner"]))
        if step is None or plan.name(step) != entry["facts"].get("name"):
            raise HubError(
                f"{place}: its recipe does not lead to {name} with this version of macpo; "
                f"`macpo train --dataset {place} --config {name}` needs no recipe"
            )
        steps[name] = step
    return steps


def _pins(read: Read, place: str, name: str) -> Pins:
    """The revisions with which a round was made."""
    try:
        return Pins.model_validate(parse_json(must(read, f"macpo/{name}/lock.json", place)))
    except ValueError:  # pydantic's own error is one
        raise HubError(f"{place}: its lock.json is damaged; ask who published it") from None


def _lock(pins: Pins, place: str, store: Store) -> None:
    """Lay the published pins beside those of the run; they may not contradict each other."""
    mine = Lock(store.root).pins()
    for kind, theirs in pins.model_dump().items():
        for key, pin in theirs.items():
            if mine[kind].setdefault(key, pin) != pin:
                raise HubError(
                    f"{store.root}/lock.json pins {key} otherwise than {place}; pull into another "
                    "folder with --runs DIR"
                )
    write_json(store.root / "lock.json", mine)
