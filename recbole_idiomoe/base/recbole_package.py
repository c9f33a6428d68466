"""The installed RecBole: a check of its version, and its folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_TESTED_RECBOLE = "1.2.1"
_FIX = f"pip install --no-deps recbole=={_TESTED_RECBOLE}"
# RecBole requires a version of ray without wheels for Python 3.12 and newer, so that pip would
# fall back to an older RecBole. This package requires what RecBole really needs.


def check_recbole() -> None:
    """Raise an ImportError with the command to install RecBole unless the tested one is there."""
    try:
        import recbole
    except ImportError as error:
        raise ImportError(f"recbole_idiomoe needs RecBole: {_FIX}") from error
    if recbole.__version__ != _TESTED_RECBOLE:
        raise ImportError(
            f"recbole_idiomoe is not tested with RecBole {recbole.__version__}: {_FIX}"
        )


def recbole_folder() -> Path:
    """The folder of the installed RecBole, found without importing it.

    Raises:
        ImportError: RecBole is not installed.
    """
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise ImportError(f"recbole_idiomoe needs RecBole: {_FIX}")
    return Path(spec.origin).parent
