"""The machine: OneFlow's import, processes, signals, files and the terminal.

Training, data and networks do not belong here. Imports ``errors`` only.
``from kdtrain.runtime import flow`` imports oneflow at that moment: ``--help`` does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import oneflow as flow

__all__ = ["flow"]


def __getattr__(name: str) -> Any:
    if name == "flow":
        from kdtrain.runtime.oneflow import import_oneflow

        return import_oneflow()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
