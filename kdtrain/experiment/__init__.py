"""The four modes carried out: settings, the session and its jobs, single runs, chains, grids, comparisons.

Words of the command line do not belong here. Imports any room but ``cli``.
"""
