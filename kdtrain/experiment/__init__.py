"""The four modes carried out: settings, the session and its jobs, single runs, comparisons, searches.

Flags and their parsing do not belong here. Imports any room but ``cli``.
"""
