"""Settings that are paths: they are kept absolute, so that a run is found again from anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_idiomoe.base.backbones import BUNDLED, UNTRAINED

# Not checkpoint_dir: a run is written to where its command is started.
_PATHS = {"data_path", "id_vectors", "language_file", "pre_model_path", "token_cache", "tuned"}
# Names of what is no file, unless there is such a folder.
_PATHS_OR_NAMES = {"backbone": {BUNDLED, UNTRAINED}, "text_encoder": {"tfidf", "backbone"}}


def with_absolute_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` in which a path that is relative to the current folder is absolute."""
    return {name: _absolute(name, value) for name, value in settings.items()}


def _absolute(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    path = Path(os.path.expanduser(value))
    names = _PATHS_OR_NAMES.get(name)
    is_path = name in _PATHS if names is None else value not in names and path.exists()
    return os.path.abspath(path) if is_path else value
