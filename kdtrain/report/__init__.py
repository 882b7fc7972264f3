"""What people read: tables, verdicts, pictures and the page.

Deciding what to train does not belong here. Imports ``errors``, ``runtime``, ``metrics``, ``data`` and
``store``.
"""
