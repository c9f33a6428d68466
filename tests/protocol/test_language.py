"""Language kept: how likely text is to a trained model, beside its untouched backbone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import IdiomoeForCausalLM, encode_text, load_backbone
from recbole_idiomoe.lm.vocabulary import train_tokenizer
from recbole_idiomoe.report.tables import table
from tests.helpers import TINY_BACKBONE
from tests.training.cycle import TINY, write_cycle

TEXT = "The café had no menu.\n\n = Plovers = \n They nest near the shore, in June and July. " * 9
SMALL = {k: v for k, v in TINY.items() if k not in ("backbone", "backbone_args")} | {"epochs": 1}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run on a tiny backbone in a folder, which counts as pretrained."""
    place = tmp_path_factory.mktemp("language")
    tokenizer = train_tokenizer([TEXT, "red green blue thing toys games title category"], 300)
    torch.manual_seed(0)
    config = Qwen2Config(
        **TINY_BACKBONE,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    # In bfloat16, as most are published: training in it then holds frozen weights so.
    Qwen2ForCausalLM(config).bfloat16().float().save_pretrained(place / "backbone")
    tokenizer.save_pretrained(place / "backbone")
    (place / "wiki.txt").write_text(TEXT, encoding="utf-8")
    data = write_cycle(place / "cycle", users=30)
    own = {"backbone": str(place / "backbone"), "language_file": str(place / "wiki.txt")}
    return SMALL | own | {"data_path": str(data)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["IDIOMoE", "MoA", "MoT"])
def test_a_frozen_text_path_changes_nothing_at_all(
    model: str, precision: str, given: dict[str, Any]
) -> None:
    frozen = {"freeze": "backbone", "precision": precision}
    (result,) = api.run(model, "cycle", settings=given | frozen)
    kept = result["language"]
    assert kept["nll_change"] == 0.0 and kept["nll"] == kept["untouched_nll"] > 0
    assert (kept["file"], kept["tokenizer"], kept["context"]) == ("wiki.txt", "backbone", 64)


def test_what_trains_changes_it_by_what_a_plain_loop_finds(given: dict[str, Any]) -> None:
    (result,) = api.run("IDIOMoE", "cycle", settings=given)
    kept = result["language"]
    assert kept["nll_change"] == kept["nll"] - kept["untouched_nll"] != 0
    run = json.loads((Path(result["folder"]) / "run.json").read_text())
    assert run["language"] == kept
    backbone, tokenizer = load_backbone(given["backbone"])
    (ids,) = encode_text(tokenizer, [TEXT])
    ids = torch.tensor([[tokenizer.eos_token_id, *ids, tokenizer.eos_token_id]])
    trained = IdiomoeForCausalLM.from_pretrained(result["folder"]).eval()
    for model, found in ((trained, kept["nll"]), (backbone, kept["untouched_nll"])):
        # Each half window after the first is predicted from what is before it.
        nll, predicted = 0.0, 1
        for start in range(0, ids.shape[1], 32):
            window = ids[:, start : start + 64]
            with torch.no_grad():
                logits = model(window).logits[0, :-1, : len(tokenizer)]
            losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
            nll += losses[predicted - start - 1 :].sum().item()
            predicted = start + window.shape[1]
            if predicted == ids.shape[1]:
                break
        assert found == pytest.approx(nll / (ids.shape[1] - 1), rel=1e-5)
    assert kept["tokens"] == ids.shape[1] - 1
    assert f"IDIOMoE {kept['nll_change']:+.4f}." in " ".join(table([result]).split())


@pytest.mark.parametrize("model", ["E4SRec", "CoVE"])
def test_adapters_in_the_way_of_text_change_it_too(
    model: str, given: dict[str, Any], tmp_path: Path
) -> None:
    own: dict[str, Any] = {}
    if model == "E4SRec":  # any vectors, in place of a first stage
        vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
        np.savez(tmp_path / "ids.npz", item_ids=[f"i{n}" for n in range(40)], vectors=vectors)
        own = {"id_vectors": str(tmp_path / "ids.npz")}
    (result,) = api.run(model, "cycle", settings=given | own)
    assert result["language"]["nll_change"] != 0


def test_models_without_a_language_say_nothing(given: dict[str, Any]) -> None:
    untrained = {"backbone": "untrained", "backbone_args": TINY_BACKBONE}
    small = {"hidden_size": 16, "n_heads": 2, "n_layers": 1}
    for model, own in (("IDTransformer", {}), ("IDIOMoE", untrained), ("SASRecCE", small)):
        (result,) = api.run(model, "cycle", settings=given | own)
        assert "language" not in result
    assert "ΔNLL" not in table([result])


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b" \n", "is empty"), (b"\xff\xfe", "is not UTF-8")],
    ids=str,
)
def test_a_file_without_text_is_refused_before_training(
    content: bytes | None, said: str, given: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    for places in ({}, {"leaderboard": "board"}):
        with pytest.raises(SettingError, match=said) as error:
            api.run("IDIOMoE", "cycle", settings=given | {"language_file": str(path)}, **places)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not Path("board").exists() and not list(Path().glob("saved/*"))
