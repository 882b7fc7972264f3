"""Files on disk, written whole and checked when read: checkpoints, cards, runs, kept models, event files.

The decision when a file is written does not belong here. Imports ``errors``, ``runtime``, ``data`` and
``models``.
"""
