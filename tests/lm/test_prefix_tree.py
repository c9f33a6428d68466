"""Leaves of a prefix tree against every code spelt out as a sequence of its own."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_idiomoe.lm import IdiomoeForCausalLM, prefix_tree
from recbole_idiomoe.lm.prefix_tree import PrefixTree, rank_leaves
from tests.lm.decoders import FAMILIES, ITEMS, VOCAB, decoder, mixed_batch

END = 30
# In text tokens, each with an end: some begin alike, two are the same.
TITLES = [
    [[1, 2, 3], [1, 2, 4], [1, 5], [6], [1, 2, 3], [7, 1, 2, 3], [], [1, 2, 3, 4, 5, 6]][i] + [END]
    for i in range(8)
]
# In item tokens: two levels, and a last token where two collide.
CODES = [[1, 4], [1, 5, 7], [1, 5, 8], [2, 4], [2, 5], [3, 6]]


def model(family: str) -> IdiomoeForCausalLM:
    return IdiomoeForCausalLM.from_backbone(decoder(family), ITEMS, expert_init="random").eval()


def arrays(codes: list[list[int]], offset: int = 0) -> list[np.ndarray]:
    return [np.array(code, dtype=np.int64) + offset for code in codes]


def one_by_one(
    lm: IdiomoeForCausalLM,
    history: torch.Tensor,
    code: np.ndarray,
    logits: Callable[[torch.Tensor], torch.Tensor],
    first_token: int,
) -> torch.Tensor:
    spelt = torch.cat((history, torch.from_numpy(code)))
    with torch.no_grad():
        states = lm.hidden_states(spelt.unsqueeze(0)).last_hidden_state
    assert states is not None
    log_probs = logits(states[0]).float().log_softmax(-1)
    at = torch.arange(len(history) - 1, len(spelt) - 1)
    return log_probs[at, torch.from_numpy(code) - first_token].sum()


@pytest.mark.parametrize("piece_size", [1, 3, 100])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelling", ["text", "items"])
def test_every_leaf_scores_as_its_code_alone(family: str, spelling: str, piece_size: int) -> None:
    lm = model(family)
    codes = arrays(TITLES) if spelling == "text" else arrays(CODES, VOCAB)
    logits, first = (lm.text_logits, 0) if spelling == "text" else (lm.item_logits, VOCAB)
    histories, lengths = mixed_batch(3, 9), torch.tensor([9, 4, 1])
    tree = PrefixTree(codes, piece_size=piece_size)
    types = (histories >= VOCAB).long()
    found = rank_leaves(lm, tree, histories, types, lengths, logits, first)
    wanted = torch.stack(
        [
            torch.stack([one_by_one(lm, history[:n], code, logits, first) for code in codes])
            for history, n in zip(histories, lengths, strict=True)
        ]
    )
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    assert found.std(dim=1).min() > 0.1 and not torch.allclose(found[0], found[1], atol=0.1)


def test_the_probabilities_of_a_complete_tree_add_up_to_one() -> None:
    lm = model("qwen2")
    # Every pair of item tokens; the padding token has no probability.
    codes = [[one, two] for one in range(1, ITEMS) for two in range(1, ITEMS)]
    histories = mixed_batch(2, 6)
    tree = PrefixTree(arrays(codes, VOCAB))
    scores = rank_leaves(
        lm, tree, histories, histories >= VOCAB, torch.tensor([6, 3]), lm.item_logits, VOCAB
    )
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2), atol=1e-5, rtol=0)


def test_scores_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, histories = model("qwen2"), mixed_batch(2, 6)
    tree = PrefixTree(arrays(TITLES))
    asked = (lm, tree, histories, histories >= VOCAB, torch.tensor([6, 3]), lm.text_logits)
    whole = rank_leaves(*asked)
    monkeypatch.setattr(prefix_tree, "LOGITS", 3 * 2 * VOCAB)
    torch.testing.assert_close(rank_leaves(*asked), whole, atol=1e-5, rtol=1e-5)


def test_what_is_shared_is_computed_once() -> None:
    tree = PrefixTree(arrays(TITLES))
    # 1, 12, 123, 1234, 12345, 123456, 124, 15, 6, 7, 71, 712, 7123: the root is the history.
    assert sum(len(piece.nodes) for piece in tree.pieces) == 13
    assert tree.leaves[0] == tree.leaves[4] and len(set(tree.leaves.tolist())) == 7


@given(
    codes=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=30),
    piece_size=st.integers(1, 12),
)
def test_every_edge_is_in_exactly_one_piece(codes: list[list[int]], piece_size: int) -> None:
    spelt = [[*code, 9] for code in codes]
    tree = PrefixTree(arrays(spelt), piece_size=piece_size)
    children = [c for piece in tree.pieces for c in piece.children.tolist()]
    roots = (tree.parents < 0).nonzero().squeeze(1).tolist()
    assert sorted(children + roots) == list(range(len(tree)))
    for piece in tree.pieces:
        assert torch.equal(piece.nodes[piece.parents], tree.parents[piece.children])
        sees = tree.sees(piece.nodes)
        for row, node in zip(sees, piece.nodes.tolist(), strict=True):
            path = [node]
            while int(tree.parents[path[-1]]) >= 0:
                path.append(int(tree.parents[path[-1]]))
            assert piece.nodes[row].tolist() == path[::-1]
    # A leaf's score is the sum over its path: with -1 an edge, minus its length.
    scores = tree.scores(torch.full((2, len(tree)), -1.0))
    assert scores.tolist() == [[-float(len(code)) for code in spelt]] * 2


def test_a_code_that_begins_another_is_refused() -> None:
    with pytest.raises(ValueError, match="begins another"):
        PrefixTree(arrays([[1, 2], [1, 2, 3]]))
