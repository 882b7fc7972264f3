"""Figures of a model's logits, in NumPy and SciPy: accuracy, calibration, fidelity, statistics.

OneFlow, files and tables do not belong here. Imports ``errors`` and ``runtime.limits`` only.
Here are the names of the figures on held-out images.
"""

ACCURACY = "val/accuracy"
"""Accuracy on the held-out images, a fraction."""

CROSS_ENTROPY = "val/cross_entropy"
"""Cross-entropy on the held-out images, in nats per image."""
