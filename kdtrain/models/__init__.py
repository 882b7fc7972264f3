"""Networks, the registry of their names, and the layers they are made of.

Training and files of weights do not belong here. Imports ``errors`` and ``runtime``.
"""
