"""What a run found: its metrics, protocol, costs and complete settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

Metrics = dict[str, float]


@dataclass
class RunResult:
    """The result of one run; as JSON it is an entry of a result file.

    Seconds are wall-clock seconds, also of the processes before this one whose run was resumed.
    """

    model: str
    dataset: str
    protocol: dict[str, Any] = field(default_factory=dict)
    """What the numbers depend on besides the model."""
    users: int = 0
    items: int = 0
    interactions: int = 0
    best_valid_result: Metrics = field(default_factory=dict)
    """Of the epoch that was kept; empty if none was validated."""
    test_result: Metrics | None = None
    """None where the test split was not evaluated."""
    cold_start: dict[str, Any] | None = None
    """Seen and unseen test items apart, with the setting ``cold_start``."""
    learning_curve: list[dict[str, float]] = field(default_factory=list)
    """Of each validation: ``epoch`` from 1, ``train_loss`` and ``valid``."""
    epochs: int = 0
    train_seconds: float | None = None
    eval_seconds: float | None = None
    """Of validation and test."""
    parameters: dict[str, int] = field(default_factory=dict)
    """``total`` and ``trainable``."""
    peak_memory_mib: float | None = None
    """Of the GPU; on a CPU of the process."""
    seed: int = 0
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Complete; given again they make the same run."""
    mix: dict[str, Any] | None = None
    """The model mixed with a counter, with the setting ``mix``."""
    language: dict[str, Any] | None = None
    """The likelihood of a text before and after training, with the setting ``language_file``."""

    def to_json(self) -> dict[str, Any]:
        """The result in plain types, without what was not measured."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunResult:
        """The result that :meth:`to_json` wrote."""
        return cls(**content)

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return Path(self.folder)
