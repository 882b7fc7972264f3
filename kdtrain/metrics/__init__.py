"""The figures that a model is judged by, in NumPy and SciPy: accuracy, calibration, fidelity, statistics.

OneFlow, files and tables do not belong here. Imports ``errors`` and ``runtime.slices`` only.
"""
