"""`python run.py --setup ENS9`: the command line without installing an entry point."""

import sys

from tiled_ref.cli import main

if __name__ == "__main__":
    sys.exit(main())
