"""Names of the figures on held-out images."""

ACCURACY = "val/accuracy"
"""Accuracy on the held-out images, a fraction."""

CROSS_ENTROPY = "val/cross_entropy"
"""Cross-entropy on the held-out images, in nats per image."""
