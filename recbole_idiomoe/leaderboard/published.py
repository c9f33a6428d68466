"""Published results of models on data sets, from ``properties/published.yaml``."""

from __future__ import annotations

from typing import Any, NamedTuple

from recbole_idiomoe.base import yaml_files


class Published(NamedTuple):
    """A published value and its source."""

    value: float
    source: str
    """The source's short name."""


def published(model: str, dataset: str, metric: str) -> list[Published]:
    """The published values of ``metric``, for example ``ndcg@10``, in the order of the file."""
    found = _content()["numbers"].get(dataset, {}).get(model, {})
    return [Published(found[source][metric], source) for source in found if metric in found[source]]


def sources() -> dict[str, str]:
    """The citation and the protocol of each source, by its short name."""
    found = _content()["sources"]
    return {name: f"{about['cite']}: {about['protocol']}" for name, about in found.items()}


def _content() -> dict[str, Any]:
    return yaml_files.read_settings(yaml_files.properties_path() / "published.yaml")
