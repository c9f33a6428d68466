"""A training step never waits for the device: nothing on the host depends on what a tensor holds.

On a GPU each such look drains the queue of work. Here it is told from the operators that run.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_idiomoe.data.batch import SequenceBatch, collate
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from tests.helpers import TINY_BACKBONE, options_of, training_sequence

CPU = torch.device("cpu")
NEEDS_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
MASKED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
TO_THE_HOST = {"tolist", "numpy", "cpu", "__array__"}


class Operators(TorchDispatchMode):
    """What runs inside: operators that do work, and those whose outcome the host must see.

    Attributes:
        counts: of operators that are not views, by name.
        waits: names of operators whose result, or its shape, depends on what a tensor holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []
        self._methods = _HostMethods(self.waits)

    def __enter__(self) -> Any:
        self._methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func._schema.name
        if name in MASKED:  # by numbers it is a plain gather or scatter, by a mask a nonzero
            indices = args[1]
            if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
                self.waits.append(name)
        elif NEEDS_VALUES & set(func.tags):
            self.waits.append(name)
        if not func.is_view:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _HostMethods(TorchFunctionMode):
    """Methods that read a tensor without an operator where it is on the CPU anyway."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if (name := getattr(func, "__name__", "")) in TO_THE_HOST:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def build(architecture: str = "two_expert", layers: int = 2, **options: Any) -> CatalogLM:
    titles = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in "ABCD"]
    ids = [f"i{row}" for row in range(1, len(titles) + 1)]
    catalog = Catalog(["[PAD]", *ids], ["", *titles], ["", *titles])
    backbone_args = TINY_BACKBONE | {"num_hidden_layers": layers}
    settings = options_of(architecture).from_mapping(
        {"backbone": "untrained", "backbone_args": backbone_args, "dropout": 0.1} | options
    )
    model = CatalogLM.build(catalog, settings, seed=0, device=CPU, architecture=architecture)
    return model.train()


def make_batch(model: CatalogLM) -> SequenceBatch:
    rng = np.random.default_rng(1)
    with_text = model.settings.use_text
    windows = [rng.integers(1, 13, size=length) for length in (3, 9, 5, 2)]
    sequences = [training_sequence(model.builder, window, with_text) for window in windows]
    return collate(sequences, model.pad_token_id)


def train_step(model: CatalogLM, batch: SequenceBatch) -> Operators:
    model.loss(batch).backward()  # gradients are there from now on, as in all steps but one
    with Operators() as operators:
        model.loss(batch).backward()
    return operators


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_text": False},
        {"segment_order": "ID text", "softmax": "hybrid", "text_loss_weight": 0.5},
        {"attention": "intra_inter"},
        {"attention": "own_text", "use_text": False},
        {"item_embedding_dim": 8, "item_text_added": True},
        {"item_tokens": "title", "use_text": False},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_a_training_step_never_waits(options: dict[str, Any]) -> None:
    model = build(**options)
    assert train_step(model, make_batch(model)).waits == []


@pytest.mark.parametrize(
    "architecture", ["dense", "moa", "mot", "wide_ffn", "append_blocks", "prepend_blocks"]
)
def test_nor_does_a_step_of_the_other_architectures(architecture: str) -> None:
    model = build(architecture)
    assert train_step(model, make_batch(model)).waits == []


def test_waits_are_noticed() -> None:
    model = build()
    batch = make_batch(model)
    with Operators() as operators:
        model.lm.hidden_states(batch.input_ids, batch.token_types)  # items not counted before
    assert operators.waits == ["aten::_local_scalar_dense"]
    numbers = torch.arange(4)
    for look in (
        lambda: numbers[0].item(),
        lambda: bool(numbers.any()),
        lambda: numbers[numbers > 2],
        lambda: numbers.index_put_((numbers > 2,), numbers[0]),
        lambda: numbers.tolist(),
        lambda: numbers.cpu(),
    ):
        with Operators() as operators:
            look()
        assert len(operators.waits) == 1


def test_the_counted_types_are_those_that_the_batch_holds() -> None:
    """Bit for bit the loss and gradients of a model that counts by itself."""
    model = build(dropout=0.0, softmax="hybrid", text_loss_weight=0.5)
    batch = make_batch(model)
    assert 0 < batch.item_tokens < batch.token_types.numel()
    outcomes = []
    for item_tokens in (batch.item_tokens, None):
        model.zero_grad()
        loss = model.loss(replace(batch, item_tokens=item_tokens))  # type: ignore[arg-type]
        loss.backward()
        outcomes.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


def operators_a_layer(architecture: str) -> int:
    """Operators that a further layer adds to a training step."""
    totals = []
    for layers in (2, 3):
        model = build(architecture, layers, dropout=0.0)
        totals.append(train_step(model, make_batch(model)).counts.total())
    return totals[1] - totals[0]


def test_the_operators_of_a_layer_are_few() -> None:
    """On small batches every operator shows, so that one more is to be a choice, not a slip."""
    # The other expert: 5 forward, 10 backward, 3 to add up its weights' gradients. Sorting by
    # type and back: 3 forward, 5 backward; less 3 reshapings, which sorted tokens do without.
    assert operators_a_layer("two_expert") - operators_a_layer("dense") <= 23
