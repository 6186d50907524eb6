"""`python run.py --setup ENS9`: the command line without installing an entry point."""

import sys

from tiled_ref.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
