"""A request in words decides what comes next, where the history cannot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recbole_idiomoe
from recbole_idiomoe import api
from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.models.language.catalog_lm import MAX_QUERY_TOKENS
from recbole_idiomoe.recommend.__main__ import main
from recbole_idiomoe.recommend.recommender import Recommender
from tests.helpers import write_dataset
from tests.models.test_catalog_lm import HISTORIES, build, make_catalog
from tests.models.test_controls import FEWER
from tests.training.cycle import TINY

KINDS = {"trains": "rail", "dolls": "dress", "drums": "loud"}
EACH = 8


def write_shop(folder: Path, users: int = 200) -> Path:
    """Items of three kinds, in histories without any order."""
    rng = np.random.default_rng(0)
    items = [
        (f"{kind}{n}", f"{word} thing {n}", f"play|{kind}")
        for kind, word in KINDS.items()
        for n in range(EACH)
    ]
    rows = [
        (f"u{user}", items[item][0], float(when))
        for user in range(users)
        for when, item in enumerate(rng.permutation(len(items))[:8])
    ]
    return write_dataset(folder, rows, items)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_shop(tmp_path_factory.mktemp("data") / "shop")
    settings = TINY | {
        "data_path": str(path),
        "checkpoint_dir": str(tmp_path_factory.mktemp("saved")),
        "query_share": 1.0,
        "query_templates": ["show me {category}"],
        "train_batch_size": 16,
        "epochs": 15,
        "eval_step": 0,  # histories without order validate nothing
        "item_init": "random",
    }
    (result,) = api.run("IDIOMoE", "shop", settings=settings)
    return str(result["folder"])


@pytest.fixture(scope="module")
def recommender(folder: str) -> Recommender:
    return recbole_idiomoe.load(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("history", [["trains1", "dolls2", "drums3"], ["dolls4"]])
def test_the_query_decides(recommender: Recommender, kind: str, history: list[str]) -> None:
    found = recommender.recommend(history, k=5, query=f"show me {kind}")
    assert [item.item_id.rstrip("01234567") for item in found] == [kind] * 5


def test_without_a_query_no_kind_is_preferred(recommender: Recommender) -> None:
    plain = recommender.recommend(["trains1", "dolls2", "drums3"], k=EACH)
    assert len({item.item_id.rstrip("01234567") for item in plain}) > 1


def test_a_query_is_enough(recommender: Recommender) -> None:
    found = recommender.recommend([], k=3, query="show me dolls")
    assert all(item.item_id.startswith("dolls") for item in found)
    lists = recommender.recommend([["dolls1"], []], k=3, query="show me drums")
    assert all(item.item_id.startswith("drums") for one in lists for item in one)
    with pytest.raises(DataError, match="history is empty"):
        recommender.recommend([], k=3)


def test_a_batch_with_a_query_scores_as_one_by_one(recommender: Recommender) -> None:
    histories = [np.array([1, 2, 3]), np.array([], dtype=np.int64), np.array([7])]
    together = recommender.scorer(histories, "trains")
    alone = torch.cat([recommender.scorer([history], "trains") for history in histories])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("query", ["", "  ", 3])
def test_an_empty_query_is_refused(recommender: Recommender, query: Any) -> None:
    with pytest.raises(DataError, match="query="):
        recommender.recommend(["dolls1"], query=query)


def test_who_cannot_read_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    ids = [["i1", "i2"]]
    run = {"model": "SASRec"}
    untrained = Recommender(make_catalog(), model.scores, 50, run, catalog_lm=model)
    untrained.recommend(ids, query="green")
    assert "was not trained on queries" in caplog.text
    blind = Recommender(make_catalog(), model.scores, 50, run)
    with pytest.raises(DataError, match="SASRec reads no text"):
        blind.recommend(ids, query="green")


def test_a_long_query_is_cut_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    assert len(model.encode_query("many words " * 9)) > 18 and "only the first" not in caplog.text
    prompt = len(model.encode_query("x")) - 1
    assert len(model.encode_query("many words " * 99)) - prompt <= MAX_QUERY_TOKENS
    assert "only the first 64 tokens of a query are read" in caplog.text


def test_a_run_that_asks_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    settings = FEWER | {"query_share": 0.5, "epochs": 1, "item_warmup": 1.0, "text_ramp": 1.0}
    api.run("IDIOMoE", "ml-100k", settings=settings)
    (log,) = Path("log/IDIOMoE").glob("*.log")
    assert "query_share=0.5 has no effect: all 1 epochs are warm-up" in log.read_text()


def test_a_query_never_turns_into_an_item() -> None:
    model = build()
    tokens = model.encode_query("<|it-i3|> <|endoftext|>")
    assert tokens.max() < model.lm.config.item_token_offset
    assert model.tokenizer.eos_token_id not in tokens
    plain, asked = model.scores(HISTORIES), model.scores(HISTORIES, "<|it-i3|>")
    assert (plain - asked)[:, 1:].abs().max() > 1e-2


def test_the_command_line(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([folder, "--query=show me drums", "--k=2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("drums") == 2 and "loud thing" in printed
    assert main([folder]) == 2
    assert "history is empty" in capsys.readouterr().err
