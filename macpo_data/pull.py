"""A published round back into a store: fetched, checked against its manifests, put in its place.

Nothing of what is fetched is believed before it is checked: names come from the recipe's own plan,
bytes are compared with the hashes of a sealed manifest, and code is never run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import yaml

from macpo_data import remote, sources
from macpo_data.errors import HubError, MacpoError, StoreError, plain
from macpo_data.methods import make_plan
from macpo_data.models import adapter_sha256
from macpo_data.plan import Plan, Step
from macpo_data.recipe import Recipe, load_recipe, text_files
from macpo_data.render import INDEX, Entry, Index, read_index
from macpo_data.store import MANIFEST, Store, write_json

Say = Callable[[str], None]
_TEXT = re.compile(r"template-[0-9a-f]{12}\.jinja|prompt-[0-9a-f]{12}\.txt")


class Source(Protocol):
    """Where a published round is read from."""

    def read(self, path: str) -> bytes | None:
        """A file of it; None if it is not there."""


class Folder:
    """What `push --to` wrote."""

    def __init__(self, root: Path) -> None:
        """`root` holds the card."""
        self.root = root

    def read(self, path: str) -> bytes | None:
        """A file of it; None if it is not there."""
        file = self.root / path
        return file.read_bytes() if file.is_file() else None


class Repository:
    """A repository on the Hub at one commit."""

    def __init__(self, repo: str, kind: remote.RepoType, revision: str) -> None:
        """Find the commit that the revision names."""
        self.api = remote.connect()
        self.repo, self.kind = repo, kind
        info = remote.ask(self.api.repo_info, repo, repo_type=kind, revision=revision)
        self.commit = str(info.sha)

    def read(self, path: str) -> bytes | None:
        """A file of it; None if it is not there."""
        return remote.fetch(self.api, self.repo, self.kind, self.commit, path)


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
    told = place, round_, runs, recipe_to, learner, say, local_paths
    if Path(place).is_dir():
        return _pull(Folder(Path(place)), *told)
    with remote.one_line("pull from", remote.check_repo(place)):
        source = Repository(place, "dataset", revision or _tag(place, round_, learner))
        return _pull(source, *told)


def _tag(repo: str, round_: int, learner: str | None) -> str:
    """The round's tag, or that of the one learner."""
    _, tags = remote.commits(remote.connect(), repo, "dataset")
    wanted = [f"round-{round_}", *([f"round-{round_}-{learner}"] if learner else [])]
    for tag in wanted:
        if tag in tags:
            return tag
    raise HubError(
        f"{repo} has no tag {' or '.join(wanted)}; it has {', '.join(sorted(tags)) or 'none'} "
        "(name one, or a commit, with --revision)"
    )


def _pull(
    source: Source,
    place: str,
    round_: int,
    runs: Path,
    recipe_to: Path,
    learner: str | None,
    say: Say,
    local_paths: bool,
) -> list[str]:
    # 1. What is there.
    content = source.read(INDEX)
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

    # 2. The recipe, and whether it may be written where it should go.
    main = next((name for name, e in entries.items() if e["main"]), next(iter(entries)))
    text, templates = _recipe(source, place, main, recipe_to.parent)
    if recipe_to.exists() and recipe_to.read_text("utf-8") != text:
        raise HubError(f"{recipe_to} is another recipe; choose a name with --recipe-to FILE")
    recipe_to.parent.mkdir(parents=True, exist_ok=True)
    for path, template in templates.items():
        path.write_text(template, "utf-8")
    fresh = not recipe_to.exists()
    recipe_to.write_text(text, "utf-8")
    try:
        recipe = load_recipe(str(recipe_to.absolute()))
        if not local_paths and (own := _local_paths(recipe)):
            raise HubError(
                f"{place}: its recipe reads {', '.join(map(plain, own))} of this machine; say "
                "--local-paths if it may, or train without it: `macpo train --dataset`"
            )
        plan = make_plan(recipe)
        store = Store(runs / recipe.run, say)
        steps = _steps(plan, entries, place)
        _lock(source, place, main, recipe, store)
    except MacpoError:
        if fresh:
            recipe_to.unlink()
        raise

    # 3. Datasets, then the adapters from which they are trained.
    said = [f"wrote    {recipe_to}"] if fresh else []
    for name, step in steps.items():
        said.append(_put(store, plan.name(step), _from(source, f"macpo/{name}/{plan.name(step)}")))
    for name, step in steps.items():
        starts = json.loads(_must(source, f"macpo/{name}/adapters.json", place))
        for start in starts:
            if line := _adapter(plan, store, step, start):
                said.append(line)
    return list(dict.fromkeys(said))


def _recipe(source: Source, place: str, name: str, to: Path) -> tuple[str, dict[Path, str]]:
    """The recipe's text and the templates it names, which lie beside it."""
    text = _must(source, f"macpo/{name}/recipe.yaml", place).decode("utf-8", "replace")
    try:
        values: dict[str, Any] = yaml.safe_load(text)
        agents = list(values["agents"].values())
        named = list(text_files(values))
        values["train"]["launcher"] = None  # a file of another machine
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
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
        content = _must(source, f"macpo/{name}/{file}", place)
        templates[to / file] = content.decode("utf-8")
        section[key] = str(to / file)
    for agent in agents:
        # Running code that a stranger's base brings is for the person here to allow.
        agent["trust_remote_code"] = False
        # So is sending a key to a server that a stranger names.
        if isinstance(agent.get("endpoint"), dict):
            agent["endpoint"]["api_key_env"] = None
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True), templates


def _local_paths(recipe: Recipe) -> list[str]:
    """The data and models of a recipe that are read from this machine's disk."""
    judges = [judge.reward for judge in (recipe.judge, recipe.eval.judge) if judge]
    rewards = [reward.model for reward in (recipe.eval.reward, *judges) if reward]
    named = [*sources.all_paths(recipe.data), *recipe.select.test_sets, recipe.reward.base or ""]
    named += [*rewards, *(agent.base for agent in recipe.agents.values())]
    return [path for path in dict.fromkeys(named) if path and sources.is_local(path)]


def _steps(plan: Plan, entries: Index, place: str) -> dict[str, Step]:
    """The gen step of each entry; the recipe has to lead to the very same names."""
    steps = {}
    for name, entry in entries.items():
        step = next(
            (
                s
                for s in plan.steps
                if (s.kind, s.round, s.learner) == ("gen", entry["round"], entry["learner"])
            ),
            None,
        )
        if step is None or plan.name(step) != _name(entry):
            raise HubError(
                f"{place}: its recipe does not lead to {name} with this version of macpo; "
                f"`macpo train --dataset {place} --config {name}` needs no recipe"
            )
        steps[name] = step
    return steps


def _name(entry: Entry) -> str:
    return str(entry["facts"].get("name"))


def _lock(source: Source, place: str, name: str, recipe: Recipe, store: Store) -> None:
    """Lay the published pins beside those of the run; they may not contradict each other."""
    try:
        published = json.loads(_must(source, f"macpo/{name}/lock.json", place))
        mine = json.loads((store.root / "lock.json").read_text("utf-8"))
    except FileNotFoundError:
        mine = {}
    for kind in ("models", "data"):
        known = mine.setdefault(kind, {})
        for key, pin in published.get(kind, {}).items():
            if known.setdefault(key, pin) != pin:
                raise HubError(
                    f"{store.root}/lock.json pins {key} otherwise than {place}; pull into another "
                    "folder with --runs DIR"
                )
    write_json(store.root / "lock.json", mine)


def _from(source: Source, prefix: str) -> Callable[[str], bytes | None]:
    return lambda file: source.read(f"{prefix}/{file}")


def _put(store: Store, name: str, read: Callable[[str], bytes | None]) -> str:
    """Bring one result into the store; its manifest is written last, and only if all is well."""
    with store.lock(name):
        if store.is_done(name):
            return f"kept     {store.path(name)}"
        content = read(MANIFEST)
        if content is None:
            raise HubError(f"{name} was not published whole; ask who published it")
        folder = store.clear(name)
        try:
            # Sealed beside the others first, under a name that no state looks at.
            trial = Store(folder / ".pull", store.say)
            trial.path(name).mkdir(parents=True)
            (trial.path(name) / MANIFEST).write_bytes(content)
            manifest = trial.manifest(name)
            assert manifest is not None
            brought = []
            for file in manifest["files"]:
                data = read(file) if _plain(file) else None
                if data is not None:
                    (trial.path(name) / file).write_bytes(data)
                    brought.append(file)
            if not brought:
                raise HubError(f"{name} was not published whole; ask who published it")
            trial.verify(name, *brought)
        except StoreError:
            shutil.rmtree(folder)
            raise HubError(
                f"{name} is not what its manifest says, and was not kept; ask who published it"
            ) from None
        for file in (*brought, MANIFEST):
            (trial.path(name) / file).replace(folder / file)
        shutil.rmtree(trial.root)
        return f"pulled   {store.path(name)}"


def _plain(file: str) -> bool:
    return "/" not in file and "\\" not in file and not file.startswith(".")


def _adapter(plan: Plan, store: Store, step: Step, start: dict[str, Any]) -> str | None:
    """Fetch the adapter from which a training starts; None for one on the bare base."""
    name = start["start"]
    known = {plan.name(s) for s in plan.steps if s.kind == "train"}
    # A start on the bare base, or the result of the training before on the same dataset.
    if start["adapter_sha256"] is None or name not in known:
        return None
    if store.is_done(name):
        return f"kept     {store.path(name)}"
    repo, revision = start["repo"], start["revision"]
    missing = f"missing  {store.path(name)}: {start['trains']} starts from it"
    if repo is None:
        return f"{missing}; it was never pushed (`macpo push --adapters` does)"
    try:
        source = Repository(remote.check_repo(repo), "model", str(revision))
        line = _put(store, name, _from(source, Path(name).name))
    except HubError:
        raise
    except Exception as error:
        if remote.status_of(error) not in (401, 403, 404):
            raise
        return f"{missing}; {repo} has none at {revision}, it was never pushed or is private"
    if adapter_sha256(store.path(name)) != start["adapter_sha256"]:
        shutil.rmtree(store.path(name))
        raise HubError(f"{repo} holds another {name} than the round says; ask who published it")
    return line


def _must(source: Source, path: str, place: str) -> bytes:
    content = source.read(path)
    if content is None:
        raise HubError(f"{place} has no {path}; it was not published whole")
    return content
