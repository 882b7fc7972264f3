"""The training loop and its contract: Trainer, Callback, events, Run, Objective, losses, resuming.

The callbacks themselves (``callbacks``) and the settings of a fit (``experiment``) do not belong here.
Imports ``errors``, ``runtime``, ``metrics``, ``data``, ``models`` and ``store``.
"""
