"""The training loop and its contract: Trainer, Callback, events, Run, Objective, losses, resuming.

What listens to the loop (``callbacks``) and what sets it up (``experiment``) do not belong here.
Imports ``errors``, ``runtime``, ``metrics``, ``data``, ``models`` and ``store``.
"""
