"""``python -m recbole_idiomoe.recommend FOLDER --history=ID,ID``: print recommendations."""

import sys

from recbole_idiomoe.recommend.recommender import main

if __name__ == "__main__":
    sys.exit(main())
