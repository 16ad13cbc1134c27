"""Mistakes between the fields of a recipe, which no field shows by itself."""

from __future__ import annotations

from typing import Any

from macpo_data import prompts
from macpo_data.errors import ModelError
from macpo_data.models.base import check_world_base
from macpo_data.recipe import DPO, DataBase, Recipe, Section, Select


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


def misfits(values: dict[str, Any]) -> list[str]:
    """Mistakes between fields. Looks at the raw values, so that a wrong field hides none."""
    agents = values.get("agents")
    if not isinstance(agents, dict):
        return []
    roles = {name: a.get("role") for name, a in agents.items() if isinstance(a, dict)}
    teachers = [name for name, role in roles.items() if role == "teacher"]
    students = [name for name, role in roles.items() if role == "student"]
    labeller = values.get("labeller")
    problems = []
    method = values.get("method", "macpo")
    if method != "moaa" and not teachers:
        problems.append("agents: no agent with role teacher")
    problems += _unread(values, method)
    if method != "spin" and _raw(values, "spin", "earlier_pairs", False):
        problems.append("spin.earlier_pairs: only method spin reads it; leave it out")
    problems += _differences(values, method, teachers)
    if values.get("stop") == "probe" and _probe_size(values) == 0:
        problems.append("stop: probe needs one; set data.probe.count above 0, or leave it out")
    problems += [
        f"agents.{name}.noise: only a teacher learns from human pairs; leave it out"
        for name, agent in agents.items()
        if isinstance(agent, dict) and agent.get("noise") is not None and name not in teachers
    ]
    if method == "self_rewarding" and len(students) == 1:
        if _raw(values, "judge", "agent", students[0]) != students[0]:
            problems.append(f"judge.agent: in method {method} the student judges: {students[0]}")
        kinds = ("points", "llm", "likelihood")
        if _raw(values, "judge", "kind", "llm") not in kinds:
            problems.append(
                f"judge.kind: in method {method} the student judges: one of {', '.join(kinds)}"
            )
    if method == "moaa":
        problems += [
            f"{section}: missing; method moaa needs it"
            for section in ("mixture", "judge")
            if not values.get(section)
        ]
    if method in ("rlaif", "self_rewarding") and not values.get("judge"):
        problems.append(f"judge: missing; method {method} needs it")
    if method in ("moaa", "rlaif", "self_rewarding") and _raw(values, "sampling", "n", 1) == 1:
        problems.append(f"sampling.n: method {method} compares answers of the student: 2 or more")
    if len(students) != 1:
        problems.append(f"agents: {len(students)} agents with role student, 1 is needed")
    if labeller is not None and labeller not in teachers:
        problems.append(
            f"labeller: {labeller!r} is no teacher (those are: {', '.join(map(str, teachers))})"
        )
    problems += untrainable(values, "sft", "negative", "dpo")
    problems += _misnamed(values, roles) + _unknown_bases(values)
    keep, n = _raw(values, "select", "keep", 1), _raw(values, "sampling", "n", 1)
    heard = len(teachers)
    mixed = [
        name for layer in _items(_raw(values, "mixture", "layers", [])) for name in _items(layer)
    ]
    if method == "macpo":
        heard = 1 if values.get("positives") == "own" else heard
        if _raw(values, "select", "under", "learner") == "peers":
            problems += _without_peers(values, teachers)
        problems += [
            f"mixture.layers: {name} is trained in method macpo; name an agent of another role"
            for name in dict.fromkeys(map(str, mixed))
            if name in (*teachers, *students)
        ]
    if isinstance(keep, int) and isinstance(n, int) and teachers and not mixed and keep > n * heard:
        problems.append(f"select.keep: {keep} of only {n * heard} candidates per prompt")
    for name in (*teachers, *students):
        if agents[name].get("endpoint") and not agents[name].get("base"):
            problems.append(f"agents.{name}: it is trained, so it needs a base of its own")
    return problems


# What a method does not read: a setting that changes nothing is one that nobody should believe in.
_RANKING = ("select.under", "select.order", "select.pool", "select.max_perplexity")
_CHOOSING = ("select.by", *_RANKING, "select.keep")
_TEACHING = ("positives", "negatives", "negatives_by", "frozen_teachers", "schedule", "mixture")
_UNREAD = {
    "moaa": (*_CHOOSING, *_TEACHING[:-1], "confidence", "data.label_noise", "stop"),
    "spin": (*_CHOOSING, *_TEACHING),
    **dict.fromkeys(("weak_labels", "delta"), (*_CHOOSING, *_TEACHING, "stop")),
    **dict.fromkeys(("rlcd", "rlaif", "self_rewarding"), (*_CHOOSING, *_TEACHING)),
}


def _unread(values: dict[str, Any], method: Any) -> list[str]:
    """Settings that are not at their default, and change nothing."""

    def changed(path: str) -> bool:
        part, _, key = path.rpartition(".")
        sections: dict[str, type[Section]] = {"select": Select, "data": DataBase, "": Recipe}
        given = values.get(part) if part else values
        default = sections[part].model_fields[key].default
        return isinstance(given, dict) and given.get(key, default) != default

    if isinstance(method, str) and method in _UNREAD:
        paths = filter(changed, _UNREAD[method])
        return [f"{path}: method {method} does not read it; leave it out" for path in paths]
    found: list[str] = []
    by_text = _raw(values, "select", "by", "perplexity") != "perplexity"
    by_chance = _raw(values, "select", "order", "lowest") == "random"
    if by_text or by_chance:
        ranking = [path for path in _RANKING if by_text or path != "select.order"]
        found += [f"{path}: only read where perplexity ranks" for path in filter(changed, ranking)]
    if values.get("negatives") == "retrained" and changed("negatives_by"):
        found.append(
            f"negatives: retrained trains the negative twin anew, and negatives_by "
            f"{values['negatives_by']} has none; set negatives_by=fine_tuning"
        )
    if values.get("negatives_by") in ("corruption", "mismatch"):
        found += [
            f"{path}: negatives_by {values['negatives_by']} makes one of each chosen answer"
            for path in filter(changed, ("negatives", "select.keep"))
        ]
    return found


def _differences(values: dict[str, Any], method: Any, teachers: list[Any]) -> list[str]:
    """Why method delta would not know two teachers who write its pairs."""
    if method != "delta":
        unread = values.get("delta") is not None
        return ["delta: only method delta reads it; leave it out"] if unread else []
    if values.get("delta") is None:
        return ["delta: missing; method delta needs it: {chosen: TEACHER, rejected: TEACHER}"]
    chosen, rejected = (_raw(values, "delta", side, None) for side in ("chosen", "rejected"))
    if chosen is not None and chosen == rejected:
        return [f"delta: chosen and rejected are both {chosen}; name two teachers"]
    return [
        f"delta.{side}: {name!r} is no teacher (those are: {', '.join(map(str, teachers))})"
        for side, name in (("chosen", chosen), ("rejected", rejected))
        if name is not None and name not in teachers
    ]


def _without_peers(values: dict[str, Any], teachers: list[Any]) -> list[str]:
    """Why no other teacher could rank what the student learns."""
    if values.get("positives") == "own":
        why = "peers rank what teachers write, and with positives=own the student learns none of it"
    elif len(teachers) == 1:
        why = f"peers are other teachers, and {teachers[0]} has none"
    else:
        return []
    return [f"select.under: {why}; set select.under=learner"]


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


def untrainable(values: dict[str, Any], *sections: str) -> list[str]:
    """Mistakes between fields that decide how the sections train."""
    problems = []
    loss, smoothing = (
        _raw(values, "dpo", "loss", "sigmoid"),
        _raw(values, "dpo", "label_smoothing", 0),
    )
    if smoothing and loss != "sigmoid":
        problems.append(f"dpo.label_smoothing: {loss} knows none; set it to 0, or dpo.loss=sigmoid")
    if loss == "none" and _raw(values, "dpo", "gamma", DPO().gamma) == 0:
        problems.append("dpo.gamma: with loss none the SFT term is all there is; set it above 0")
    micro = _raw(values, "train", "micro_batch_size", None)
    for section in sections:
        batch = _raw(values, section, "batch_size", Recipe.model_fields[section].default.batch_size)
        if (
            isinstance(micro, int)
            and isinstance(batch, int)
            and 0 < micro < batch
            and batch % micro
        ):
            problems.append(f"train.micro_batch_size: {micro} does not divide {section}'s {batch}")
    return problems


def _misnamed(values: dict[str, Any], agents: dict[str, Any]) -> list[str]:
    """Agents that a judge names and nobody knows; a judge that the data has none of."""
    judges = {"judge": values.get("judge"), "eval.judge": _raw(values, "eval", "judge", None)}
    judges = {path: judge for path, judge in judges.items() if isinstance(judge, dict)}
    named = [(f"{path}.agent", judge.get("agent")) for path, judge in judges.items()]
    for path, judge in judges.items():
        named += [(f"{path}.proposers", name) for name in _items(judge.get("proposers"))]
    for layer in _items(_raw(values, "mixture", "layers", [])):
        named += [("mixture.layers", name) for name in _items(layer)]
    problems = [
        f"{path}: {name!r} is no agent (those are: {', '.join(map(str, agents))})"
        for path, name in dict.fromkeys((path, str(name)) for path, name in named if name)
        if name not in [*agents]
    ]
    problems += [
        f"{path}.agent: kind likelihood needs weights here; give {judge['agent']} a base"
        for path, judge in judges.items()
        if judge.get("kind") == "likelihood"
        and isinstance(who := values["agents"].get(str(judge.get("agent"))), dict)
        and not who.get("base")
    ]
    by, kind = _raw(values, "select", "by", "perplexity"), _raw(values, "judge", "kind", None)
    if by == "judge" and kind is None:
        problems.append("select.by: judge needs a section judge")
    if by == "reward" and kind != "reward":
        problems.append("select.by: reward needs a section judge with kind reward")
    if _raw(values, "data", "source", "") != "world":
        problems += [
            f"{path}.kind: only source world has a gold judge"
            for path, judge in judges.items()
            if judge.get("kind") == "gold"
        ]
    return problems


def _unknown_bases(values: dict[str, Any]) -> list[str]:
    """Bases that the embedded world does not have."""
    named = {f"agents.{name}.base": agent for name, agent in values["agents"].items()}
    problems = []
    for path, section in {**named, "reward.base": values.get("reward")}.items():
        base = section.get("base") if isinstance(section, dict) else None
        try:
            check_world_base(base if isinstance(base, str) else "")
        except ModelError as error:
            problems.append(f"{path}: {error}")
    return problems


def _probe_size(values: dict[str, Any]) -> Any:
    probe = _raw(values, "data", "probe", None)
    return probe.get("count") if isinstance(probe, dict) else None


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _raw(values: dict[str, Any], section: str, key: str, default: Any) -> Any:
    part = values.get(section)
    return part.get(key, default) if isinstance(part, dict) else default
