"""The rules of all signs of failure: names, thresholds, messages, and how a value is checked.

Whoever makes a result keeps its signs in the manifest, crossed or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypedDict

ENOUGH = 20  # steps after which it should have learned something


class Sign(TypedDict):
    """A number and the line beyond which it is a sign of failure."""

    value: float
    before: float | None  # what it is compared with, where it is
    line: float | None  # None: there is nothing to compare with yet
    crossed: bool


Signs = dict[str, Sign]


class Rule(NamedTuple):
    """The thresholds of a sign, and its message."""

    label: str
    problem: str  # what is wrong
    mend: str  # what to try
    low: float | None = None  # crossed below it
    high: float | None = None  # crossed above it
    of: Literal["itself", "times", "plus"] = "itself"  # times, or plus, what was before
    only_with: str = ""  # crossed only where that sign of the same result is as well


ALIKE = (
    "chosen and rejected are nearly alike",
    "train the negative twin longer (negative.epochs), or raise sampling.temperature",
)
EASY = (
    "the pairs are too easy to teach much: the learner knows the chosen ones by their tone",
    "make the rejected answers harder: negatives_by=mismatch, or fewer negative.epochs",
)
SHRUNK = (
    "more of the answers are very short",
    "read the answers (macpo show), or bound them with select.min_chars",
)
REPEATED = (
    "the answers grow more alike",
    "raise sampling.temperature, or lower dpo.learning_rate",
)
DRIFTED = (
    "the lengths drift away from the first round's",
    "read the answers (macpo show), or bound them with select.max_chars",
)
WORSE = (
    "the held-out answers get worse",
    "go on from an earlier round with a lower dpo.learning_rate or a higher dpo.beta",
)
RULES = {
    # Medians of hundreds of pairs; in the embedded world that works they fall by a fiftieth.
    "perplexity": Rule(
        "perplexity",
        "the learner finds what it is to learn odder than before",
        "lower dpo.learning_rate, or bound it with select.max_perplexity",
        high=1.1,
        of="times",
    ),
    # Nats per token at the median. Below 0 the learner finds the rejected ones likelier: so it
    # begins where its labels are bad, and passes 0 as it learns. No line: see the next two.
    "gap": Rule("perplexity gap", *ALIKE),
    # Its size in each pair, at the median: 0.11 and more in the world's rounds on the calibration
    # seeds, whatever the sign. 0.02 where the negatives are as good.
    "apart": Rule("perplexities apart", *ALIKE, low=0.05),
    # What of the gap is below 0. Contrasts should raise it: crossed where it falls instead, by as
    # much as the least gap in the world.
    "reversed": Rule(
        "nats per token",
        "the learner finds the rejected answers ever likelier than the chosen ones",
        "read the pairs (macpo show): are the rejected ones better? Or lower dpo.learning_rate",
        low=-0.1,
        of="plus",
    ),
    # Either alone is no sign. In the first world, whose negatives have a tone of their own from the
    # first word on, 0.983 and 0; in the third, where all share openers, 0.55 to 0.79 and a quarter;
    # in the authors' released pairs 6 of 14 share the first word.
    "ranked": Rule("share ranked right before training", *EASY, high=0.95, only_with="first_word"),
    "first_word": Rule("with the same first word", *EASY, low=0.05, only_with="ranked"),
    # Both sides of people's pairs share 0.09 (HH-RLHF) to 0.20 (UltraFeedback) of their words.
    "overlap": Rule("shared words", *ALIKE, high=0.5),
    # Half as long again: the love of length that DPO is known for; or the reverse, a collapse.
    "chars": Rule("characters", *DRIFTED, low=1 / 1.5, high=1.5, of="times"),
    "chosen_chars": Rule("of chosen", *DRIFTED, low=1 / 1.5, high=1.5, of="times"),
    "rejected_chars": Rule("of rejected", *DRIFTED, low=1 / 1.5, high=1.5, of="times"),
    # Two samples of people's answers differ by a twentieth.
    "distinct_1": Rule("distinct-1", *REPEATED, low=0.8, of="times"),
    "distinct_2": Rule("distinct-2", *REPEATED, low=0.8, of="times"),
    "distinct_3": Rule("distinct-3", *REPEATED, low=0.8, of="times"),
    # Likewise by 3 points; theirs are 13 to 26 of 100, those of the world's few forms 50 to 70.
    "self_bleu": Rule("self-BLEU", *REPEATED, high=10.0, of="plus"),
    # People's answers hold no loops, and the world's none either.
    "loops": Rule(
        "share of loops",
        "candidates repeat themselves",
        "filter them with select.max_repetition, or lower dpo.learning_rate",
        high=0.05,
    ),
    # Cut answers have no end to learn from; some are always there.
    "cut": Rule(
        "share",
        "the token limit cuts answers",
        "raise sampling.max_new_tokens, or a mixture's mixture.sampling.max_new_tokens",
        high=0.2,
    ),
    # Without an end a perplexity is lower, so that cut answers are chosen where no filter drops
    # them: half the candidates' line, for here they are learned from.
    "chosen_cut": Rule(
        "share of chosen",
        "answers without an end are learned from",
        "drop them with select.truncated=true and select.on_filter=drop",
        high=0.1,
    ),
    # Answers of the world have some 16 words, and those of its fall 3 to 8, or 2. People give short
    # answers to some prompts: so against what was before, and as far as one answer in ten.
    "chosen_short": Rule("share of chosen", *SHRUNK, high=0.1, of="plus"),
    "short": Rule("share", *SHRUNK, high=0.1, of="plus"),
    # What several teachers are for is then lost.
    "one_sided": Rule(
        "share",
        "one agent wrote nearly all of chosen",
        "see what is wrong with the others' answers, or save their time",
        high=0.9,
    ),
    # Against the first step's: in the world .5 to 1.15 times it, and its steps differ by a sixth.
    "loss": Rule(
        "loss",
        "what it is trained on becomes less likely than at the start",
        "lower the learning rate",
        high=1.5,
        of="times",
    ),
    # Nats since round 0. In trainings that worked chosen rose by up to 0.5 and rejected fell by up
    # to 9; the collapse that was seen went to -53, and these lines would have told in time.
    "chosen_shift": Rule(
        "nats",
        "the chosen responses become less likely",
        "raise dpo.gamma or lower the learning rate",
        low=-1.5,
    ),
    "rejected_shift": Rule(
        "nats",
        "the rejected responses collapse",
        "raise dpo.beta or lower the learning rate",
        low=-15.0,
    ),
    # Where the DPO loss has vanished: exp(-10).
    "reward_margin": Rule(
        "reward margin",
        "the pairs are told apart entirely and teach nothing more",
        "lower the learning rate or the epochs",
        high=10.0,
    ),
    # What a policy reaches that learned nothing, or nearly.
    "accuracy": Rule(
        "accuracy",
        f"after {ENOUGH} steps and more the pairs are told apart as if by chance",
        "raise the learning rate, or see whether chosen and rejected differ (macpo show)",
        low=0.55,
    ),
    # Lines of these four are where the 95 % interval of the change, prompt by prompt, meets 0.
    "gold": Rule("gold", *WORSE),
    "reward": Rule("reward", *WORSE),
    "win": Rule("win rate", *WORSE),
    "plateau": Rule(
        "the best one's gain",
        "no teacher clearly improves",
        "end here, or give them more prompts (data.d2.count)",
    ),
}


def sign(name: str, value: float, before: float | None = None, steps: int = 1) -> Sign:
    """Hold a value against its lines.

    Args:
        name: of RULES.
        value: of now.
        before: what it is compared with; None where there is nothing.
        steps: how often a line may be gone along since then.
    """
    rule = RULES[name]
    low, high = (_line(bound, rule.of, before, steps) for bound in (rule.low, rule.high))
    below = low is not None and value < low
    above = high is not None and value > high
    line = low if below or high is None else high
    return as_sign(value, before, line, below or above)


def _line(bound: float | None, of: str, before: float | None, steps: int) -> float | None:
    if bound is None or of == "itself":
        return bound
    if before is None:
        return None
    return before * bound**steps if of == "times" else before + bound * steps


def as_sign(value: float, before: float | None, line: float | None, crossed: bool) -> Sign:
    """A sign whose line is known, its numbers cut to five digits."""

    def short(number: float) -> float:
        return float(f"{number:.5g}")

    before, line = (None if x is None else short(x) for x in (before, line))
    return Sign(value=short(value), before=before, line=line, crossed=crossed)


def sentences(signs: Mapping[str, Sign]) -> list[str]:
    """What the crossed ones say: a sentence for all that mean the same, ending in what to try."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name, entry in signs.items():
        if entry["crossed"] and name in RULES:  # another version's manifest may hold others
            rule, before = RULES[name], entry["before"]
            beside = "" if before is None else f"{before:.3g} before, "
            numbers = lines.setdefault((rule.problem, rule.mend), [])
            numbers.append(f"{rule.label} {entry['value']:.3g} ({beside}line {entry['line']:.3g})")
    return [
        f"{problem}: {', '.join(numbers)}; {mend}" for (problem, mend), numbers in lines.items()
    ]


def flags(manifest: Mapping[str, Any]) -> list[str]:
    """What the signs of a result say; of a training by an earlier version, its warnings."""
    if "signs" not in manifest:
        return list(manifest.get("warnings", []))
    if manifest["kind"] == "eval":
        by_policy = manifest["signs"].items()
        return [f"{who}: {line}" for who, signs in by_policy for line in sentences(signs)]
    return sentences(manifest["signs"])


def beside(
    values: Mapping[str, float | None], before: Mapping[str, Sign], first: Mapping[str, Sign]
) -> Signs:
    """What there is of some values, each beside its own before."""
    each = {n: _held(n, v, before.get(n), first.get(n)) for n, v in values.items() if v is not None}
    alone = [n for n, s in each.items() if s["crossed"] and not _borne_out(n, each)]
    return each | {n: {**each[n], "crossed": False} for n in alone}


def _borne_out(name: str, signs: Mapping[str, Sign]) -> bool:
    """Whether the sign without which this one means nothing is crossed as well."""
    other = RULES[name].only_with
    return not other or (other in signs and signs[other]["crossed"])


def _held(name: str, value: float, before: Sign | None, first: Sign | None) -> Sign:
    """Lengths against the first round's, all else against the round before.

    A slow decline crosses no line from one round to the next: so against the first one as well,
    where the line is twice as far.
    """
    if name.endswith("chars"):
        before = first
    against_before = sign(name, value, before and before["value"])
    if against_before["crossed"] or first is None:
        return against_before
    since = sign(name, value, first["value"], steps=2)
    return since if since["crossed"] else against_before
