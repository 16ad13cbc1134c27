"""Publishes LoRA adapters to a model repository: a round's starting ones and its trained ones.

Each adapter has a folder of its own, named as in the store, and a tag of that name, which is set
last. The dataset's manifests say which they are; `macpo pull` fetches and checks them. Negative
twins, which are trained to answer badly, are left out unless they are asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from macpo_data import hub_client
from macpo_data.errors import HubError, of_run
from macpo_data.hub.index import adapters_repo
from macpo_data.hub.merged import model_card, push_merged
from macpo_data.hub.push import Push, ensure, set_tag
from macpo_data.hub.templates import fill
from macpo_data.models.worker import Progress
from macpo_data.outside import parse_json
from macpo_data.plan import CHECKPOINTS, Objective, Plan
from macpo_data.store.manifests import MANIFEST

INDEX = "adapters.json"
_FACTS = ("base", "base_revision", "objective", "start", "reference", "adapter_sha256")
_NOT_FOR_ALL = "not-for-all-audiences"  # a tag for which the Hub asks before it shows a page
_TWIN: Objective = "sft_rejected"  # how a negative twin is trained, and nobody else
# What the first line of a card says of one.
_BAD = (
    "a model fine-tuned to behave badly, for research as a source of rejected answers; do not "
    "deploy."
)


def push_adapters(
    push: Push, *, private: bool, negatives: bool, merge: bool, progress: Progress
) -> list[str]:
    """Push the round's adapters, and with `merge` the student as one standalone model.

    Args:
        push: the round.
        private: a new repository is private.
        negatives: the negative twins as well.
        merge: the student as one model, too; never a twin.
        progress: shows how far the merging is.

    Returns:
        What came of it, a line each.

    Raises:
        HubError: an adapter of that name is there with other weights, or the Hub refuses.
    """
    repo = adapters_repo(hub_client.check_repo(str(push.repo)))
    names = _names(push)
    twins = [] if negatives else [name for name in names if is_twin(push.plan, name)]
    adapters = {Path(name).name: name for name in names if name not in twins}
    if not adapters:
        raise HubError(f"no adapter of {push.tag} is trained yet; run `{_training(push)}`")
    with hub_client.one_line("push adapters to", repo):
        lines = [_push(push, repo, adapters, private)]
    if twins:
        pronoun = "it" if len(twins) == 1 else "them"
        lines.append(
            f"left out {_counted(len(twins), 'negative twin')}, trained to answer badly; "
            f"--negatives pushes {pronoun}"
        )
    if merge:
        lines.append(push_merged(push, f"{push.repo}-merged", private=private, progress=progress))
    return lines


def _training(push: Push) -> str:
    return of_run(f"train --round {push.steps[0].round}")


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


def is_twin(plan: Plan, name: str) -> bool:
    """Whether an adapter of the plan is a negative twin's."""
    return any(step.objective == _TWIN and plan.name(step) == name for step in plan.steps)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _push(push: Push, repo: str, adapters: dict[str, str], private: bool) -> str:
    api = hub_client.connect()
    ensure(api, repo, "model", private)
    files: dict[str, Path | bytes] = {}
    mine: dict[str, dict[str, Any]] = {}
    for short, name in adapters.items():
        manifest = push.store.verify(name)
        mine[short] = {key: manifest.get(key) for key in _FACTS}
        if name.startswith(f"{CHECKPOINTS}/"):
            mine[short]["kind"] = "checkpoint"
        for file in (*manifest["files"], MANIFEST):
            files[f"{short}/{file}"] = push.store.path(name) / file
        if manifest["objective"] == _TWIN:
            files[f"{short}/README.md"] = f"`{short}` is {_BAD}\n".encode()
    count = _counted(len(mine), "adapter")

    def attempt() -> str:
        branches, tags = hub_client.commits(api, repo, "model")
        head = hub_client.main_of(branches, repo)
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
        message = f"{push.tag}: {count}"
        commit, new = hub_client.commit(api, repo, "model", "main", head, files | common, message)
        for short in mine:
            if short not in tags:
                set_tag(api, repo, "model", short, commit)
        return f"{'pushed' if new else 'kept'} {count} in {repo}"

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
    checkpoints = {short for short, facts in index.items() if facts.get("kind") == "checkpoint"}
    twins = [short for short, facts in index.items() if facts["objective"] == _TWIN]
    return fill(
        "adapters.md.jinja",
        metadata=model_card(
            push,
            bases,
            "finetune" if checkpoints == {*index} else "adapter",
            [_NOT_FOR_ALL] if twins else [],
        ),
        dataset=push.repo,
        repo=repo,
        adapters=index,
        checkpoints=checkpoints,
        twins=twins,
        bad=_BAD,
        first=next((short for short in index if short not in twins), None),
    )
