"""A session gives what a recommender gives for the same history, and computes little of it."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.lm import ARCHITECTURES, IdiomoeForCausalLM
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.recommend.recommender import Recommender
from tests.helpers import options_of
from tests.models.test_catalog_lm import CPU, LOUD

ITEMS = 40
TITLES = [
    " ".join(f"thing{(n * 7 + word) % 30}" for word in range(1 + n % 5)) for n in range(ITEMS)
]
IDS = [f"i{n}" for n in range(ITEMS)]


def build(architecture: str = "two_expert", max_history: int = 50, **options: Any) -> Recommender:
    texts = [f"title: {title}" for title in TITLES]
    catalog = Catalog(["[PAD]", *IDS], ["", *TITLES], ["", *texts])
    given = {"backbone": "untrained", "backbone_args": LOUD, "expert_width": 1.0} | options
    settings = options_of(architecture).from_mapping(given)
    model = CatalogLM.build(catalog, settings, seed=0, device=CPU, architecture=architecture).eval()
    return wrap(model, max_history)


def wrap(model: CatalogLM, max_history: int) -> Recommender:
    run = {"model": "IDIOMoE", "settings": {"seed": 0}}
    return Recommender(model.catalog, model.scores, max_history, run, model)


def random_items(count: int, seed: int = 0) -> list[str]:
    """Item ids, some of them more than once."""
    return np.random.default_rng(seed).choice(IDS, size=count).tolist()


class Computed:
    """Tokens that the trunk computes."""

    def __init__(self, recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
        assert recommender.catalog_lm is not None
        self.model = recommender.catalog_lm
        self.tokens = 0
        original = self.model.lm.hidden_states

        def counted(input_ids: torch.Tensor, *args: Any, **options: Any) -> Any:
            self.tokens += input_ids.numel()
            return original(input_ids, *args, **options)

        monkeypatch.setattr(self.model.lm, "hidden_states", counted)

    def during(self, run: Any) -> int:
        before = self.tokens
        run()
        return self.tokens - before

    def length(self, history: list[str]) -> int:
        """Tokens of a history that is read whole."""
        (sequence,) = self.model.sequences([self.model.catalog.rows(history)])
        return len(sequence.input_ids)


def assert_same(session: Any, recommender: Recommender, **options: Any) -> None:
    """The whole ranking, but for items whose scores are within rounding of each other."""
    wanted = recommender.recommend(session.history, k=ITEMS, **options)
    found = session.recommend(k=ITEMS, **options)
    expected = {item.item_id: item.score for item in wanted}
    assert expected.keys() == {item.item_id for item in found} and len(found) == len(wanted)
    # A score that is near 0 is a sum of terms that are not, and is rounded as they are.
    rounding = 1e-5 * max(abs(score) for score in expected.values())
    for ours, place in zip(found, wanted, strict=True):
        assert ours.score == pytest.approx(expected[ours.item_id], abs=rounding)
        assert ours.score == pytest.approx(place.score, abs=rounding)


WINDOWS = {
    "roomy": {},
    "tokens run out": {"max_tokens": 48},
    "items run out": {"max_history": 6},
    "both": {"max_tokens": 40, "max_history": 9},
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize(
    "options",
    [{}, {"segment_order": "ID text"}, {"use_text": False}, {"instruction": None}],
    ids=str,
)
def test_an_extended_history_ranks_as_a_whole_one(
    options: dict[str, Any], window: dict[str, Any]
) -> None:
    recommender = build(**options, **window)
    rng = np.random.default_rng(3)
    for seed, start in enumerate((0, 1, 5)):
        items = random_items(22, seed)
        session = recommender.session(items[:start])
        for item in items[start:]:
            session.add(item)
            if rng.random() < 0.7:  # two items may come between two questions
                assert_same(session, recommender, exclude_seen=bool(rng.random() < 0.5))
        assert session.history == items


@pytest.mark.parametrize("options", [{}, {"segment_order": "ID text"}, {"use_text": False}])
def test_only_new_tokens_are_computed(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = build(**options)
    computed = Computed(recommender, monkeypatch)
    items = random_items(20)
    session = recommender.session(items[:8])
    assert computed.during(session.recommend) == computed.length(items[:8])
    for count in range(9, 21):
        assert computed.during(lambda n=count: session.add(items[n - 1])) == 0
        new = computed.length(items[:count]) - computed.length(items[: count - 1])
        assert computed.during(session.recommend) == new
    assert computed.during(session.recommend) == 1  # only what predicts


def test_of_a_moved_window_what_it_still_begins_with_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recommender = build(max_history=6)
    computed = Computed(recommender, monkeypatch)
    items = random_items(8)
    session = recommender.session(items[:6])
    session.recommend()
    session.add(items[6])
    before, after = (
        sequence.input_ids.tolist()
        for sequence in computed.model.sequences(
            [computed.model.catalog.rows(window) for window in (items[:6], items[1:7])]
        )
    )
    kept = next(n for n in range(len(after)) if after[n] != before[n])
    assert kept >= len(computed.model.builder.instruction) > 2
    assert computed.during(session.recommend) == len(after) - kept


def test_a_query_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = build(query_share=0.5)
    computed = Computed(recommender, monkeypatch)
    session = recommender.session(random_items(10))
    for query in (None, "thing3 please", "thing4", None):
        assert_same(session, recommender, query=query)
    assert computed.during(session.recommend) == 1
    nobody = recommender.session()
    assert_same(nobody, recommender, query="thing3")
    nobody.add("i3")
    assert_same(nobody, recommender)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_keeps_what_it_computed(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if architecture in ("lora", "e4srec", "cove"):
        pytest.importorskip("peft")
    untied = architecture in ("e4srec", "cove")  # these items do not start from text
    recommender = build(architecture, **({"item_init": "random"} if untied else {}))
    computed = Computed(recommender, monkeypatch)
    session = recommender.session(random_items(5))
    for item in random_items(4, seed=1):
        session.add(item)
        assert_same(session, recommender)
    assert computed.during(session.recommend) == 1


def test_a_sliding_window_is_kept_to() -> None:
    """Keys beyond the window are hidden, but there when a shorter sequence wants them."""
    model = build(query_share=0.5).catalog_lm
    assert model is not None
    offset = model.lm.config.item_token_offset
    torch.manual_seed(0)
    backbone = MistralForCausalLM(MistralConfig(**LOUD, vocab_size=offset, sliding_window=12))
    model.lm = IdiomoeForCausalLM.from_backbone(backbone.eval(), ITEMS + 1)
    recommender = wrap(model, max_history=50)
    session = recommender.session(random_items(6))
    for item in random_items(4, seed=1):
        session.add(item)
        assert_same(session, recommender)
        assert_same(session, recommender, query="thing3 thing4 thing5")


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "intra_inter"},
        {"attention": "own_text"},
        {"item_tokens": "title", "use_text": False, "item_init": "random"},
        {"item_tokens": "semantic", "use_text": False, "semantic_codebook_size": 4},
    ],
    ids=str,
)
def test_where_nothing_can_be_kept_all_is_computed(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.get("item_tokens") == "semantic":
        pytest.importorskip("vector_quantize_pytorch")
    recommender = build(**options)
    computed = Computed(recommender, monkeypatch)
    items = random_items(5)
    session = recommender.session(items[:3])
    for item in items[3:]:
        session.add(item)
        assert_same(session, recommender)
    assert computed.during(session.recommend) >= computed.length(items)


def test_an_interrupted_computation_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = build()
    session = recommender.session(random_items(5))
    session.recommend()
    assert recommender.catalog_lm is not None
    last = recommender.catalog_lm.lm.backbone.model.layers[-1]

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    session.add("i3")
    with monkeypatch.context() as patch:
        patch.setattr(last, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.recommend()
    assert_same(session, recommender)


def test_sessions_do_not_mix() -> None:
    recommender = build()
    one, other = recommender.session(["i1", "i2"]), recommender.session(["i7"])
    for item in random_items(3):
        one.add(item)
        assert_same(other, recommender)
        assert_same(one, recommender)
        other.add(item)


def test_items_that_are_added_later_are_ranked_and_known() -> None:
    recommender = build(item_text_fields={"title": "title"}, item_template="title: {title}")
    session = recommender.session(["i1", "i2"])
    session.recommend()
    recommender.add_items([{"item_id": "new", "title": TITLES[3]}])
    assert "new" in {item.item_id for item in session.recommend(k=ITEMS + 1)}
    session.add("new")
    assert_same(session, recommender)


def test_what_cannot_be_is_refused() -> None:
    recommender = build()
    with pytest.raises(DataError, match="'x'"):
        recommender.session(["i1", "x"])
    with pytest.raises(DataError, match="one string"):
        recommender.session("i1")
    session = recommender.session()
    with pytest.raises(DataError, match="history is empty"):
        session.recommend()
    session.add("i1")
    with pytest.raises(DataError, match="'x'"):
        session.add("x")
    assert session.history == ["i1"]
    assert_same(session, recommender)
    with pytest.raises(DataError, match="k=0"):
        session.recommend(k=0)
