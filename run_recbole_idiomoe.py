"""Train and test models on data sets; ``--help`` says how."""

import sys

from recbole_idiomoe.cli import main

if __name__ == "__main__":
    sys.exit(main())
