"""The entry point of ``python -m kdtrain``."""

from kdtrain.cli import process

if __name__ == "__main__":
    process()
