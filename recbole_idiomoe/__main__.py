"""``python -m recbole_idiomoe``: the command line, where its script is not on the path."""

import sys

from recbole_idiomoe.cli import main

if __name__ == "__main__":
    sys.exit(main())
