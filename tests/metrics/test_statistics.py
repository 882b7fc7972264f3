"""Intervals and tests against textbook tables and plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kdtrain.metrics.names import Interval
from kdtrain.metrics.statistics import (
    distinguishable,
    mcnemar,
    paired_proportions_interval,
    seeds_needed,
    t_interval,
)
from kdtrain.report.verdict import bounds_text, gain_text, interval_text, p_value_text

# Student's t, two-sided 95 %, by degrees of freedom: from printed tables.
T_95 = {1: 12.7062047, 2: 4.30265273, 3: 3.18244631, 4: 2.77644511, 9: 2.26215716, 15: 2.13144955}

values_of_a_table_size = st.sampled_from(sorted(T_95)).flatmap(
    lambda df: st.lists(st.floats(-100, 100), min_size=df + 1, max_size=df + 1)
)


@given(values_of_a_table_size)
def test_interval_is_mean_plus_minus_t_times_standard_error(values: list[float]) -> None:
    array = np.array(values, dtype=np.float64)
    mean = array.sum() / len(array)
    sd = np.sqrt(((array - mean) ** 2).sum() / (len(array) - 1))
    half = T_95[len(array) - 1] * sd / np.sqrt(len(array))
    interval = t_interval(values)
    expected = [mean, sd, mean - half, mean + half]
    assert [interval.mean, interval.sd, interval.low, interval.high] == pytest.approx(
        expected, rel=1e-6, abs=1e-5
    )
    assert interval.n == len(values)


def test_confidence_is_two_sided() -> None:
    # With one degree of freedom Student's t is Cauchy's distribution: its 50 % quantiles are -1 and 1.
    interval = t_interval([0.0, 2.0], confidence=0.5)
    assert (interval.low, interval.high) == pytest.approx((0.0, 2.0), abs=1e-9)


def test_one_value_has_no_spread() -> None:
    assert t_interval([3.5]) == Interval(3.5, None, None, None, 1)


@given(st.floats(-1e6, 1e6), st.integers(2, 20))
def test_equal_values_have_a_spread_of_exactly_zero(value: float, n: int) -> None:
    assert t_interval([value] * n) == Interval(value, 0.0, value, value, n)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_that_have_no_interval_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        t_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_must_be_a_fraction(confidence: float) -> None:
    with pytest.raises(ValueError, match=str(confidence)):
        t_interval([1.0, 2.0], confidence)


@pytest.mark.parametrize(
    ("low", "high", "sd", "expected"),
    [
        (0.1, 0.3, 0.1, True),
        (-0.3, -0.1, 0.1, True),
        (-0.1, 0.3, 0.1, False),
        (0.0, 0.3, 0.1, False),
        (0.2, 0.2, 0.0, False),
        (None, None, None, False),
    ],
)
def test_only_an_interval_without_zero_distinguishes(
    low: float | None, high: float | None, sd: float | None, expected: bool
) -> None:
    assert distinguishable(Interval(0.2, sd, low, high, 3)) is expected


@pytest.mark.parametrize(
    ("interval", "gain", "bounds"),
    [
        (Interval(0.18, 0.06, 0.10, 0.26, 5), "+0.18", "0.10 to 0.26"),
        (Interval(-0.18, 0.06, -0.26, -0.10, 5), "-0.18", "-0.26 to -0.10"),
        # A bound that excludes zero must not be shown as zero.
        (Interval(0.18, 0.1, 0.0031, 0.36, 5), "+0.180", "0.003 to 0.360"),
        (Interval(1e-18, 0.06, -0.1, 0.1, 5), "0", "-0.10 to 0.10"),
        (Interval(0.1, 0.06, -1e-9, 0.2, 5), "+0.10", "0.00 to 0.20"),
        (Interval(0.5, None, None, None, 1), "+0.50", ""),
        (Interval(0.5, 0.0, 0.5, 0.5, 2), "+0.50", ""),
    ],
)
def test_texts_round_without_misleading(interval: Interval, gain: str, bounds: str) -> None:
    assert (gain_text(interval), bounds_text(interval)) == (gain, bounds)


def test_interval_text_gives_the_reason_for_no_interval() -> None:
    assert interval_text(Interval(0.18, 0.06, 0.1, 0.26, 5)) == "95 % interval 0.10 to 0.26 over 5 seeds"
    assert interval_text(t_interval([1.0])) == "one seed"
    assert interval_text(t_interval([1.0, 1.0])) == "the same in each of 2 seeds"


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_sum(only_first: int, only_second: int, both: int, none: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * both + [False] * none)
    second = np.array([False] * only_first + [True] * only_second + [True] * both + [False] * none)
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second) == (only_first, only_second)
    assert test.p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_mcnemar_needs_the_same_images() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))


def test_p_value_text_has_two_digits_or_a_bound() -> None:
    likely = mcnemar(np.array([True, False]), np.array([False, True]))
    assert p_value_text(likely.p_value) == "= 1"
    assert p_value_text(mcnemar(np.ones(30, bool), np.zeros(30, bool)).p_value) == "< 0.0001"


def test_paired_interval_is_that_of_the_published_example() -> None:
    """The R package statpsych, by one of the authors, prints these digits for 12, 4, 26 and 6 images."""
    assert paired_proportions_interval(26, 4, 12 + 4 + 26 + 6) == pytest.approx(
        (0.2548067, 0.6251933), abs=1e-7
    )


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 10_000), st.sampled_from([0.5, 0.9, 0.95]))
def test_paired_interval_properties(first: int, second: int, same: int, confidence: float) -> None:
    images = first + second + same
    low, high = paired_proportions_interval(first, second, images, confidence)
    assert -1 <= low < high <= 1
    # Exchanging the networks mirrors it; more confidence widens it; equal counts give one around zero.
    assert paired_proportions_interval(second, first, images, confidence) == pytest.approx((-high, -low))
    wider = paired_proportions_interval(first, second, images, 0.99)
    assert wider[0] <= low < high <= wider[1]
    if first == second:
        assert low + high == pytest.approx(0, abs=1e-12)


def test_paired_interval_has_its_nominal_coverage() -> None:
    random = np.random.default_rng(0)
    counts = random.multinomial(1000, [0.02, 0.012, 0.968], size=4000)
    covered = [
        low <= 0.008 <= high
        for low, high in (paired_proportions_interval(int(b), int(c), 1000) for b, c, _ in counts)
    ]
    assert 0.94 < np.mean(covered) < 0.97


@pytest.mark.parametrize("counts", [(-1, 2, 10), (6, 5, 10), (0, 0, 0)])
def test_impossible_counts_have_no_interval(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"{counts[0]} and {counts[1]} of {counts[2]}"):
        paired_proportions_interval(*counts)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_those_of_printed_tables(effect: float, seeds: int) -> None:
    """Paired t-test, two-sided 5 %, power 80 %: as in Cohen's tables and in G*Power."""
    assert seeds_needed(effect, 1.0) == seeds
    assert seeds_needed(-3 * effect, 3.0) == seeds


def test_seeds_needed_have_the_power_and_fewer_do_not() -> None:
    random = np.random.default_rng(0)
    needed = seeds_needed(0.9, 1.0)
    assert needed is not None
    for n, enough in ((needed, True), (needed - 2, False)):
        draws = random.normal(0.9, 1.0, size=(100_000, n))
        t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / np.sqrt(n))
        power = (np.abs(t) > scipy.stats.t.ppf(0.975, n - 1)).mean()
        assert (power >= 0.795) == enough


def test_seeds_needed_has_an_upper_and_a_lower_limit() -> None:
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(0.01, 1.0) is None
    assert seeds_needed(0.5, 1.0, most=33) is None
    assert seeds_needed(1e6, 1.0) == 2
    with pytest.raises(ValueError, match=r"0\.0"):
        seeds_needed(1.0, 0.0)
