"""Shares the small data and the ways to call kdtrain with the tests of the command line."""

from tests.cli.conftest import call_kdtrain, digits, fitted, tiles

__all__ = ["call_kdtrain", "digits", "fitted", "tiles"]
