"""The command line: ``kdtrain COMMAND``, one file per command, and the flags that they share.

Training, reports and files do not belong here. Imports any room.
"""

from kdtrain.cli.main import main, process

__all__ = ["main", "process"]
