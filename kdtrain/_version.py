"""The version, in its own module, so that the package can read it without importing ``kdtrain/__init__``."""

__version__ = "0.1.0"
