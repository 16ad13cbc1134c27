"""Is the advice after round 0 right? `python -m benchmarks.advice advice`, after its sweep.

A row of Markdown for each setting of the study's grid, and how often two rules are right: whoever
heeds the advice, and whoever always goes on with mutual positives. A variant is right in a setting
where its student is not significantly below the best one's in the last round (a t-test over seeds,
paired, at .05; no correction, which is in favour of whoever is near the best). The first variant
is read for the advice; the one called -MP is what `own positives` leads to, and its round 0 what
`stop` does. More or cleaner labels are nobody's setting here, so that advice never counts as right.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import polars as pl

from macpo_data import stats
from macpo_data.evaluation import probe
from macpo_data.evaluation.advice import Next, advise
from macpo_run.rounds import Run
from macpo_run.sweep.standings import MADE
from macpo_run.sweep.study import Variant, load_study, variants
from macpo_run.sweep.sweep import Sweep
from macpo_run.terminal.lines import say_aside
from macpo_run.terminal.progress import progress

STOPPED = "round 0"
LEADS_TO = {Next.MUTUAL: "MACPO", Next.OWN: "-MP", Next.STOP: STOPPED}
LEVEL = 0.05
RULES = ("the advice", "always MACPO")


def main() -> None:
    """Read a study that is finished, or finish it, and print the table."""
    study = load_study(sys.argv[1], {})
    sweep = Sweep(study, variants(study), Path("runs"), progress, say_aside, sys.argv[1])
    last = ends(sweep.make().results, sweep.variants[0].name.partition(", ")[0])
    rows, right = [], Counter[str]()
    advised = _advised(sweep)
    for setting, names in advised.items():
        means = last.filter(setting=setting)
        fine = not_below(means)
        right["always MACPO"] += len(names) if "MACPO" in fine else 0
        right["the advice"] += sum(LEADS_TO.get(name) in fine for name in names)
        golds = (f"{name} {mean:.3f}" for name, mean in _means(means).items())
        counts = ", ".join(f"{n} x {name}" for name, n in Counter(names).items())
        rows.append(f"| {setting} | {', '.join(golds)} | {', '.join(fine)} | {counts} |")
    head = ("| setting | last round | right | advised |", "| --- | --- | --- | --- |")
    print(*head, *rows, sep="\n")
    total = sum(map(len, advised.values()))
    print("", *(f"{rule}: right in {right[rule]} of {total}" for rule in RULES), sep="\n")


def ends(results: pl.DataFrame, first: str) -> pl.DataFrame:
    """The student's gold in each variant's last round, and in the first variant's round 0.

    Returns:
        Columns setting, variant, seed, mean.

    >>> facts = {"agent": "student", "behavior": "positive", "measure": "gold", "seed": 7}
    >>> golds = [("MACPO, easy", 0, 0.5), ("MACPO, easy", 2, 0.9), ("-MP, easy", 0, 0.5)]
    >>> rows = [facts | {"variant": v, "round": n, "mean": mean} for v, n, mean in golds]
    >>> ends(pl.DataFrame(rows), "MACPO").select("variant", "mean").rows()
    [('MACPO', 0.9), ('-MP', 0.5), ('round 0', 0.5)]
    """
    name = pl.col("variant").str.splitn(", ", 2)
    rows = results.filter(MADE, agent="student", measure="gold").sort("round", maintain_order=True)
    rows = rows.with_columns(name.struct[0].alias("variant"), name.struct[1].alias("setting"))
    start = rows.filter(variant=first, round=0).with_columns(pl.lit(STOPPED).alias("variant"))
    keys = ["setting", "variant", "seed"]
    last = rows.group_by(keys, maintain_order=True).agg(pl.col("mean").last())
    return pl.concat([last, start.select(last.columns)])


def not_below(means: pl.DataFrame) -> list[str]:
    """The variants of one setting that are not significantly below its best one.

    >>> seeds = {"setting": "", "seed": [0, 1, 2]}
    >>> level, low = [0.9, 0.8, 0.7], [0.2, 0.1, 0.05]
    >>> both = [pl.DataFrame(seeds | {"variant": v, "mean": m}) for v, m in zip("ab", (level, low))]
    >>> not_below(pl.concat(both))
    ['a']
    """
    best = next(iter(_means(means)))
    table = means.pivot("variant", index="seed", values="mean")
    fine = []
    for name in _means(means):
        behind = (table[name] - table[best]).drop_nulls().to_numpy()
        p = stats.paired_p(behind)
        if name == best or p is None or p >= LEVEL:
            fine.append(name)
    return fine


def _means(means: pl.DataFrame) -> dict[str, float]:
    """The mean of each variant, the best one first."""
    rows = means.group_by("variant", maintain_order=True).agg(pl.col("mean").mean())
    return dict(rows.sort("mean", descending=True, maintain_order=True).iter_rows())


def _advised(sweep: Sweep) -> dict[str, list[Next]]:
    """What each seed of each setting was advised after round 0."""
    advised: dict[str, list[Next]] = {}
    first = sweep.variants[0].name.partition(", ")[0]
    for variant, run in zip(sweep.variants, sweep.runs, strict=True):
        name, _, setting = variant.name.partition(", ")
        if name == first:
            advised.setdefault(setting, []).append(_advice(variant, run))
    return advised


def _advice(variant: Variant, run: Run) -> Next:
    advice = advise(run.plan, probe.readings(run.plan, run.store))
    assert advice is not None, f"{variant.name}: nobody read a probe"
    return advice.next


if __name__ == "__main__":
    main()
