"""The command line: ``kdtrain COMMAND``. Each command has a module of its own."""

from kdtrain.cli.main import main, process

__all__ = ["main", "process"]
