"""Publishes LoRA adapters to a model repository: a round's starting ones and its trained ones.

Each adapter has a folder of its own, named as in the store, and a tag of that name, which is set
last. The dataset's manifests say which they are; `macpo pull` fetches and checks them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from macpo_data import hub_client
from macpo_data.errors import HubError
from macpo_data.hub.index import adapters_repo
from macpo_data.hub.push import Push, ensure, set_tag
from macpo_data.hub.templates import fill
from macpo_data.models.worker import Progress, Workers
from macpo_data.store.manifests import MANIFEST, parse_json
from macpo_data.store.pins import Lock
from macpo_data.world.named import WORLD

INDEX = "adapters.json"
_FACTS = ("base", "base_revision", "objective", "start", "reference", "adapter_sha256")


def push_adapters(push: Push, *, private: bool, merge: bool, progress: Progress) -> list[str]:
    """Push the round's adapters, and with `merge` the student as one standalone model.

    Returns:
        What came of it, a line each.

    Raises:
        HubError: an adapter of that name is there with other weights, or the Hub refuses.
    """
    repo = adapters_repo(hub_client.check_repo(str(push.repo)))
    adapters = {Path(name).name: name for name in _names(push)}
    if not adapters:
        raise HubError(f"no adapter of {push.tag} is trained yet; run `macpo train`")
    with hub_client.one_line("push adapters to", repo):
        lines = [_push(push, repo, adapters, private)]
    if merge:
        with hub_client.one_line("push the merged model to", f"{push.repo}-merged"):
            lines.append(_push_merged(push, f"{push.repo}-merged", private, progress))
    return lines


def _names(push: Push) -> list[str]:
    """The finished adapters that trainings on these datasets start from or made."""
    plan, names = push.plan, []
    for step in plan.steps:
        # A retrained twin learns from the dataset of round 0, and is no part of that round.
        own = step.makes is not None and step.dataset_round is None
        if own and plan.dataset(step) in push.steps:
            starts = [maker for policy in step.policies if (maker := plan.maker(policy))]
            names += [plan.name(each) for each in (*starts, step)]
    return [name for name in dict.fromkeys(names) if push.store.is_done(name)]


def _push(push: Push, repo: str, adapters: dict[str, str], private: bool) -> str:
    api = hub_client.connect()
    ensure(api, repo, "model", private)
    files: dict[str, Path | bytes] = {}
    mine: dict[str, dict[str, Any]] = {}
    for short, name in adapters.items():
        manifest = push.store.verify(name)
        mine[short] = {key: manifest.get(key) for key in _FACTS}
        for file in (*manifest["files"], MANIFEST):
            files[f"{short}/{file}"] = push.store.path(name) / file

    def attempt() -> str:
        branches, tags = hub_client.commits(api, repo, "model")
        head = branches["main"]
        published = _published(hub_client.fetch(api, repo, "model", head, INDEX), repo)
        for short in mine:
            other = published.get(short, mine[short])["adapter_sha256"]
            if other != mine[short]["adapter_sha256"]:
                raise HubError(f"{repo} has another {short}; choose another --repo")
        index = dict(sorted({**published, **mine}.items()))
        common: dict[str, Path | bytes] = {
            INDEX: (json.dumps(index, indent=1, sort_keys=True) + "\n").encode(),
            "README.md": _card(push, repo, index).encode(),
        }
        message = f"{push.tag}: {len(mine)} adapters"
        commit, new = hub_client.commit(api, repo, "model", "main", head, files | common, message)
        for short in mine:
            if short not in tags:
                set_tag(api, repo, "model", short, commit)
        return f"{'pushed' if new else 'kept'} {len(mine)} adapters in {repo}"

    return hub_client.until_settled(attempt, repo)


def _published(content: bytes | None, repo: str) -> dict[str, dict[str, Any]]:
    """The adapters that are there already, by name; what the card says of each."""
    try:
        adapters: dict[str, dict[str, Any]] = parse_json(content or b"{}")
        if all(set(_FACTS) <= facts.keys() for facts in adapters.values()):
            return adapters
    except (ValueError, TypeError, AttributeError):
        pass
    raise HubError(f"{repo}/{INDEX} is damaged; choose another --repo")


def _card(push: Push, repo: str, index: dict[str, dict[str, Any]]) -> str:
    bases = sorted({str(facts["base"]) for facts in index.values()})
    return fill(
        "adapters.md.jinja",
        metadata=_metadata(push, bases, "adapter"),
        dataset=push.repo,
        repo=repo,
        adapters=index,
        first=next(iter(index)),
    )


def _metadata(push: Push, bases: list[str], relation: str) -> str:
    # What is no Hub id is no base that the Hub could link to.
    on_hub = [b for b in bases if "/" in b and not b.startswith((".", "/", "~", WORLD))]
    values: dict[str, Any] = {"library_name": "peft" if relation == "adapter" else "transformers"}
    if on_hub:
        values |= {"base_model": on_hub, "base_model_relation": relation}
    values |= {"datasets": [push.repo], "tags": ["macpo", "dpo"]}
    return str(yaml.safe_dump(values, sort_keys=False))


def _push_merged(push: Push, repo: str, private: bool, progress: Progress) -> str:
    plan, store, student = push.plan, push.store, push.plan.recipe.students[0]
    step = next(
        (
            s
            for s in plan.steps
            if s.makes
            and plan.dataset(s) in push.steps
            and (s.learner, s.behavior) == (student, "positive")
        ),
        None,
    )
    if step is None or not store.is_done(plan.name(step)):
        raise HubError(f"{student} of {push.tag} is not trained yet; run `macpo train`")
    api = hub_client.connect()
    ensure(api, repo, "model", private)
    agent = plan.recipe.agents[student]
    manifest = store.verify(plan.name(step))
    out = store.root / ".merged"
    workers = Workers(1)
    try:
        shutil.rmtree(out, ignore_errors=True)
        base = Lock(store.root).base(agent)
        with progress(f"merging {step.makes}") as report:
            facts = workers.get(base.id).call(
                "macpo_data.models.merge:merge",
                base,
                store.path(plan.name(step)),
                out,
                agent.chat_template,
                report=report,
            )
        facts |= {"base": agent.base, "base_revision": base.revision, "adapter": plan.name(step)}
        facts["adapter_sha256"] = manifest["adapter_sha256"]
        files: dict[str, Path | bytes] = {
            p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()
        }
        files["macpo.json"] = (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()
        files["README.md"] = fill(
            "merged.md.jinja",
            metadata=_metadata(push, [agent.base], "finetune"),
            repo=repo,
            policy=step.makes,
            dataset=push.repo,
            tag=push.tag,
            facts=facts,
        ).encode()

        def attempt() -> str:
            branches, tags = hub_client.commits(api, repo, "model")
            if push.tag in tags:
                return f"{repo} has {push.tag} already"
            commit, _ = hub_client.commit(
                api, repo, "model", "main", branches["main"], files, push.tag,
                remove=lambda path: path not in files and path != ".gitattributes",
            )  # fmt: skip
            set_tag(api, repo, "model", push.tag, commit)
            return f"pushed {repo} at {push.tag}"

        return hub_client.until_settled(attempt, repo)
    finally:
        workers.close()
        shutil.rmtree(out, ignore_errors=True)
