"""``python -m theus``."""

import sys

from theus.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
