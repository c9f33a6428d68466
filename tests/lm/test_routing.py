from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import TokenRouting
from recbole_idiomoe.lm.routing import ALL_TEXT, current_routing, routed


def reference(inputs, types, text, item):
    """Both experts on everything, then a choice: obviously right, twice the work."""
    return torch.where(types.bool()[..., None], item(inputs), text(inputs))


@pytest.fixture
def experts():
    torch.manual_seed(0)
    return nn.Linear(4, 6), nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6))


@pytest.mark.parametrize("seed", range(5))
def test_equals_boolean_masks_forward_and_backward(experts, seed):
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(0, 2, (3, 8), generator=generator)
    inputs = torch.randn(3, 8, 4, generator=generator, requires_grad=True)
    weights = [inputs, *experts[0].parameters(), *experts[1].parameters()]
    routing = TokenRouting(types)
    outputs = routing.dispatch(inputs, *experts)
    wanted = reference(inputs, types, *experts)
    torch.testing.assert_close(outputs, wanted)
    direction = torch.randn(outputs.shape, generator=generator)
    torch.testing.assert_close(
        torch.autograd.grad((outputs * direction).sum(), weights),
        torch.autograd.grad((wanted * direction).sum(), weights),
    )


@pytest.mark.parametrize("kind", [0, 1])
def test_a_batch_of_one_type_reaches_its_expert_as_it_is(kind):
    seen = []
    routing = TokenRouting(torch.full((2, 3), kind))
    inputs = torch.randn(2, 3, 4)

    def record(x):
        seen.append(x)
        return x

    def never(x):
        raise AssertionError("the other expert ran")

    outputs = routing.dispatch(inputs, *((never, record) if kind else (record, never)))
    assert seen[0] is inputs and outputs is inputs


def test_without_types_every_position_of_any_batch_is_text():
    for shape in ((1, 2, 1), (3, 5, 1)):
        inputs = torch.ones(shape)
        assert TokenRouting().dispatch(inputs, torch.neg, torch.exp).eq(-1).all()
    assert current_routing().dispatch(torch.ones(1, 2, 1), torch.neg, torch.exp).eq(-1).all()


def test_a_routing_holds_inside_its_block_and_in_its_thread_alone():
    outer, inner = TokenRouting(torch.ones(1, 2)), TokenRouting(torch.zeros(1, 2))
    with ThreadPoolExecutor(1) as elsewhere:
        with routed(outer):
            assert current_routing() is outer
            assert elsewhere.submit(current_routing).result() is ALL_TEXT
            with pytest.raises(KeyError), routed(inner):
                assert current_routing() is inner
                raise KeyError
            assert current_routing() is outer
        assert current_routing() is ALL_TEXT


def test_another_batch_is_refused():
    routing = TokenRouting(torch.tensor([[0, 1]]))
    with pytest.raises(SettingError, match=r"\(1, 2\).*\(2, 1\)") as error:
        routing.dispatch(torch.ones(2, 1, 4), torch.neg, torch.exp)
    assert "\n" not in str(error.value)
