"""A small deep-learning backend on oneDNN, for a CPU; networks take the functions of ``layers``.

It gives the layers of networks the values that OneFlow's own have, several times as fast. Networks do not
belong here. Imports ``errors`` and ``runtime``.
"""
