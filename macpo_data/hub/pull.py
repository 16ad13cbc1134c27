"""Downloads a published round into a store, after checking it against its manifests.

Nothing of what is fetched is believed before it is checked: names come from the recipe's own plan,
bytes are compared with the hashes of a sealed manifest, and code is never run.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from macpo_data import hub_client
from macpo_data.errors import HubError, StoreError, plain
from macpo_data.hub.index import INDEX, Index, read_index
from macpo_data.loading.load import load_recipe
from macpo_data.methods.registry import make_plan
from macpo_data.models.base import adapter_sha256
from macpo_data.plan import Plan, Step
from macpo_data.recipe.recipe import Recipe, text_files
from macpo_data.sources.files import is_local
from macpo_data.sources.places import all_paths
from macpo_data.store.manifests import MANIFEST, AnyManifest, parse_json, read_manifest
from macpo_data.store.pins import Lock
from macpo_data.store.store import Store, atomic, write_json

Say = Callable[[str], None]
Read = Callable[[str], bytes | None]  # a file of what was published; None if it is not there
_TEXT = re.compile(r"template-[0-9a-f]{12}\.jinja|prompt-[0-9a-f]{12}\.txt")


def _folder(root: Path) -> Read:
    """What `push --to` wrote."""
    return lambda path: file.read_bytes() if (file := root / path).is_file() else None


def _repository(repo: str, kind: hub_client.RepoType, revision: str) -> Read:
    """A repository on the Hub, at the commit that the revision names."""
    api = hub_client.connect()
    commit = str(hub_client.ask(api.repo_info, repo, repo_type=kind, revision=revision).sha)
    return partial(hub_client.fetch, api, repo, kind, commit)


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
    with nullcontext() if here else hub_client.one_line("pull from", hub_client.check_repo(place)):
        if here:
            read = _folder(Path(place))
        else:
            read = _repository(place, "dataset", revision or _tag(place, round_, learner))
        # 1. What is there.
        entries = _entries(read, place, round_, learner)

        # 2. The recipe, and whether it may be written where it should go.
        main = next((name for name, e in entries.items() if e["main"]), next(iter(entries)))
        with _written(_recipe(read, place, main, recipe_to)) as fresh:
            recipe = load_recipe(str(recipe_to.absolute()))
            if not local_paths and (own := _local_paths(recipe)):
                raise HubError(
                    f"{place}: its recipe reads {', '.join(map(plain, own))} of this machine; say "
                    "--local-paths if it may, or train without it: `macpo train --dataset "
                    f"{place} --config {main}`"
                )
            plan = make_plan(recipe)
            store = Store(runs / recipe.run, say)
            steps = _steps(plan, entries, place)
            _lock(read, place, main, store)

        # 3. Datasets, then the adapters from which they are trained.
        lines = [f"wrote    {recipe_to}"] if fresh else []
        for name, step in steps.items():
            result = plan.name(step)
            lines.append(_put(store, result, _under(read, f"macpo/{name}/{result}")))
        for name in steps:
            for start in _starts(_must(read, f"macpo/{name}/adapters.json", place), place):
                lines += _adapter(plan, store, start)
        return list(dict.fromkeys(lines))


@contextmanager
def _written(files: dict[Path, str]) -> Iterator[list[Path]]:
    """Write texts where nothing else stands; those that are new are gone again after an error.

    Raises:
        HubError: another text stands there.
    """
    for path, text in files.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise HubError(f"{path} is another one; choose a name with --recipe-to FILE")
    fresh = [path for path in files if not path.exists()]
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    try:
        yield fresh
    except BaseException:
        for path in fresh:
            path.unlink()
        raise


def _starts(content: bytes, place: str) -> list[dict[str, Any]]:
    """The adapters from which a round is trained, and to which it is held."""
    needed = {"start", "adapter_sha256", "needs", "repo", "revision", "trains"}
    try:
        starts: list[dict[str, Any]] = parse_json(content)
        if all(needed <= start.keys() for start in starts):
            return starts
    except (ValueError, TypeError, AttributeError):
        pass
    raise HubError(f"{place}: what it says of its adapters is damaged; ask who published it")


def _tag(repo: str, round_: int, learner: str | None) -> str:
    """The round's tag, or that of the one learner."""
    _, tags = hub_client.commits(hub_client.connect(), repo, "dataset")
    wanted = [f"round-{round_}", *([f"round-{round_}-{learner}"] if learner else [])]
    for tag in wanted:
        if tag in tags:
            return tag
    raise HubError(
        f"{repo} has no tag {' or '.join(wanted)}; it has {', '.join(sorted(tags)) or 'none'} "
        "(name one, or a commit, with --revision)"
    )


def _entries(read: Read, place: str, round_: int, learner: str | None) -> Index:
    """What is published of a round, or of one learner's."""
    content = read(INDEX)
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


def _recipe(read: Read, place: str, name: str, to: Path) -> dict[Path, str]:
    """What to write for a recipe to stand in a file: the templates it names beside it, and it."""
    text = _must(read, f"macpo/{name}/recipe.yaml", place).decode("utf-8", "replace")
    try:
        values: dict[str, Any] = yaml.safe_load(text)
        agents = list(values["agents"].values())
        named = list(text_files(values))
        values["train"]["launcher"] = None  # a file of another machine
        if isinstance(values.get("eval"), dict):
            values["eval"]["ceiling"] = False  # its dataset is not published
    except (yaml.YAMLError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise HubError(f"{place}: its recipe is damaged; ask who published it") from None
    templates: dict[Path, str] = {}
    for section, key in named:
        file = str(section[key])
        # A file of this machine would be sent to whatever server the stranger's recipe names.
        if not _TEXT.fullmatch(file):
            raise HubError(
                f"{place}: its recipe reads the file {plain(file)}, which was not published with "
                "it; ask who published it"
            )
        content = _must(read, f"macpo/{name}/{file}", place)
        if hashlib.sha256(content).hexdigest()[:12] != Path(file).stem.rpartition("-")[2]:
            raise HubError(f"{place}: {file} is not what its name says; ask who published it")
        templates[to.parent / file] = content.decode("utf-8", "replace")
        section[key] = str(to.parent / file)
    for agent in agents:
        # Running code that a stranger's base brings is for the person here to allow.
        agent["trust_remote_code"] = False
        # So is sending a key to a server that a stranger names.
        if isinstance(agent.get("endpoint"), dict):
            agent["endpoint"]["api_key_env"] = None
    return {**templates, to: yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}


def _local_paths(recipe: Recipe) -> list[str]:
    """The data and models of a recipe that are read from this machine's disk."""
    judges = [judge.reward for judge in (recipe.judge, recipe.eval.judge) if judge]
    rewards = [reward.model for reward in (recipe.eval.reward, *judges) if reward]
    named = [*all_paths(recipe.data), *recipe.select.test_sets, recipe.reward.base or ""]
    named += [*rewards, *(agent.base for agent in recipe.agents.values())]
    return [path for path in dict.fromkeys(named) if path and is_local(path)]


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


def _lock(read: Read, place: str, name: str, store: Store) -> None:
    """Lay the published pins beside those of the run; they may not contradict each other."""
    mine = Lock(store.root).pins()
    try:
        published = parse_json(_must(read, f"macpo/{name}/lock.json", place))
        pins = {kind: dict(published.get(kind, {})) for kind in ("models", "data")}
    except (ValueError, TypeError, AttributeError):
        raise HubError(f"{place}: its lock.json is damaged; ask who published it") from None
    for kind, theirs in pins.items():
        for key, pin in theirs.items():
            if mine[kind].setdefault(key, pin) != pin:
                raise HubError(
                    f"{store.root}/lock.json pins {key} otherwise than {place}; pull into another "
                    "folder with --runs DIR"
                )
    write_json(store.root / "lock.json", mine)


def _under(read: Read, prefix: str) -> Read:
    return lambda file: read(f"{prefix}/{file}")


def _put(store: Store, name: str, read: Read) -> str:
    """Bring one result into the store; its manifest is written last, and only if all is well."""
    with store.lock(name):
        if store.is_done(name):
            return f"kept     {store.path(name)}"
        content = read(MANIFEST)
        if content is None:
            raise HubError(f"{name} was not published whole; ask who published it")
        folder = store.clear(name)
        try:
            manifest = _checked(content, name, folder / MANIFEST)
            for file, sha in manifest.files.items():
                data = read(file) if _plain(file) else None
                if data is None:
                    continue
                if hashlib.sha256(data).hexdigest() != sha:
                    raise StoreError(file)
                (folder / file).write_bytes(data)
            if not any(folder.iterdir()):
                raise HubError(f"{name} was not published whole; ask who published it")
            with atomic(folder / MANIFEST) as temporary:
                temporary.write_bytes(content)
        except StoreError:
            shutil.rmtree(folder)
            raise HubError(
                f"{name} is not what its manifest says, and was not kept; ask who published it"
            ) from None
        return f"pulled   {store.path(name)}"


def _checked(content: bytes, name: str, path: Path) -> AnyManifest:
    """The manifest of a result, which says all that a result from elsewhere has to say.

    Raises:
        StoreError: it does not, or is another result's.
    """
    facts, manifest = read_manifest(content, name, path)
    if not {"inputs", *(["summary"] if name.startswith("data/") else [])} <= facts.keys():
        raise StoreError(name)
    return manifest


def _plain(file: str) -> bool:
    return "/" not in file and "\\" not in file and not file.startswith(".")


def _adapter(plan: Plan, store: Store, start: dict[str, Any]) -> list[str]:
    """Fetch an adapter that a training needs, and say so; nothing for a bare base."""
    name = start["start"]
    trained = {plan.name(s) for s in plan.steps if s.makes}
    # A start on the bare base, or the result of the training before on the same dataset.
    if start["adapter_sha256"] is None or name not in trained:
        return []
    if store.is_done(name):
        return [f"kept     {store.path(name)}"]
    repo, revision = start["repo"], start["revision"]
    role = "is held to it" if start["needs"] == "reference" else "starts from it"
    missing = f"missing  {store.path(name)}: {start['trains']} {role}"
    if repo is None:
        return [f"{missing}; it was never pushed (`macpo push --adapters` does)"]
    try:
        read = _repository(hub_client.check_repo(repo), "model", str(revision))
        line = _put(store, name, _under(read, Path(name).name))
    except HubError:
        raise
    except Exception as error:
        if hub_client.status_of(error) not in (401, 403, 404):
            raise
        return [f"{missing}; {repo} has none at {revision}, it was never pushed or is private"]
    if adapter_sha256(store.path(name)) != start["adapter_sha256"]:
        shutil.rmtree(store.path(name))
        raise HubError(f"{repo} holds another {name} than the round says; ask who published it")
    return [line]


def _must(read: Read, path: str, place: str) -> bytes:
    content = read(path)
    if content is None:
        raise HubError(f"{place} has no {path}; it was not published whole")
    return content
