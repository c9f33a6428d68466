"""Published results of models on data sets, from ``properties/published.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_idiomoe.base import yaml_files


@dataclass(frozen=True)
class Published:
    """A published value and its source."""

    value: float
    source: str
    """The source's short name."""


def published(model: str, dataset: str, metric: str) -> list[Published]:
    """The published values of ``metric``, for example ``ndcg@10``, in the order of the file."""
    found = _content()["numbers"].get(dataset, {}).get(model, {})
    return [
        Published(numbers[metric], source) for source, numbers in found.items() if metric in numbers
    ]


def sources() -> dict[str, str]:
    """The citation and the protocol of each source, by its short name."""
    return {
        name: f"{about['cite']}: {about['protocol']}"
        for name, about in _content()["sources"].items()
    }


def _content() -> dict[str, dict[str, dict]]:  # type: ignore[type-arg]
    return yaml_files.read_settings(yaml_files.properties_path() / "published.yaml")
