"""Which backbone a run's settings lead to."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.lm import load_backbone
from recbole_idiomoe.lm.vocabulary import train_tokenizer
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.options import LanguageModelOptions

CATALOG = Catalog(
    ["[PAD]", "a", "b", "c"], ["", "A", "B", "C"], ["", "title: A", "title: B", "title: C"]
)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A folder with a tiny GPT-2 with a tokenizer of its own."""
    tokenizer = train_tokenizer(CATALOG.texts, 300)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=len(tokenizer) + 5
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_brings_its_own_sizes(gpt2: Path) -> None:
    settings = LanguageModelOptions(backbone=str(gpt2))
    model = CatalogLM.build(CATALOG, settings, seed=0, device="cpu")
    assert model.lm.config.hidden_size == 16
    assert model.builder.max_tokens == 32  # the backbone's context, not the setting's 1024
    scores = model.scores([CATALOG.rows(["a", "b"])])
    assert scores.shape == (1, 4)
    assert scores[:, 1:].isfinite().all()


@pytest.mark.parametrize("backbone", ["bundled", "./gpt2"])
def test_sizes_meant_for_another_backbone_are_refused(backbone: str) -> None:
    settings = LanguageModelOptions(backbone=backbone, backbone_args={"hidden_size": 64})
    with pytest.raises(SettingError, match="brings its own sizes"):
        CatalogLM.build(CATALOG, settings, seed=0, device="cpu")


def test_the_default_is_the_bundled_decoder() -> None:
    settings = LanguageModelOptions(use_text=False, item_init="random")
    model = CatalogLM.build(CATALOG, settings, seed=0, device="cpu")
    backbone, tokenizer = load_backbone("bundled")
    assert model.lm.config.item_token_offset == len(tokenizer)
    embedding = model.lm.backbone.get_input_embeddings().weight
    assert torch.equal(embedding, backbone.get_input_embeddings().weight)


def test_the_backbones_own_states_start_the_item_table(gpt2: Path) -> None:
    settings = LanguageModelOptions(backbone=str(gpt2), text_encoder="backbone")
    started = CatalogLM.build(CATALOG, settings, seed=0, device="cpu").lm.item_table.weight()
    other = CatalogLM.build(
        CATALOG, LanguageModelOptions(backbone=str(gpt2), item_init="random"), seed=0, device="cpu"
    ).lm.item_table.weight()
    assert started.shape == other.shape
    assert not started[1:].allclose(other[1:])


def test_items_enter_as_long_as_the_settings_say(gpt2: Path) -> None:
    once, four = (
        CatalogLM.build(
            CATALOG,
            LanguageModelOptions(backbone=str(gpt2), item_scale=scale),
            seed=0,
            device="cpu",
        ).lm.config.item_input_factor
        for scale in (1.0, 4.0)
    )
    assert four == pytest.approx(4 * once)


@pytest.mark.gpu
def test_states_computed_on_a_gpu_leave_the_backbone_trainable(gpt2: Path) -> None:
    settings = LanguageModelOptions(backbone=str(gpt2), text_encoder="backbone")
    model = CatalogLM.build(CATALOG, settings, seed=0, device=torch.device("cuda"))
    assert all(p.requires_grad and not p.is_inference() for p in model.lm.parameters())
