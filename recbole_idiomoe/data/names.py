"""Which data sets have a name.

Nothing heavy is imported: ``--list_datasets`` answers at once.
"""

from __future__ import annotations

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.recbole_package import recbole_folder


def list_datasets() -> list[str]:
    """Names of data sets: those with settings of ours, then those RecBole can download."""
    ours = sorted(path.stem for path in (yaml_files.properties_path() / "dataset").glob("*.yaml"))
    return [*ours, *(name for name in recbole_datasets() if name not in ours)]


def recbole_datasets() -> dict[str, str]:
    """RecBole's data sets: where each is downloaded from, by name."""
    text = (recbole_folder() / "properties" / "dataset" / "url.yaml").read_text(encoding="utf-8")
    urls: dict[str, str] = yaml_files.parse(text)
    return urls
