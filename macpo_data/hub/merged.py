"""Publishes a round's student as one model that needs neither macpo nor peft.

An adapter is folded into its base; a checkpoint of all weights is such a model already.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from macpo_data import hub_client
from macpo_data.bases.named import hub_id, is_local_base
from macpo_data.errors import HubError, of_run
from macpo_data.hub.push import Push, ensure, set_tag
from macpo_data.hub.templates import fill
from macpo_data.models.weights import is_checkpoint
from macpo_data.models.worker import Progress, Workers
from macpo_data.outside import OutsideError, parse_object, read_bytes
from macpo_data.plan import Step
from macpo_data.store.manifests import MANIFEST
from macpo_data.store.pins import Lock
from macpo_data.store.store import naming


def model_card(push: Push, bases: Sequence[str], relation: str, tags: Sequence[str] = ()) -> str:
    """The head of a model's card, as YAML.

    Args:
        push: the round that it was trained on.
        bases: as recipes name them.
        relation: how it stands to its base: adapter or finetune.
        tags: besides macpo's own.
    """
    # What is no Hub id is no base that the Hub could link to.
    ids = [hub_id(base) or base for base in bases]
    on_hub = [name for name in ids if "/" in name and not is_local_base(name)]
    values: dict[str, Any] = {"library_name": "peft" if relation == "adapter" else "transformers"}
    if on_hub:
        values |= {"base_model": on_hub, "base_model_relation": relation}
    if relation == "finetune" and (licence := _licence(push, on_hub)):
        values["license"] = licence  # of the base, whose weights these are
    values |= {"datasets": [push.repo]} if push.repo else {}
    return str(yaml.safe_dump(values | {"tags": ["macpo", "dpo", *tags]}, sort_keys=False))


def _licence(push: Push, bases: Sequence[str]) -> str | None:
    """The licence that a base states on the Hub, if it can be asked."""

    def stated(base: str) -> str | None:
        licence = getattr(hub_client.connect().model_info(base).card_data, "license", None)
        return licence if isinstance(licence, str) else None

    try:
        (base,) = bases
        return Lock(push.store.root).licence(f"model {base}", partial(stated, base))
    except Exception:  # several bases, and every way of not reaching the Hub has its own class
        return None


def push_merged(push: Push, repo: str, *, private: bool, progress: Progress) -> str:
    """Push the round's student to a model repository, with the round's tag.

    Returns:
        What came of it, in one line.

    Raises:
        HubError: it is not trained yet, or the Hub refuses.
    """
    step = _trained(push)
    with hub_client.one_line("push the merged model to", repo):
        api = hub_client.connect()
        ensure(api, repo, "model", private)
        with _whole(push, step, repo, progress) as files:

            def attempt() -> str:
                branches, tags = hub_client.commits(api, repo, "model")
                if push.tag in tags:
                    return f"{repo} has {push.tag} already"
                commit, _ = hub_client.commit(
                    api, repo, "model", "main", hub_client.main_of(branches, repo), files, push.tag,
                    remove=lambda path: path not in files and path != ".gitattributes",
                )  # fmt: skip
                set_tag(api, repo, "model", push.tag, commit)
                return f"pushed {repo} at {push.tag}"

            return hub_client.until_settled(attempt, repo)


def merged_to_folder(push: Push, to: Path, progress: Progress) -> bool:
    """Write the round's student into a folder that nothing else is in; whether anything was done.

    Raises:
        HubError: it is not trained yet, or the folder holds something else.
    """
    step = _trained(push)
    wanted = _facts(push, step)["adapter_sha256"]
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        facts = to / "macpo.json"
        if facts.is_file() and _made_of(facts) == wanted:
            return False
        raise HubError(f"{to} is not empty; choose another folder with --to")
    staged = to.with_name(f".{to.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    with _whole(push, step, to.name, progress) as files:
        for name, content in files.items():
            with naming(staged / name):
                if isinstance(content, bytes):
                    (staged / name).write_bytes(content)
                else:
                    shutil.copyfile(content, staged / name)
    if to.exists():
        to.rmdir()
    staged.rename(to)
    return True


def _trained(push: Push) -> Step:
    plan, store, student = push.plan, push.store, push.plan.recipe.students[0]
    own = (step for step in plan.steps if step.makes and plan.dataset(step) in push.steps)
    step = next((s for s in own if (s.learner, s.behavior) == (student, "positive")), None)
    if step is None or not store.is_done(plan.name(step)):
        mend = of_run(f"train --round {push.steps[0].round}")
        raise HubError(f"{student} of {push.tag} is not trained yet; run `{mend}`")
    return step


def _facts(push: Push, step: Step) -> dict[str, Any]:
    manifest = push.store.manifest(push.plan.name(step)) or {}
    return {
        "base": push.plan.recipe.agents[step.learner].base,
        "base_revision": manifest.get("base_revision"),
        "adapter": push.plan.name(step),
        "adapter_sha256": manifest["adapter_sha256"],
    }


@contextmanager
def _whole(
    push: Push, step: Step, name: str, progress: Progress
) -> Iterator[dict[str, Path | bytes]]:
    """The files of the model, by their names in its repository."""
    plan, store, agent = push.plan, push.store, push.plan.recipe.agents[step.learner]
    store.verify(plan.name(step))
    policy, out = store.path(plan.name(step)), store.root / ".merged"
    facts = _facts(push, step)
    try:
        if is_checkpoint(policy):
            out, facts["dtype"] = policy, (store.manifest(plan.name(step)) or {}).get("dtype")
        else:
            shutil.rmtree(out, ignore_errors=True)
            base = Lock(store.root).base(agent)
            work = (base, policy, out, agent.chat_template)
            with Workers(1) as workers, progress(f"merging {step.makes}") as report:
                worker = workers.get(base.id)
                facts |= worker.call("macpo_data.models.merge:merge", *work, report=report)
        files: dict[str, Path | bytes] = {
            p.relative_to(out).as_posix(): p
            for p in out.rglob("*")
            if p.is_file() and p.name != MANIFEST
        }
        files["macpo.json"] = (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()
        card = fill(
            "merged.md.jinja",
            metadata=model_card(push, [agent.base], "finetune"),
            repo=name,
            policy=step.makes,
            dataset=push.repo or "a dataset",
            tag=push.tag,
            facts=facts,
            folded=out != policy,
        )
        yield files | {"README.md": card.encode()}
    finally:
        if out != policy:
            shutil.rmtree(out, ignore_errors=True)


def _made_of(facts: Path) -> object:
    """The sha256 of the adapter of which a folder says that it was merged; None if it says none."""
    try:
        return parse_object(read_bytes(facts)).get("adapter_sha256")
    except OutsideError:
        return None
