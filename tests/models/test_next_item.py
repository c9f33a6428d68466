"""What the baselines that predict at every position have in common."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from recbole_idiomoe import api
from recbole_idiomoe.models.next_item import next_items, sampled_softmax
from tests.models.tiny_baselines import ITEMS, SMALL, build, interaction
from tests.training.cycle import TINY, write_cycle

NEURAL = ["SASRecCE", "SASRecSS", "HSTU"]
HISTORIES = [[3, 9, 4, 9, 1], [7], [2, 5, 6, 8, 1, 2, 3]]


@pytest.mark.parametrize("name", NEURAL)
def test_no_state_depends_on_what_comes_later(name: str, tmp_path: Path) -> None:
    """The gradient of each state by each input is zero exactly where the input is later."""
    model = build(name, tmp_path)
    looked_up: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        looked_up.append(output.detach().requires_grad_())
        return looked_up[-1]

    model.items.register_forward_hook(keep)
    row = interaction([[3, 9, 4, 7, 1, 2]])
    states = model.states(row)
    for position in range(6):
        weights = torch.arange(1.0, 17.0)  # an even sum of a normed state is constant
        (gradient,) = torch.autograd.grad(
            (states[0, position] * weights).sum(), looked_up[0], retain_graph=True
        )
        reached = gradient[0].abs().sum(dim=1) > 0
        assert reached.tolist() == [other <= position for other in range(6)]


@pytest.mark.parametrize("name", NEURAL)
def test_padding_and_company_change_nothing(name: str, tmp_path: Path) -> None:
    model = build(name, tmp_path)
    together = model.full_sort_predict(interaction(HISTORIES))
    assert together.shape == (3, ITEMS + 1)
    for row, history in enumerate(HISTORIES):
        alone = model.full_sort_predict(interaction([history]))
        torch.testing.assert_close(together[row], alone[0])
    targets = [8, 2, 40]
    own = model.predict(interaction(HISTORIES, targets))
    torch.testing.assert_close(own, together[range(3), targets])


@pytest.mark.parametrize("name", NEURAL)
def test_order_is_read(name: str, tmp_path: Path) -> None:
    model = build(name, tmp_path)
    one, other = model.full_sort_predict(interaction([[3, 9, 4], [9, 3, 4]]))
    assert (one - other).abs().max() > 1e-4


def test_targets_are_the_items_after() -> None:
    items = torch.tensor([[3, 9, 4], [7, 0, 0], [2, 5, 0]])
    found = next_items(items, torch.tensor([3, 1, 2]), torch.tensor([11, 12, 13]))
    assert found.tolist() == [[9, 4, 11], [12, 0, 0], [5, 13, 0]]


def test_cross_entropy_is_over_all_items_at_every_position(tmp_path: Path) -> None:
    """Once for each target, as many prefixes as RecBole would make rows of."""
    model = build("SASRecCE", tmp_path)
    targets = [8, 2, 40]
    losses = []
    for history, last in zip(HISTORIES, targets, strict=True):
        whole = [*history, last]
        states = model.states(interaction([history]))[0]
        for position, target in enumerate(whole[1:]):
            scores = (states[position] @ model.item_vectors().T).double()
            losses.append(-scores[1:].log_softmax(dim=0)[target - 1])
    loss = model.calculate_loss(interaction(HISTORIES, targets))
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("items", [6, 60], ids=["small catalogue", "large catalogue"])
def test_sampled_softmax_is_that_of_the_items_drawn(
    items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, states = torch.randn(items, 4), torch.randn(3, 4)
    targets = torch.tensor([2, 5, 1])
    drawn = torch.tensor([[1, 2, 3, 3], [4, 4, 1, 2], [1, 1, 1, 1]])
    monkeypatch.setattr(torch, "randint", lambda low, high, size, device: drawn)
    losses = []
    for state, target, row in zip(states, targets.tolist(), drawn.tolist(), strict=True):
        candidates = [target, *(item for item in row if item != target)]
        losses.append(-torch.log_softmax(table[candidates] @ state, dim=0)[0])
    found = sampled_softmax(states, targets, table, negatives=4)
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_draws_are_uniform_over_all_items_but_padding() -> None:
    """With all logits 0 but one, its share of the draws is what the loss shows."""
    torch.manual_seed(0)
    table = torch.zeros(5, 1)
    for item in range(5):
        marked = table.index_fill(0, torch.tensor([item]), 1.0)
        states, targets = torch.full((2000, 1), 5.0), torch.full((2000,), 4)
        loss = sampled_softmax(states, targets, marked, negatives=1).item()
        # Of four items each is drawn a quarter of the time, the target among them.
        drawn, ties = functional.softplus(torch.tensor([5.0, 0.0])).tolist()
        low = functional.softplus(torch.tensor(-5.0)).item()
        wanted = {0: 0.75 * ties, 4: 0.75 * low}.get(item, 0.25 * drawn + 0.5 * ties)
        assert loss == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("name", NEURAL)
def test_heads_that_do_not_divide_the_width_are_refused(name: str, tmp_path: Path) -> None:
    path = write_cycle(tmp_path / "cycle", ITEMS)
    settings = TINY | SMALL[name] | {"data_path": str(path), "n_heads": 3}
    with pytest.raises(api.SettingError, match=r"hidden_size=16 .* n_heads=3"):
        api.run(name, "cycle", settings=settings)
