"""Neurons whose neighbours are planted."""

import math

import pytest
import torch

from recbole_idiomoe.analysis.neurons import (
    ITEM_EXPERT,
    NO_CATEGORY,
    TEXT_EXPERT,
    References,
    measure,
    summary,
    value_vectors,
)
from recbole_idiomoe.lm import IdiomoeForCausalLM, decoder_layers
from recbole_idiomoe.lm.decoder import ffn_names
from tests.lm.decoders import FAMILIES, ITEMS, decoder

# Items 1 to 4 point along the first axis and are of category 0, items 5 to 8 along the second, of
# categories 1, 1, 2 and none; text tokens point along the third.
VECTORS = torch.eye(4)[[3, 0, 0, 0, 0, 1, 1, 1, 1]] + 0.01 * torch.arange(9.0)[:, None]
CATEGORIES = torch.tensor([NO_CATEGORY, 0, 0, 0, 0, 1, 1, 2, NO_CATEGORY])
ITEM_ROWS = References("items", torch.arange(1, 9), lambda ids: VECTORS[ids])
TEXT = References("text", torch.arange(6), lambda ids: torch.eye(4)[2].expand(len(ids), 4))
ON_ITEMS, ON_OTHERS, ON_TEXT, _ = torch.eye(4)


def test_a_planted_cluster_is_pure_and_its_neuron_prefers_items() -> None:
    values = torch.stack((5 * ON_ITEMS, 5 * ON_OTHERS, ON_TEXT, torch.zeros(4)))
    found = measure(values, ITEM_ROWS, TEXT, CATEGORIES, k=4)
    assert set(found.items[0].tolist()) == {1, 2, 3, 4}
    assert found.purity[:2].tolist() == [1.0, 0.5]  # the item without a category is of none
    assert found.category[:2].tolist() == [0, 1]
    assert found.affinity[0] > 0.95 and found.affinity[2] < -0.9
    assert found.affinity[3].isnan() and found.purity[3].isnan()
    row = summary([found], tau=0.5)
    assert row["neurons"] == 3  # the one that points nowhere is left out
    purity = found.purity[:3].double()
    assert row["purity"] == pytest.approx(float(purity.mean()))
    assert row["clustered"] == pytest.approx(float((purity >= 0.5).double().mean()))
    assert summary([found], tau=0.75)["clustered"] == pytest.approx(1 / 3)
    assert summary([found], tau=1.0)["clustered"] == pytest.approx(1 / 3)


def test_affinity_is_the_difference_of_medians() -> None:
    angles = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    vectors = torch.stack((angles.cos(), angles.sin()), dim=1)
    items = References("items", torch.arange(5), lambda ids: vectors[ids])
    words = References("text", torch.arange(5), lambda ids: torch.ones(len(ids), 2))
    neuron, none = torch.tensor([[1.0, 0.0]]), torch.full((5,), NO_CATEGORY)
    for k, median in ((3, math.cos(0.2)), (4, (math.cos(0.2) + math.cos(0.3)) / 2)):
        found = measure(neuron, items, words, none, k)
        assert found.affinity.item() == pytest.approx(median - math.cos(math.pi / 4), abs=1e-6)
        assert found.purity.item() == 0 and found.category.item() == NO_CATEGORY


def test_a_layer_in_which_no_neuron_points_anywhere_has_no_numbers() -> None:
    row = summary([measure(torch.zeros(2, 4), ITEM_ROWS, TEXT, CATEGORIES, k=2)], tau=0.5)
    assert row["neurons"] == 0 and math.isnan(row["purity"]) and math.isnan(row["clustered"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_vector_is_what_its_neuron_adds(family: str) -> None:
    """Of every family: FFN(x) is the neurons' activations times their value vectors."""
    lm = IdiomoeForCausalLM.from_backbone(decoder(family), ITEMS, expert_width=0.5)
    block, name = decoder_layers(lm.backbone)[1], ffn_names(lm.backbone)[1]
    found = value_vectors(block, name)
    assert list(found) == [ITEM_EXPERT, TEXT_EXPERT]
    for expert, module in zip(found, (0, 1), strict=True):
        ffn = getattr(block, name)
        ffn = (ffn.item_expert, ffn.text_expert)[module]
        inputs: list[torch.Tensor] = []
        last = [child for child in ffn.modules() if hasattr(child, "weight")][-1]
        hook = last.register_forward_pre_hook(lambda _, given, seen=inputs: seen.append(given[0]))
        with torch.no_grad():
            output = ffn(torch.randn(3, 16))
        hook.remove()
        bias = 0 if last.bias is None else last.bias
        assert found[expert].shape == (12 if module == 0 else 24, 16)
        torch.testing.assert_close(inputs[0] @ found[expert] + bias, output)


@pytest.mark.parametrize(
    ("architecture", "experts"),
    [
        ("dense", {"FFN": 24}),
        ("wide_ffn", {"FFN": 48}),
        ("switch", {"expert 0": 24, "expert 1": 24}),
        ("mot", {ITEM_EXPERT: 24, TEXT_EXPERT: 24}),
    ],
)
def test_every_architecture_has_its_neurons(architecture: str, experts: dict[str, int]) -> None:
    lm = IdiomoeForCausalLM.from_backbone(
        decoder(), ITEMS, architecture=architecture, expert_layers="all"
    )
    for block, name in zip(decoder_layers(lm.backbone), ffn_names(lm.backbone), strict=True):
        assert {k: len(v) for k, v in value_vectors(block, name).items()} == experts


def test_an_adapter_is_part_of_the_value_vectors() -> None:
    pytest.importorskip("peft")
    lm = IdiomoeForCausalLM.from_backbone(decoder(), ITEMS, architecture="lora")
    block, name = decoder_layers(lm.backbone)[0], ffn_names(lm.backbone)[0]
    projection = getattr(block, name).down_proj
    with torch.no_grad():
        for part in projection.lora_B.values():
            part.weight.normal_()
        wanted = torch.stack([projection(row) for row in torch.eye(24)])
    (found,) = value_vectors(block, name).values()
    torch.testing.assert_close(found, wanted)
