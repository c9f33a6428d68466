"""RecBole's models run on columns with any names; ours do so in tests/golden."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model, sequential_models
from recbole_idiomoe.protocol.evaluation import Evaluation
from recbole_idiomoe.protocol.splits import split_dataset
from tests.helpers import NAMES, OTHER_NAMES, write_dataset

OF_A_GRAPH = {"GRU4RecKG", "KSR"}  # which need files of a knowledge graph
SETTINGS: dict[str, Any] = OTHER_NAMES | {
    "seq_separator": "|",
    "selected_features": ["categories"],
    "item_attribute": "categories",
    "MAX_ITEM_LIST_LENGTH": 6,
    "topk": [3],
    "valid_metric": "NDCG@3",
    "train_batch_size": 16,
    "gpu_id": "",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(f"u{u}", f"i{(u * u + 7 * k) % 60}", float(k)) for u in range(30) for k in range(6)]
    items = [(f"i{n}", f"title {n}", f"a|{n % 5}") for n in range(130)]
    return write_dataset(tmp_path_factory.mktemp("data") / "odd", rows, items, NAMES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", sorted({*sequential_models()} - OF_A_GRAPH))
def test_a_step_and_an_evaluation(model: str, place: Path) -> None:
    settings = SETTINGS | {"data_path": str(place)}
    config = RunConfig(model, "odd", settings=settings, beside=sequential_models())
    splits = split_dataset(config, load_dataset(config))
    torch.manual_seed(0)
    recommender = get_model(model)(config, splits.train._dataset)
    losses = recommender.calculate_loss(next(iter(splits.train)))
    loss = sum(losses) if isinstance(losses, tuple) else losses
    loss.backward()
    assert torch.isfinite(loss)
    result = Evaluation(recommender, splits.test, config).run()
    assert set(result) == {"hit@3", "ndcg@3", "mrr@3"}
