"""Validation rules that involve several fields of a recipe.

A rule is a function from a draft, the raw values of a recipe, to what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from macpo_data import prompts
from macpo_data.bases.named import check_base
from macpo_data.errors import ModelError, did_you_mean
from macpo_data.methods.registry import methods, names
from macpo_data.recipe.agents import RENDERED
from macpo_data.recipe.draft import Draft, items
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.training import DPO


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
    if len(draft.students) != 1:
        yield f"agents: {len(draft.students)} agents with role student, 1 is needed"
    labeller = draft.values.get("labeller")
    if labeller is not None and labeller not in draft.teachers:
        yield draft.no_teacher("labeller", labeller)


def _agents(draft: Draft) -> Iterator[str]:
    for name, agent in draft.agents.items():
        if agent.get("chat_template") == RENDERED:
            yield (
                f"agents.{name}.chat_template: none is for `train --dataset`, whose data may be "
                "rendered already; name a template"
            )
        if agent.get("noise") is not None and name not in draft.teachers:
            yield f"agents.{name}.noise: only a teacher learns from human pairs; leave it out"
        is_trained = name in (*draft.teachers, *draft.students)
        if is_trained and agent.get("endpoint") and not agent.get("base"):
            yield f"agents.{name}: it is trained, so it needs a base of its own"


def _bases(draft: Draft) -> Iterator[str]:
    """Names that can mean no base."""
    bases = {f"agents.{name}.base": agent.get("base") for name, agent in draft.agents.items()}
    for path, base in {**bases, "reward.base": draft.read("reward", "base")}.items():
        try:
            check_base(base if isinstance(base, str) else "")
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
            meant = did_you_mean(name, map(str, draft.agents))
            yield f"{path}: {name!r} is no agent{meant} (those are: {agents})"


# ------------------------------------------------------------------------- what a method needs


def _of_method(draft: Draft) -> Iterator[str]:
    """What the method itself has to say."""
    if draft.method not in names():
        meant = did_you_mean(draft.method, names())
        yield f"method: input should be one of {', '.join(names())}{meant}"
        return
    method = methods()[draft.method]
    if method.teachers and not draft.teachers:
        yield "agents: no agent with role teacher"
    for section in method.needs:
        if not draft.values.get(section):
            yield f"{section}: missing; method {method.name} needs it"
    if method.compares and draft.read("sampling", "n", 1) == 1:
        yield f"sampling.n: method {method.name} compares answers of the student: 2 or more"
    for path in filter(draft.changed, method.unread):
        yield f"{path}: method {method.name} does not read it; leave it out"
    yield from method.rules(draft)


def _of_other_methods(draft: Draft) -> Iterator[str]:
    """A setting that changes nothing is one that nobody should believe in."""
    for method in methods().values():
        if method.name != draft.method:
            for path in filter(draft.changed, method.own):
                yield f"{path}: only method {method.name} reads it; leave it out"


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


def _judges(draft: Draft) -> Iterator[str]:
    in_world = draft.read("data", "source", "") == "world"
    for path, judge in draft.judges.items():
        if judge.get("kind") == "gold" and not in_world:
            yield f"{path}.kind: only source world has a gold judge"
        agent = draft.agents.get(str(judge.get("agent")))
        if judge.get("kind") == "likelihood" and agent is not None and not agent.get("base"):
            yield f"{path}.agent: kind likelihood needs weights here; give {judge['agent']} a base"


def _right_answers(draft: Draft) -> Iterator[str]:
    by, column = draft.read("eval", "by"), draft.read("data", "right")
    if by == "answer" and not column:
        yield "eval.by: answer needs data.right, the column of the right answers (source pairs)"
    if column and by != "answer":
        yield "data.right: only read by eval.by=answer; set it, or leave this out"


# ------------------------------------------------------------------------- training


def untrainable(values: dict[str, Any], *sections: str) -> list[str]:
    """Mistakes between fields that decide how the sections train."""
    draft = Draft(values)
    return [*_losses(draft), *_weights(draft), *_batches(draft, sections)]


def _losses(draft: Draft) -> Iterator[str]:
    loss, smoothing = draft.read("dpo", "loss", "sigmoid"), draft.read("dpo", "label_smoothing", 0)
    if smoothing and loss != "sigmoid":
        yield f"dpo.label_smoothing: {loss} knows none; set it to 0, or dpo.loss=sigmoid"
    if loss == "none" and draft.read("dpo", "gamma", DPO().gamma) == 0:
        yield "dpo.gamma: with loss none the SFT term is all there is; set it above 0"


def _weights(draft: Draft) -> Iterator[str]:
    """Four bits are for a base that is not trained itself."""
    written = {"train.finetuning": draft.read("train", "finetuning")}
    written |= {
        f"agents.{name}.finetuning": a.get("finetuning") for name, a in draft.agents.items()
    }
    full = [path for path, value in written.items() if value == "full"]
    for name, agent in draft.agents.items():
        own = agent.get("finetuning") or draft.read("train", "finetuning")
        endpoint = agent.get("endpoint")
        if own == "full" and isinstance(endpoint, dict) and endpoint.get("adapters") == "load":
            yield (
                f"agents.{name}.endpoint.adapters: a server loads adapters, and finetuning=full "
                "makes a whole model; set adapters to local"
            )
    if full and draft.read("train", "quantization", "none") != "none":
        yield (
            f"train.quantization: nf4 keeps a base in four bits beside its adapter, and {full[0]}="
            "full trains the base itself; set quantization to none, or finetuning to lora"
        )


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
    _roles, _agents, _bases, _names,
    _of_method, _of_other_methods,
    _stop, _selection, _judges, _right_answers,
    _training,
)  # fmt: skip


# ------------------------------------------------------------------------- no mistakes


def departures(recipe: Recipe) -> list[str]:
    """Settings that make a recipe's method another than its paper's. No mistakes: may be meant."""
    paper = methods()[recipe.method].paper
    return [
        f"{path}={now} where its paper has {theirs}"
        for path, theirs in paper.items()
        if (now := recipe.read(path)) != theirs
    ]
