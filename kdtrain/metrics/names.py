"""Names of the figures on held-out images, and a mean with its interval."""

from dataclasses import dataclass

ACCURACY = "val/accuracy"
"""Accuracy on the held-out images, a fraction."""

CROSS_ENTROPY = "val/cross_entropy"
"""Cross-entropy on the held-out images, in nats per image."""

BALANCED_ACCURACY = "val/balanced_accuracy"
"""The mean of the classes' accuracies on the held-out images, a fraction."""

MACRO_F1 = "val/macro_f1"
"""The mean of the classes' F1 on the held-out images, a fraction."""

CONFIDENCE = 0.95
"""Confidence level of all intervals."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of the values.

    The standard deviation and the bounds are None for a single value.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int
