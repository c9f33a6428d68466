"""What a run found: its metrics, protocol, costs and complete settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunResult:
    """The result of one run, which as JSON is an entry of a result file.

    Seconds are wall-clock seconds. In a resumed run they include the interrupted processes.
    """

    model: str
    dataset: str
    protocol: dict[str, Any] = field(default_factory=dict)
    """What the metrics depend on besides the model."""
    users: int = 0
    items: int = 0
    interactions: int = 0
    best_valid_result: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the epoch that was kept; empty without validation."""
    test_result: dict[str, float] | None = None
    """Test metrics; None if the test split was not evaluated."""
    cold_start: dict[str, Any] | None = None
    """Metrics of seen and unseen test items apart, with the setting ``cold_start``."""
    learning_curve: list[dict[str, float]] = field(default_factory=list)
    """``epoch`` (from 1), ``train_loss`` and ``valid`` of each validation."""
    epochs: int = 0
    train_seconds: float | None = None
    eval_seconds: float | None = None
    """Seconds of validation and test."""
    parameters: dict[str, int] = field(default_factory=dict)
    """The number of parameters: ``total`` and ``trainable``."""
    peak_memory_mib: float | None = None
    """Peak memory of the GPU; without a GPU, of the process."""
    trained: str = ""
    """What was trained of a language model, as ``trained whole``; empty for other models."""
    seed: int = 0
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """All settings; another run with them gives the same result."""
    mix: dict[str, Any] | None = None
    """The model mixed with a counter, with the setting ``mix``."""
    language: dict[str, Any] | None = None
    """The likelihood of a text before and after training, with the setting ``language_file``."""

    def to_json(self) -> dict[str, Any]:
        """The result in plain types, without what was not measured."""
        return {name: value for name, value in vars(self).items() if value is not None}
