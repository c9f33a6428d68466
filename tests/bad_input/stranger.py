"""Somebody who gives odd and bad input: a right result, or one line that says what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recbole_idiomoe import cli
from tests.helpers import DATASET_SETTINGS, TINY_BACKBONE, write_dataset

MODELS = ("SASRec", "IDIOMoE")
ITEMS = [(f"i{n}", f"Item number {n}", f"cat{n % 3}|all") for n in range(10)]
ROWS = [(f"u{n}", f"i{(3 * n + k * k) % 10}", 100.0 * n + k) for n in range(8) for k in range(6)]
COMMON: dict[str, Any] = DATASET_SETTINGS | {
    "epochs": 1,
    "topk": [1, 5],
    "valid_metric": "NDCG@5",
    "train_batch_size": 64,
    "eval_batch_size": 64,
    "MAX_ITEM_LIST_LENGTH": 10,
    "state": "error",
}
OWN: dict[str, dict[str, Any]] = {
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1},
    "IDIOMoE": {
        "backbone": "untrained",
        "backbone_args": TINY_BACKBONE,
        "max_item_text_tokens": 8,
        "item_warmup": 0.0,
    },
}


class Stranger:
    """Runs commands in the folder where the test stands."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def files(
        self,
        rows: Any = ROWS,
        items: Any = ITEMS,
        inter: Callable[[str], str | bytes] = str,
        item: Callable[[str], str | bytes] = str,
    ) -> None:
        """``dataset/toy``, its two files changed by ``inter`` and ``item``."""
        folder = Path("dataset/toy")
        write_dataset(folder, rows, items)
        for suffix, change in (("inter", inter), ("item", item)):
            path = folder / f"toy.{suffix}"
            content = change(path.read_bytes().decode())
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def run(self, model: str, *words: str, **settings: Any) -> int:
        """The command line on it; a word wins over the settings, which are in a file."""
        if not Path("dataset").exists():
            self.files()
        own = OWN.get(model, {})
        if settings.get("backbone"):
            own = {key: value for key, value in own.items() if key != "backbone_args"}
        Path("c.yaml").write_text(yaml.safe_dump(COMMON | own | settings))
        return cli.main([f"--model={model}", "--dataset=toy", "--config_files=c.yaml", *words])

    def refused(self, model: str, *words: str, **settings: Any) -> str:
        """The one line that refuses a run, of which nothing stays."""
        if not Path("dataset").exists():
            self.files()
        before = self.debris()
        self.capsys.readouterr()
        code = self.run(model, *words, **settings)
        return self.said(code, before)

    def said(self, code: int, before: set[str]) -> str:
        captured = self.capsys.readouterr()
        bars = "Loading weights"  # transformers'
        lines = [x for x in captured.err.splitlines() if x and not x.startswith(bars)]
        assert code == 2 and self.debris() == before
        assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
        assert captured.out == ""
        return lines[0]

    def result(self, model: str, *words: str, **settings: Any) -> dict[str, Any]:
        """The result of a run that is to succeed, quietly."""
        self.capsys.readouterr()
        assert self.run(model, "--result_file=r.json", *words, **settings) == 0
        assert self.capsys.readouterr().err == ""
        result: dict[str, Any] = json.loads(Path("r.json").read_text())
        assert all(0 <= value <= 1 for value in result["test_result"].values())
        return result

    @staticmethod
    def debris() -> set[str]:
        """All that a run leaves but RecBole's logs."""
        inputs = ("log", "dataset/", "c.yaml")
        return {str(p) for p in Path().rglob("*") if not str(p).startswith(inputs) and p.is_file()}


both = pytest.mark.parametrize("model", MODELS)


def append(line: str) -> Callable[[str], str]:
    return lambda text: text + line
