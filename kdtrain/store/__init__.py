"""What lies on disk, and why it can be trusted: checkpoints, cards, runs, kept models, event files.

What decides when a file is written does not belong here. Imports ``errors``, ``runtime``, ``data`` and
``models``.
"""
