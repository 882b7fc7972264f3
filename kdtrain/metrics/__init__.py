"""Figures of a model's logits, in NumPy and SciPy: accuracy, calibration, fidelity, statistics.

OneFlow, files and tables do not belong here. Imports ``errors`` and ``runtime.limits`` only.
"""
