"""The four modes carried out: settings, the session and its jobs, single runs, grids, comparisons.

Flags and their parsing do not belong here. Imports any room but ``cli``.
"""
