"""Reports of results: tables, verdicts, figures and the page.

Deciding what to train does not belong here. Imports ``errors``, ``runtime``, ``metrics``, ``data`` and
``store``.
"""
