"""``python -m kdtrain``."""

import sys

from kdtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
