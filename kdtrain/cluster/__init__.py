"""Several processes that train one network: their start, rendezvous, averages, heartbeats and end.

Fits in one process do without this room. Imports ``errors``, ``runtime``, ``data`` and ``engine``.
"""
