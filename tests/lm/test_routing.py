from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from recbole_idiomoe.lm import TokenRouting


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
    routing = TokenRouting()
    routing.set(types)
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
    routing = TokenRouting()
    routing.set(torch.full((2, 3), kind))
    inputs = torch.randn(2, 3, 4)

    def record(x):
        seen.append(x)
        return x

    def never(x):
        raise AssertionError("the other expert ran")

    outputs = routing.dispatch(inputs, *((never, record) if kind else (record, never)))
    assert seen[0] is inputs and outputs is inputs


def test_unset_and_cleared_mean_text():
    routing = TokenRouting()
    inputs = torch.ones(1, 2, 1)
    assert routing.dispatch(inputs, torch.neg, torch.exp).eq(-1).all()
    routing.set(torch.ones(5, 5))
    routing.clear()
    assert routing.dispatch(inputs, torch.neg, torch.exp).eq(-1).all()


def test_another_batch_is_refused():
    routing = TokenRouting()
    routing.set(torch.tensor([[0, 1]]))
    with pytest.raises(RuntimeError, match=r"\(1, 2\).*\(2, 1\)"):
        routing.dispatch(torch.ones(2, 1, 4), torch.neg, torch.exp)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_route_alike_and_stay_shared(clone):
    routing = TokenRouting()
    routing.set(torch.tensor([[0, 1, 1]]))
    first, second = clone([routing, routing])
    assert first is second and first is not routing
    inputs = torch.randn(1, 3, 2)
    assert torch.equal(
        first.dispatch(inputs, torch.neg, torch.exp), routing.dispatch(inputs, torch.neg, torch.exp)
    )
