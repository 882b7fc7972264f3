"""The command line: ``kdtrain COMMAND``, one file a command, and the words that they share.

What a command does once its words are understood does not belong here. Imports any room.
"""

from kdtrain.cli.main import main, process

__all__ = ["main", "process"]
