"""Statistics of evaluations: bootstrap intervals, length-controlled win rates, agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

# numpy and scipy are imported where something is computed, so that `macpo status` stays quick.
if TYPE_CHECKING:
    import numpy as np

    Values = np.ndarray[Any, np.dtype[np.float64]]

LEVEL = 0.95
RESAMPLES = 2000
REFITS = 500  # resamples where each is a regression
RIDGE = 0.05  # pull on the weight of the length, which separable judgements would send to infinity


class Estimate(NamedTuple):
    """A value with its 95 % interval; all three are nan where there is nothing to estimate from."""

    mean: float
    low: float
    high: float


def mean(values: Values) -> Estimate:
    """The mean of independent values, with a bootstrap interval over them (percentiles)."""
    import numpy as np

    return _bootstrap((values,), np.mean, vectorized=True)


def between(values: Values) -> Estimate:
    """The mean of runs that differ by their seed, with Student's t-interval between them."""
    import numpy as np
    from scipy import stats

    if len(values) < 2:
        return Estimate(float(values[0]) if len(values) else np.nan, np.nan, np.nan)
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def paired_p(differences: Values) -> float | None:
    """Two-sided p of the paired t-test that the differences of runs have mean 0.

    None of fewer than two runs, or where they do not vary: then there is no test.

    Args:
        differences: (n,) one for each run, such as the mean over its prompts.
    """
    import numpy as np
    from scipy import stats

    if len(differences) < 2 or np.allclose(differences, differences[0], rtol=0, atol=1e-12):
        return None
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm (1979), in the same order.

    Each is at or below a level where Holm's step-down procedure rejects at that level, so that the
    chance of any false rejection is at most the level, however the tests depend on each other.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]
    """
    import numpy as np

    order = np.argsort(p_values)
    scaled = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]


def length_controlled(wins: Values, longer: Values) -> Estimate:
    """A win rate as it would be were both sides equally long (Dubois et al. 2024, AlpacaEval 2).

    A logistic regression of the wins on tanh of the length difference, in its standard deviations,
    read off at no difference. The original also fits the difficulty of each instruction, which is
    known for AlpacaEval's alone, adds judgements of deliberately long and short answers, and takes
    its penalty (L1) by cross-validation. Here a ridge holds the weight of the length, and half a
    win and half a loss without a length difference are added, so that a model that always wins has
    a finite estimate.

    Args:
        wins: (n,) of a policy against the baseline: 1, 0, or in between.
        longer: (n,) characters by which the policy's answer is the longer one.
    """
    return _bootstrap((wins, longer), _at_equal_length, vectorized=False)


class Sides(NamedTuple):
    """Scores by prompt of one run: the student's, the floor's and the ceiling's, (n,) each."""

    student: Values
    floor: Values
    ceiling: Values


class Recovered(NamedTuple):
    """How much of the gap between floor and ceiling was recovered."""

    share: Estimate | None  # None: not defined, since the gap is not clearly above 0
    gap: Estimate  # ceiling - floor


def gap_recovered(runs: Sequence[Sides]) -> Recovered:
    """(student - floor) / (ceiling - floor), the performance gap recovered (Burns et al. 2023).

    Of several runs the ratio is that of the differences pooled, each run counting alike. Intervals
    are bootstrap percentiles: runs are resampled, and the prompts of each, with what all three
    scored on a prompt kept together. Where the interval of the gap meets 0, or is below it, there
    is nothing to recover, and the ratio is not defined.

    Args:
        runs: one for each seed.
    """
    import numpy as np

    if not runs or not all(len(run.student) for run in runs):
        return Recovered(None, Estimate(np.nan, np.nan, np.nan))
    pairs = [np.stack([run.student - run.floor, run.ceiling - run.floor]) for run in runs]
    gained, gap = np.mean([pair.mean(axis=1) for pair in pairs], axis=0)
    if len(pairs) == 1 and len(runs[0].student) == 1:
        return Recovered(None, Estimate(float(gap), np.nan, np.nan))
    rng = np.random.default_rng(0)

    def resampled(pair: Values) -> Values:
        count = pair.shape[1]
        return np.asarray(pair[:, rng.integers(count, size=count)].mean(axis=1))

    means = np.array([
        np.mean([resampled(pairs[n]) for n in rng.integers(len(pairs), size=len(pairs))], axis=0)
        for _ in range(RESAMPLES)
    ])  # fmt: skip
    wide = _percentiles(float(gap), means[:, 1])
    if not wide.low > 0:
        return Recovered(None, wide)
    ratios = means[means[:, 1] != 0]
    return Recovered(_percentiles(float(gained / gap), ratios[:, 0] / ratios[:, 1]), wide)


def _percentiles(value: float, resampled: Values) -> Estimate:
    import numpy as np

    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def voters(votes: Values) -> tuple[Values, Values]:
    """How often each of several fallible voters is right, when nobody knows the truth.

    Expectation maximisation for voters of one accuracy each whose errors are independent (Dawid and
    Skene 1979, with two equal classes): who agrees with those who agree with others is trusted.
    Voters are taken to be right more often than not.

    Args:
        votes: (..., V, N) of V voters on N questions, 0 or 1; leading axes are problems apart.

    Returns:
        The (..., V) accuracies, and the (..., N) probabilities that 1 is the right answer.
    """
    import numpy as np

    right = np.full(votes.shape[:-1], 0.7)
    truth = votes.mean(axis=-2)
    for _ in range(100):
        weight = np.log(right / (1 - right))[..., None]
        truth = 1 / (1 + np.exp(-((2 * votes - 1) * weight).sum(axis=-2)))
        agreed = votes * truth[..., None, :] + (1 - votes) * (1 - truth[..., None, :])
        # Nobody is trusted without end on so few questions.
        right = agreed.mean(axis=-1).clip(0.02, 0.98)
    return right, truth


def agreement(verdicts: Sequence[Sequence[float | None]]) -> float | None:
    """Krippendorff's alpha of several annotators, for verdicts without an order among them.

    1 is full agreement, 0 that of chance. None where no row has two verdicts, or all are the same.

    Args:
        verdicts: for each annotator one verdict per row; None where there is none.
    """
    rows = [[v for v in row if v is not None] for row in zip(*verdicts, strict=True)]
    rows = [row for row in rows if len(row) > 1]
    counts = Counter(verdict for row in rows for verdict in row)
    total = sum(counts.values())
    expected = total**2 - sum(count**2 for count in counts.values())
    if not expected:
        return None
    apart = sum(
        (len(row) ** 2 - sum(n * n for n in Counter(row).values())) / (len(row) - 1) for row in rows
    )
    return 1 - (total - 1) * apart / expected


def _bootstrap(
    data: tuple[Values, ...], statistic: Callable[..., Any], vectorized: bool
) -> Estimate:
    import numpy as np
    from scipy import stats

    if not len(data[0]):
        return Estimate(np.nan, np.nan, np.nan)
    value = float(statistic(*data))
    if len(data[0]) == 1:
        return Estimate(value, np.nan, np.nan)
    interval = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=vectorized,
        n_resamples=RESAMPLES if vectorized else REFITS,
        batch=100,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def _at_equal_length(wins: Values, longer: Values) -> float:
    """The regression's prediction at no length difference."""
    import numpy as np
    from scipy import optimize

    spread = longer.std()
    bias = np.tanh(longer / spread) if spread > 0 else np.zeros_like(wins)
    features = np.column_stack([np.ones(len(wins) + 1), np.append(bias, 0.0)])
    target = np.append(wins, 0.5)
    penalty = np.array([0.0, RIDGE])

    def gradient(weights: Values) -> Values:
        missed = 1 / (1 + np.exp(-(features @ weights))) - target
        return np.asarray(features.T @ missed + penalty * weights)

    def hessian(weights: Values) -> Values:
        p = 1 / (1 + np.exp(-(features @ weights)))
        return np.asarray((features * (p * (1 - p))[:, None]).T @ features + np.diag(penalty))

    # The loss is convex, so that its least is where the gradient is zero.
    fitted = optimize.root(gradient, np.zeros(2), jac=hessian)
    return float(1 / (1 + np.exp(-fitted.x[0])))


def evenly(values: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly spread from the first to the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(n * (len(values) - 1) / (most - 1))] for n in range(most)]
