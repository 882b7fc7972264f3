"""Networks, the registry of their names, and their list.

Training and files of weights do not belong here. Imports ``errors``, ``runtime``, ``data`` and ``nn``.
"""
