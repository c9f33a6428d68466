"""Runs that are trained once for all tests of analyses."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

from recbole_idiomoe import api
from recbole_idiomoe.analysis import outputs, report
from recbole_idiomoe.report import plot_style
from tests.training.cycle import TINY, write_cycle

RUNS: dict[str, dict[str, Any]] = {
    "IDIOMoE": {"expert_width": 0.5},
    "frozen": {"model": "IDIOMoE", "freeze": "backbone"},
    "ItemLLM": {},
    "TitleLLM": {"max_tokens": 128},
    "IDTransformer": {"use_text": False},
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 2},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of trained models, by name."""
    place = tmp_path_factory.mktemp("analysis")
    path = write_cycle(place / "data" / "cycle")
    settings = TINY | {"epochs": 1, "data_path": str(path), "checkpoint_dir": str(place / "saved")}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, own in RUNS.items():
            own = dict(own)
            model = own.pop("model", name)
            (result,) = api.run(model, "cycle", settings=settings | own)
            found[name] = Path(result["folder"])
    return found


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers alone: of what a command does on data as small as these, pictures take the most."""
    for module in (outputs, report):
        monkeypatch.setattr(module, "can_draw", lambda: False)


@pytest.fixture
def drawn(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures too, in every format."""
    for module in (outputs, report):
        monkeypatch.setattr(module, "can_draw", plot_style.can_draw)


@pytest.fixture
def drawn_once(drawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures too, in one format."""
    monkeypatch.setattr(outputs, "FORMATS", ("svg",))


class FakeTasks:
    """lm_eval's index: a task, a group with a figure of its own, one without, and one offline."""

    groups: ClassVar = {"whole": ["first", "second"], "loose": ["third", "fourth"]}

    def __init__(self, include_path: str | None) -> None:
        inner = [name for parts in self.groups.values() for name in parts]
        self.task_index = dict.fromkeys(["single", "offline", *self.groups, *inner])

    def load(self, names: list[str]) -> None:
        if "offline" in names:
            raise ConnectionError("no route to the data")


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An lm_eval whose only metric is how often token 0 seems likeliest; ``calls`` has arguments.

    Its results have the form of lm_eval 0.4.
    """

    def evaluate(model: Any, tasks: list[str], **given: Any) -> dict[str, Any]:
        fake.calls.append({"tasks": tasks, **given})  # type: ignore[attr-defined]
        ids = torch.tensor([model.tokenizer("red green blue")["input_ids"]])
        with torch.no_grad():
            first = model.pretrained(ids.to(model.pretrained.device)).logits.argmax(-1) == 0
        figures = {"alias": "any", "acc,none": first.float().mean().item(), "acc_stderr,none": 0.25}
        parts = {name: FakeTasks.groups[name] for name in tasks if name in FakeTasks.groups}
        results = {name: dict(figures) for listed in parts.values() for name in listed}
        results |= {name: {"alias": name} if name == "loose" else figures for name in tasks}
        results = {
            name: figures | {"exact,strict": 0.5, "exact_stderr,strict": "N/A"}
            if name == "single"
            else of_task
            for name, of_task in results.items()
        }
        counts = {name: {"effective": 7} for name in results if name not in parts}
        return {"results": results, "group_subtasks": parts, "n-samples": counts}

    class Adapter:
        def __init__(self, pretrained: Any, tokenizer: Any, batch_size: int) -> None:
            self.pretrained, self.tokenizer = pretrained, tokenizer

    fake, models, tasks = map(ModuleType, ("lm_eval", "huggingface", "tasks"))
    fake.__dict__.update(simple_evaluate=evaluate, __version__="0.4", calls=[])
    models.__dict__.update(HFLM=Adapter)
    tasks.__dict__.update(TaskManager=FakeTasks)
    for name, module in (
        ("lm_eval", fake),
        ("lm_eval.models", ModuleType("models")),
        ("lm_eval.models.huggingface", models),
        ("lm_eval.tasks", tasks),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return fake
