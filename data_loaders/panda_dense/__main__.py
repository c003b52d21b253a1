"""`python -m data_loaders.panda_dense`; see `commands.py`."""

import sys

from data_loaders.panda_dense.commands import main

if __name__ == "__main__":
    sys.exit(main())
