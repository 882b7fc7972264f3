"""Data: from files on disk to batches of normalised images.

Networks, settings and training do not belong here. Imports ``errors``, ``runtime`` and ``metrics``.
"""
