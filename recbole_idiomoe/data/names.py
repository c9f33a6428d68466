"""The names of known data sets. Imports nothing heavy, so that ``--list_datasets`` is fast."""

from __future__ import annotations

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.recbole_package import recbole_folder


def list_datasets() -> list[str]:
    """Names of the data sets that have a settings file, then those that RecBole downloads."""
    ours = sorted(path.stem for path in (yaml_files.properties_path() / "dataset").glob("*.yaml"))
    return [*ours, *(name for name in recbole_datasets() if name not in ours)]


def recbole_datasets() -> dict[str, str]:
    """The download URLs of RecBole's data sets, by name."""
    text = (recbole_folder() / "properties" / "dataset" / "url.yaml").read_text(encoding="utf-8")
    return yaml_files.parse(text)
