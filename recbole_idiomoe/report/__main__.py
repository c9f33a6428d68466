"""``python -m recbole_idiomoe.report FILE.json ...``: print tables in Markdown."""

import sys

from recbole_idiomoe.report.tables import main

if __name__ == "__main__":
    sys.exit(main())
