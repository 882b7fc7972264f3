"""Networks, and the registry of their names.

Training and files of weights do not belong here. Imports ``errors``, ``runtime`` and ``nn``.
"""
