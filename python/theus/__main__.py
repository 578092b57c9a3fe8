"""``python -m theus``."""

import sys

from theus.cli import main

if __name__ == "__main__":
    sys.exit(main())
