"""Statistics over seeds: intervals, tests of a difference, and the smallest effect they can see."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev, variance

from scipy.optimize import brentq
from scipy.stats import nct, t, ttest_ind, ttest_rel

SIGNIFICANCE = 0.05  # p below which a difference counts
POWER = 0.8  # chance with which an effect of the detectable size is seen
LEVEL = 0.95  # of intervals
_ROUNDING = 1e-9  # values that differ by less are equal


@dataclass(frozen=True)
class Difference:
    """The difference of two means, and a test against no difference.

    Attributes:
        value: the difference.
        error: its standard error; None with too few values, or values without any spread.
        df: degrees of freedom of `error`.
        p: two-sided p value.
    """

    value: float
    error: float | None = None
    df: float | None = None
    p: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the difference."""
        return None if self.error is None else _interval(self.value, self.error, self.df)

    def detectable(self, comparisons: int = 1) -> float | None:
        """The smallest true difference that a run with this spread sees with `POWER`.

        Args:
            comparisons: number of comparisons that Holm's correction is for. It is the bound of the
                smallest p value, so the others see as much or more.
        """
        if self.error is None:
            return None
        return detectable_difference(self.error, self.df, SIGNIFICANCE / comparisons)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    return _interval(mean(values), stdev(values) / len(values) ** 0.5, len(values) - 1)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of a - b, where a[i] and b[i] are of the same seed, with the paired t-test."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    value = mean(differences)
    if max(differences) - min(differences) < _ROUNDING:
        return Difference(value)
    test = ttest_rel(a, b)
    error = stdev(differences) / len(differences) ** 0.5
    return Difference(value, error, float(test.df), float(test.pvalue))


def welch_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of a minus mean of b, with Welch's t-test: unpaired, of unequal variances."""
    value = mean(a) - mean(b)
    if min(len(a), len(b)) < 2 or max(max(a) - min(a), max(b) - min(b)) < _ROUNDING:
        return Difference(value)
    test = ttest_ind(a, b, equal_var=False)
    error = (variance(a) / len(a) + variance(b) / len(b)) ** 0.5
    return Difference(value, error, float(test.df), float(test.pvalue))


TESTS = dict(paired=paired_difference, welch=welch_difference)
TEST_NAMES = dict(paired='paired t-test', welch="Welch's t-test")


def detectable_difference(
    error: float, df: float, significance: float = SIGNIFICANCE, power: float = POWER
) -> float:
    """The true difference that a two-sided t-test sees, with its sign, with probability `power`.

    The t statistic has the noncentral t distribution whose noncentrality is the true difference
    over its standard error (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988).

    Args:
        error: standard error of the difference.
        df: its degrees of freedom.
        significance: p below which the test is significant.
        power: the probability, above `significance`.
    """
    critical = t.isf(significance / 2, df)

    def lack(noncentrality: float) -> float:
        return power - nct.sf(critical, df, noncentrality)

    upper = 1.0
    while lack(upper) > 0:
        upper *= 2
    return error * brentq(lack, 0, upper, xtol=1e-6)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected by Holm's method for their number, in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):  # the k-th smallest of n p values times n - k + 1
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def _interval(value: float, error: float, df: float) -> tuple[float, float]:
    half = float(t.isf((1 - LEVEL) / 2, df)) * error
    return value - half, value + half
