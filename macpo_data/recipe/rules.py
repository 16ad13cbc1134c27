"""Mistakes between the fields of a recipe, which no field shows by itself.

A rule is a function from a draft, the raw values of a recipe, to what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from macpo_data import prompts
from macpo_data.errors import ModelError
from macpo_data.recipe.draft import Draft, items
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.training import DPO, SMOOTHED
from macpo_data.world.named import check_world_base


def conflicts(values: dict[str, Any]) -> list[str]:
    """Mistakes between fields. Looks at the raw values, so that a wrong field hides none."""
    if not isinstance(values.get("agents"), dict):
        return []
    draft = Draft(values)
    return [problem for rule in RULES for problem in rule(draft)]


def unfilled(recipe: Recipe) -> list[str]:
    """Prompts that would be asked without what they are about."""
    named = [("mixture.prompt", "aggregate", recipe.mixture.prompt)] if recipe.mixture else []
    for path, judge in (("judge", recipe.judge), ("eval.judge", recipe.eval.judge)):
        texts = judge.prompts.model_dump() if judge else {}
        named += [(f"{path}.prompts.{kind}", kind, text) for kind, text in texts.items()]
    for side in ("positive", "negative"):
        prompts.fill(getattr(recipe.framing, side))
    return [
        f"{path}: {text} lacks {', '.join('$' + name for name in names)}"
        for path, kind, text in named
        if (names := prompts.lacking(kind, text))
    ]


# ------------------------------------------------------------------------- who takes part


def _roles(draft: Draft) -> Iterator[str]:
    if draft.method != "moaa" and not draft.teachers:
        yield "agents: no agent with role teacher"
    if len(draft.students) != 1:
        yield f"agents: {len(draft.students)} agents with role student, 1 is needed"
    labeller = draft.values.get("labeller")
    if labeller is not None and labeller not in draft.teachers:
        yield draft.no_teacher("labeller", labeller)


def _agents(draft: Draft) -> Iterator[str]:
    for name, agent in draft.agents.items():
        if agent.get("noise") is not None and name not in draft.teachers:
            yield f"agents.{name}.noise: only a teacher learns from human pairs; leave it out"
        is_trained = name in (*draft.teachers, *draft.students)
        if is_trained and agent.get("endpoint") and not agent.get("base"):
            yield f"agents.{name}: it is trained, so it needs a base of its own"


def _world_bases(draft: Draft) -> Iterator[str]:
    """Bases that the embedded world does not have."""
    bases = {f"agents.{name}.base": agent.get("base") for name, agent in draft.agents.items()}
    for path, base in {**bases, "reward.base": draft.read("reward", "base")}.items():
        try:
            check_world_base(base if isinstance(base, str) else "")
        except ModelError as error:
            yield f"{path}: {error}"


def _names(draft: Draft) -> Iterator[str]:
    """Agents that a judge or a mixture names and nobody knows."""
    named = [(f"{path}.agent", judge.get("agent")) for path, judge in draft.judges.items()]
    for path, judge in draft.judges.items():
        named += [(f"{path}.proposers", name) for name in items(judge.get("proposers"))]
    named += [("mixture.layers", name) for name in draft.in_mixture]
    for path, name in dict.fromkeys((path, str(name)) for path, name in named if name):
        if name not in draft.agents:
            agents = ", ".join(map(str, draft.agents))
            yield f"{path}: {name!r} is no agent (those are: {agents})"


# ------------------------------------------------------------------------- what a method needs


def _needed_sections(draft: Draft) -> Iterator[str]:
    needed = {"moaa": ("mixture", "judge"), "rlaif": ("judge",), "self_rewarding": ("judge",)}
    for method, sections in needed.items():
        if draft.method == method:
            for section in sections:
                if not draft.values.get(section):
                    yield f"{section}: missing; method {method} needs it"
            if draft.read("sampling", "n", 1) == 1:
                yield f"sampling.n: method {method} compares answers of the student: 2 or more"


def _self_rewarding(draft: Draft) -> Iterator[str]:
    if draft.method != "self_rewarding" or len(draft.students) != 1:
        return
    (student,) = draft.students
    if draft.read("judge", "agent", student) != student:
        yield f"judge.agent: in method self_rewarding the student judges: {student}"
    kinds = ("points", "llm", "likelihood")
    if draft.read("judge", "kind", "llm") not in kinds:
        yield f"judge.kind: in method self_rewarding the student judges: one of {', '.join(kinds)}"


def _delta(draft: Draft) -> Iterator[str]:
    """Why method delta would not know two teachers who write its pairs."""
    if draft.method != "delta":
        if draft.values.get("delta") is not None:
            yield "delta: only method delta reads it; leave it out"
        return
    if draft.values.get("delta") is None:
        yield "delta: missing; method delta needs it: {chosen: TEACHER, rejected: TEACHER}"
    sides = {side: draft.read("delta", side) for side in ("chosen", "rejected")}
    if sides["chosen"] is not None and sides["chosen"] == sides["rejected"]:
        yield f"delta: chosen and rejected are both {sides['chosen']}; name two teachers"
        return
    for side, name in sides.items():
        if name is not None and name not in draft.teachers:
            yield draft.no_teacher(f"delta.{side}", name)


def _spin(draft: Draft) -> Iterator[str]:
    if draft.method != "spin" and draft.read("spin", "earlier_pairs", False):
        yield "spin.earlier_pairs: only method spin reads it; leave it out"


def _peers(draft: Draft) -> Iterator[str]:
    """Why no other teacher could rank what the student learns."""
    if draft.method != "macpo" or draft.read("select", "under") != "peers":
        return
    if draft.values.get("positives") == "own":
        why = "peers rank what teachers write, and with positives=own the student learns none of it"
    elif len(draft.teachers) == 1:
        why = f"peers are other teachers, and {draft.teachers[0]} has none"
    else:
        return
    yield f"select.under: {why}; set select.under=learner"


def _mixture(draft: Draft) -> Iterator[str]:
    if draft.method == "macpo":
        for name in draft.in_mixture:
            if name in (*draft.teachers, *draft.students):
                yield (
                    f"mixture.layers: {name} is trained in method macpo; "
                    "name an agent of another role"
                )


# ------------------------------------------------------------------------- what nothing reads

# A setting that changes nothing is one that nobody should believe in.
_RANKING = ("select.under", "select.order", "select.pool", "select.max_perplexity")
_CHOOSING = ("select.by", *_RANKING, "select.keep")
_TEACHING = ("positives", "negatives", "negatives_by", "frozen_teachers", "schedule", "mixture")
_UNREAD = {
    "moaa": (*_CHOOSING, *_TEACHING[:-1], "confidence", "data.label_noise", "stop"),
    "spin": (*_CHOOSING, *_TEACHING),
    **dict.fromkeys(("weak_labels", "delta"), (*_CHOOSING, *_TEACHING, "stop")),
    **dict.fromkeys(("rlcd", "rlaif", "self_rewarding"), (*_CHOOSING, *_TEACHING)),
}


def _unread_by_method(draft: Draft) -> Iterator[str]:
    paths = _UNREAD.get(draft.method, ()) if isinstance(draft.method, str) else ()
    for path in filter(draft.changed, paths):
        yield f"{path}: method {draft.method} does not read it; leave it out"


def _reads_all(draft: Draft) -> bool:
    """Whether the method reads what the two rules below are about."""
    return not isinstance(draft.method, str) or draft.method not in _UNREAD


def _unread_ranking(draft: Draft) -> Iterator[str]:
    by_other = draft.read("select", "by", "perplexity") != "perplexity"
    by_chance = draft.read("select", "order", "lowest") == "random"
    if _reads_all(draft) and (by_other or by_chance):
        ranking = [path for path in _RANKING if by_other or path != "select.order"]
        for path in filter(draft.changed, ranking):
            yield f"{path}: only read where perplexity ranks"


def _unread_negatives(draft: Draft) -> Iterator[str]:
    if not _reads_all(draft):
        return
    writers = draft.values.get("negatives_by")
    if draft.values.get("negatives") == "retrained" and draft.changed("negatives_by"):
        yield (
            f"negatives: retrained trains the negative twin anew, and negatives_by {writers} "
            "has none; set negatives_by=fine_tuning"
        )
    if writers in ("corruption", "mismatch"):
        for path in filter(draft.changed, ("negatives", "select.keep")):
            yield f"{path}: negatives_by {writers} makes one of each chosen answer"


# ------------------------------------------------------------------------- choosing and judging


def _stop(draft: Draft) -> Iterator[str]:
    probe = draft.read("data", "probe")
    size = probe.get("count") if isinstance(probe, dict) else None
    if draft.values.get("stop") == "probe" and size == 0:
        yield "stop: probe needs one; set data.probe.count above 0, or leave it out"


def _selection(draft: Draft) -> Iterator[str]:
    by, kind = draft.read("select", "by", "perplexity"), draft.read("judge", "kind")
    if by == "judge" and kind is None:
        yield "select.by: judge needs a section judge"
    if by == "reward" and kind != "reward":
        yield "select.by: reward needs a section judge with kind reward"


def _candidates(draft: Draft) -> Iterator[str]:
    keep, n = draft.read("select", "keep", 1), draft.read("sampling", "n", 1)
    own = draft.method == "macpo" and draft.values.get("positives") == "own"
    writers = 1 if own else len(draft.teachers)
    are_counts = isinstance(keep, int) and isinstance(n, int)
    if are_counts and draft.teachers and not draft.in_mixture and keep > n * writers:
        yield f"select.keep: {keep} of only {n * writers} candidates per prompt"


def _judges(draft: Draft) -> Iterator[str]:
    in_world = draft.read("data", "source", "") == "world"
    for path, judge in draft.judges.items():
        if judge.get("kind") == "gold" and not in_world:
            yield f"{path}.kind: only source world has a gold judge"
        agent = draft.agents.get(str(judge.get("agent")))
        if judge.get("kind") == "likelihood" and agent is not None and not agent.get("base"):
            yield f"{path}.agent: kind likelihood needs weights here; give {judge['agent']} a base"


# ------------------------------------------------------------------------- training


def untrainable(values: dict[str, Any], *sections: str) -> list[str]:
    """Mistakes between fields that decide how the sections train."""
    draft = Draft(values)
    return [*_losses(draft), *_batches(draft, sections)]


def _losses(draft: Draft) -> Iterator[str]:
    loss, smoothing = draft.read("dpo", "loss", "sigmoid"), draft.read("dpo", "label_smoothing", 0)
    if loss == "exo_pair" and smoothing == 0:
        yield "dpo.label_smoothing: exo_pair needs it above 0, its paper has 1e-3"
    elif smoothing and loss not in SMOOTHED:
        yield f"dpo.label_smoothing: {loss} knows none, these do: {', '.join(SMOOTHED)}"
    if loss == "none" and draft.read("dpo", "gamma", DPO().gamma) == 0:
        yield "dpo.gamma: with loss none the SFT term is all there is; set it above 0"


def _batches(draft: Draft, sections: tuple[str, ...]) -> Iterator[str]:
    micro = draft.read("train", "micro_batch_size")
    for section in sections:
        default = Recipe.model_fields[section].default.batch_size
        batch = draft.read(section, "batch_size", default)
        are_counts = isinstance(micro, int) and isinstance(batch, int)
        if are_counts and 0 < micro < batch and batch % micro:
            yield f"train.micro_batch_size: {micro} does not divide {section}'s {batch}"


def _training(draft: Draft) -> list[str]:
    return untrainable(draft.values, "sft", "negative", "dpo")


RULES = (
    _roles, _agents, _world_bases, _names,
    _needed_sections, _self_rewarding, _delta, _spin, _peers, _mixture,
    _unread_by_method, _unread_ranking, _unread_negatives,
    _stop, _selection, _candidates, _judges,
    _training,
)  # fmt: skip


# ------------------------------------------------------------------------- no mistakes

# What a method's paper trains with, where ours has it as a setting that may be another.
_PAPERS: dict[str, dict[str, Any]] = {
    "macpo": {"select.under": "learner"},
    "spin": {
        "dpo.reference": "previous",
        "dpo.gamma": 0.0,
        "dpo.loss": "sigmoid",
        "dpo.label_smoothing": 0.0,
    },
}


def departures(recipe: Recipe) -> list[str]:
    """Settings that make a recipe's method another than its paper's. No mistakes: may be meant."""
    papers = _PAPERS.get(recipe.method, {})
    return [
        f"{path}={now} where its paper has {theirs}"
        for path, theirs in papers.items()
        if (now := recipe.read(path)) != theirs
    ]
