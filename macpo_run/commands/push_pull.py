"""`macpo push` and `pull`: a round to the Hub or a folder, and back."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macpo_data.errors import MacpoError
from macpo_run.commands.run_options import RunOptions, open_run
from macpo_run.terminal.lines import say, say_aside, say_next

if TYPE_CHECKING:
    from macpo_data.hub.push import Push
    from macpo_run.rounds import Run


@dataclass(frozen=True)
class Publication:
    """What of a finished round is published, and where."""

    round: int
    learner: str | None
    repo: str | None  # a dataset on the Hub, as org/name
    to: Path | None  # a folder instead of the Hub
    tag: str | None
    licence: str | None
    private: bool = False
    create_pr: bool = False
    candidates: bool = False  # all candidates with their scores, too
    adapters: bool = False  # to REPO-adapters
    negatives: bool = False  # with them the negative twins, which are trained to answer badly
    merge: bool = False  # the student, merged, to REPO-merged or DIR-merged


def push(options: RunOptions, publication: Publication) -> None:
    """Publish a finished round.

    Raises:
        MacpoError: it is not said where to, it is not finished, or the Hub refuses it.
    """
    if publication.repo is None and publication.to is None:
        raise MacpoError("where to? name a dataset with --repo org/name, or a folder with --to DIR")
    on_hub = {
        "--adapters": publication.adapters,
        "--negatives": publication.negatives,
        "--private": publication.private,
        "--create-pr": publication.create_pr,
    }
    if publication.to is not None and (unread := [name for name, on in on_hub.items() if on]):
        raise MacpoError(f"{', '.join(unread)}: only for the Hub; leave --to out, or that")
    if publication.negatives and not publication.adapters:
        raise MacpoError("--negatives: only read with --adapters; say both, or leave it out")
    with open_run(options) as run:
        prepared = _prepared(run, publication)
        if publication.to is not None:
            _push_to_folder(prepared, publication.to)
            if publication.merge:
                _merge_to_folder(run, prepared, publication.to)
        else:
            _push_to_hub(run, prepared, publication)


def _prepared(run: Run, publication: Publication) -> Push:
    """What is to be published, checked before anything is sent."""
    from macpo_data.hub import push as hub

    learner, round_ = publication.learner, publication.round
    steps = hub.round_steps(run.plan, run.store, run.select("gen", round_, learner), learner)
    default = f"round-{round_}" + (f"-{learner}" if learner else "")
    tag = hub.check_tag(publication.tag or default)
    licence = publication.licence or hub.source_licence(run.plan, run.store, run.say)
    return hub.Push(
        run.plan, run.store, steps, tag, publication.repo, publication.candidates, licence
    )


def _merge_to_folder(run: Run, prepared: Push, folder: Path) -> None:
    from macpo_data.hub.merged import merged_to_folder

    to = folder.with_name(f"{folder.name}-merged")
    say(f"{'wrote' if merged_to_folder(prepared, to, run.progress) else 'kept '}  {to}")


def _push_to_folder(prepared: Push, folder: Path) -> None:
    from macpo_data.hub.push import push_to_folder

    say(f"{'wrote' if push_to_folder(prepared, folder) else 'kept'}  {folder}")


def _push_to_hub(run: Run, prepared: Push, publication: Publication) -> None:
    """The adapters first: the dataset's tag says that the round is there."""
    from macpo_data.hub.push import push_to_hub

    private, create_pr = publication.private, publication.create_pr
    if publication.adapters or publication.merge:
        from macpo_data.hub.adapters import push_adapters

        for line in push_adapters(
            prepared,
            private=private,
            negatives=publication.negatives,
            merge=publication.merge,
            progress=run.progress,
        ):
            say(line)
    say(push_to_hub(prepared, private=private, create_pr=create_pr, say=run.say))
    say_next(f"macpo pull {publication.repo} --round {publication.round}")


def pull(
    origin: str,
    round_: int,
    learner: str | None,
    revision: str | None,
    runs: Path,
    recipe: Path,
    *,
    local_paths: bool,
) -> None:
    """Bring a published round here.

    Args:
        origin: org/name, or a folder of `push --to`.
        round_: its number.
        learner: only this agent's dataset.
        revision: a tag or commit; by default the round's tag.
        runs: the folder of all runs.
        recipe: where to write the recipe of the round.
        local_paths: the recipe may read files of this machine.
    """
    from macpo_data.hub.pull import pull_round

    for line in pull_round(
        origin, round_, runs, recipe, learner, revision, say_aside, local_paths
    ):  # fmt: skip
        say(line)
    options = RunOptions(None if recipe == Path("macpo.yaml") else str(recipe), runs)
    with open_run(options) as run:
        say_next(_after_pull(run, round_, learner))


def _after_pull(run: Run, round_: int, learner: str | None) -> str:
    """A command that works on what was pulled: the round's trainings, or one without its run.

    Where every training starts from an adapter that was never pushed, the dataset is still there.
    """
    states = run.states()
    trains = run.select("train", round_, learner)
    able = {step.learner for step in trains if states[step] in ("ready", "done")}
    if able or not trains:
        # A learner who waits would make it end well all the same; it says what that waits for.
        return f"macpo train --round {round_}{run.options}"
    from macpo_data.hub.provenance import has_rejected

    gens = [s for s in run.select("gen", round_, learner) if states[s] in ("done", "stale")]
    step = next((s for s in gens if s.learner in run.recipe.students), gens[0])
    agent = run.recipe.agents[step.learner]
    sets = [] if has_rejected(run.plan, step) else ["objective=sft", "columns.rejected=null"]
    sets += [] if agent.chat_template == "tokenizer" else [f"chat_template={agent.chat_template}"]
    sets += ["engine.name=fake"] if run.recipe.engine.name == "fake" else []
    words = ["--dataset", str(run.path(step) / "pairs.parquet"), "--base", agent.base]
    words += ["--out", f"{step.learner}-{round_}", *(w for each in sets for w in ("--set", each))]
    return f"macpo train {shlex.join(words)}"
