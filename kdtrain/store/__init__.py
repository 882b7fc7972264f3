"""Files on disk, written whole and checked when read: checkpoints, cards, runs, kept models, event files.

Callbacks decide when a file is written. Imports ``errors``, ``runtime``, ``data`` and
``models``.
"""
