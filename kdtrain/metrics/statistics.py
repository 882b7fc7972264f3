"""Statistics of a comparison: intervals over seeds, and tests of two networks on one test set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
import numpy.typing as npt
import scipy.stats

from kdtrain.metrics.names import CONFIDENCE, Interval

POWER = 0.8
MOST_SEEDS = 1000
"""Upper limit of the power calculation."""


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Returns the mean of ``values`` with Student's t interval, ``n - 1`` degrees of freedom.

    The interval is ``mean ± t * sd / sqrt(n)``, with the sample's standard deviation (Student 1908,
    "The probable error of a mean"). For a paired comparison, pass the differences.

    Args:
        values: n values of any unit.
        confidence: probability that such intervals contain the true mean, between 0 and 1.

    Raises:
        ValueError: no values, a value that is not finite, or a confidence outside 0..1.
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"an interval needs one or more finite values, got {numbers}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    # The standard library's mean and stdev are exact: equal values have an sd of exactly 0.
    n, centre = len(numbers), mean(numbers)
    if n == 1:
        return Interval(centre, None, None, None, 1)
    sd = stdev(numbers)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(centre, sd, centre - half, centre + half, n)


def distinguishable(interval: Interval) -> bool:
    """Returns whether the interval excludes zero.

    Equal values give an interval of zero width, which does not prove precision: on a small test set, gains
    are a few whole errors and often coincide. Such an interval counts as not distinguishable.
    """
    if interval.low is None or interval.high is None or interval.sd == 0:
        return False
    return not interval.low <= 0 <= interval.high


def proportion_interval(count: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns Wilson's interval of a proportion, such as an accuracy, with the choice of images as chance.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        count: number of images of the kind, 0 to ``total``.
        total: number of all images, at least 1.
        confidence: probability that such intervals contain the true proportion, between 0 and 1.

    Returns:
        The lower and the upper end, fractions.
    """
    interval = scipy.stats.binomtest(count, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class McNemar:
    """McNemar's test: numbers of images that only one of two networks gets right, and the p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_correct: npt.NDArray[np.bool_], second_correct: npt.NDArray[np.bool_]) -> McNemar:
    """Returns McNemar's exact two-sided test for two networks on the same images.

    Under the null hypothesis, either network is the correct one on half of the images on which exactly one
    is correct (McNemar 1947). The test compares two networks, not the recipes that trained them.

    Args:
        first_correct: (images,) bool, whether the first network is right.
        second_correct: (images,) bool, whether the second network is right.

    Raises:
        ValueError: the two shapes differ.
    """
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"the networks were tested on different images: {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return McNemar(0, 0, 1.0)
    test = scipy.stats.binomtest(only_first, only_first + only_second, 0.5)
    return McNemar(only_first, only_second, float(test.pvalue))


def paired_proportions_interval(
    only_first: int, only_second: int, images: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Returns the interval of the difference of two networks' accuracies on the same images.

    Bonett and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based
    on Paired Data" (2012): Wald's interval after adding one image to either kind of disagreement, which
    keeps the nominal coverage where networks hardly differ. As in McNemar's test, the random variable is
    the choice of the test images, not the networks.

    Args:
        only_first: images that only the first network classifies correctly.
        only_second: images that only the second network classifies correctly.
        images: all test images.
        confidence: probability that such intervals contain the true difference, between 0 and 1.

    Returns:
        Both ends of the first's accuracy minus the second's, each -1..1.

    Raises:
        ValueError: a count is negative, or there are more disagreements than images.
    """
    if min(only_first, only_second) < 0 or not 0 < images >= only_first + only_second:
        raise ValueError(f"impossible counts: {only_first} and {only_second} of {images} images")
    first, second = (only_first + 1) / (images + 2), (only_second + 1) / (images + 2)
    error = math.sqrt((first + second - (first - second) ** 2) / (images + 2))
    half = float(scipy.stats.norm.ppf((1 + confidence) / 2)) * error
    return max(-1.0, first - second - half), min(1.0, first - second + half)


def seeds_needed(mean: float, sd: float, power: float = POWER, most: int = MOST_SEEDS) -> int | None:
    """Returns the number of seeds with which a paired t-test finds a mean difference; None above ``most``.

    The power of the two-sided test over n pairs is that of the noncentral t distribution with n - 1
    degrees of freedom and noncentrality ``mean / sd * sqrt(n)`` (Cohen 1988, "Statistical Power
    Analysis for the Behavioral Sciences", section 2.3). ``mean`` and ``sd`` are taken as exact; estimated
    from few seeds, they make the result a rough estimate.

    Args:
        mean: mean difference.
        sd: standard deviation of the differences, in the same unit.
        power: probability of finding the difference, between 0 and 1.
        most: the largest number of seeds considered.

    Raises:
        ValueError: the spread is not above 0.
    """
    if not sd > 0:
        raise ValueError(f"the standard deviation must be above 0, got {sd}")
    numbers = np.arange(2, most + 1)
    critical = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, numbers - 1)
    shift = np.minimum(abs(mean) / sd * np.sqrt(numbers), 30)  # beyond, power is 1 and hard to compute
    t = scipy.stats.nct(numbers - 1, shift)
    enough = numbers[t.sf(critical) + t.cdf(-critical) >= power]
    return int(enough[0]) if len(enough) else None
