"""Several threads that use one recommender get what one thread gets, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import torch

from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.recommend.recommender import Recommendation, Recommender
from tests.recommend import test_session
from tests.recommend.test_session import IDS, random_items

THREADS = 8
REQUESTS = 400
DIFFERENT = 40
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
MODELS: dict[str, dict[str, Any]] = {
    "IDIOMoE": {},
    "MoT": {"architecture": "mot"},
    "SwitchRouting": {"architecture": "switch"},
    "attention between items": {"attention": "intra_inter"},
    "attention to own text": {"attention": "own_text"},
    "titles": {"item_tokens": "title", "use_text": False, "item_init": "random"},
}
Answer = list[Recommendation]

every_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)


def build(options: dict[str, Any]) -> Recommender:
    return test_session.build(backbone_args=SMALL, **options)


def history(number: int) -> list[str]:
    return random_items(1 + number % 11, seed=number)


def asked(recommender: Recommender, number: int) -> Answer:
    """Ask a recommender, every third time with a query."""
    query = f"thing{number % 30}" if number % 3 == 0 else None
    return recommender.recommend(history(number), k=5, query=query)


def asked_in_a_session(recommender: Recommender, number: int) -> Answer:
    """Ask twice in a session of one's own, whose history grows."""
    session = recommender.session(history(number))
    found = session.recommend(k=3)
    session.add(IDS[number % len(IDS)])
    return found + session.recommend(k=3)


@contextmanager
def another_thread_that(repeats: Callable[[], Any]) -> Iterator[list[Any]]:
    """Inside the block, a thread calls ``repeats`` again and again; its results are listed."""
    stop, results = Event(), []

    def repeat() -> None:
        while not stop.is_set():
            results.append(repeats())

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(repeat)
        try:
            yield results
        finally:
            stop.set()
        running.result()


@pytest.mark.parametrize("ask", [asked, asked_in_a_session])
@every_model
def test_requests_at_once_get_the_answers_of_one_after_another(
    ask: Callable[[Recommender, int], Answer], options: dict[str, Any]
) -> None:
    count, different = (REQUESTS, DIFFERENT) if ask is asked else (REQUESTS // 4, DIFFERENT // 4)
    if "item_tokens" in options:  # ranks whole titles, which takes long
        count, different = count // 8, different // 8
    elif options.get("attention") == "own_text":  # another mask of attention between items
        count, different = count // 4, different // 4
    recommender = build(options)
    wanted = [ask(recommender, number) for number in range(different)]
    with ThreadPoolExecutor(THREADS) as pool:
        requests = [number % different for number in range(count)]
        found = list(pool.map(lambda number: ask(recommender, number), requests))
    assert found == [wanted[number] for number in requests]


@every_model
def test_a_model_that_loads_elsewhere_changes_nothing(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """The loading thread sets torch's default dtype, which is that of the whole process."""
    recommender = build(options)
    wanted = [asked(recommender, number) for number in range(20)]
    assert recommender.catalog_lm is not None
    saved = build(options).catalog_lm
    assert saved is not None
    weights = saved.lm.bfloat16().state_dict()
    saved.lm.save_pretrained(tmp_path)
    with (
        another_thread_that(lambda: IdiomoeForCausalLM.from_pretrained(tmp_path)) as loaded,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        found = list(pool.map(lambda number: asked(recommender, number), range(20)))
    assert found == wanted and loaded
    assert all(torch.equal(w, loaded[-1].state_dict()[name]) for name, w in weights.items())


@every_model
def test_answers_do_not_depend_on_torchs_default_dtype(options: dict[str, Any]) -> None:
    recommender = build(options)
    wanted = [asked(recommender, number) for number in range(6)]
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            assert [asked(recommender, number) for number in range(6)] == wanted
        finally:
            torch.set_default_dtype(torch.float32)


def test_threads_may_share_a_session() -> None:
    recommender = build({})
    session = recommender.session(history(7))
    wanted = session.recommend(k=5)

    def ask(number: int) -> Answer:
        return session.recommend(k=5, query=None if number % 2 else "thing3 thing4")

    other = ask(0)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(ask, range(80)))
    for number, answer in enumerate(found):
        expected = wanted if number % 2 else other
        assert [item.item_id for item in answer] == [item.item_id for item in expected]
        scores = [item.score for item in expected]
        assert [item.score for item in answer] == pytest.approx(scores, abs=1e-4)


def test_threads_that_load_at_once_all_get_the_model(tmp_path: Path) -> None:
    model = build({}).catalog_lm
    assert model is not None
    model.lm.save_pretrained(tmp_path)
    start = Barrier(THREADS)

    def load(_: int) -> IdiomoeForCausalLM:
        start.wait()
        return IdiomoeForCausalLM.from_pretrained(tmp_path)

    with ThreadPoolExecutor(THREADS) as pool:
        for loaded in pool.map(load, range(THREADS)):
            weights = loaded.state_dict()
            assert all(torch.equal(w, weights[name]) for name, w in model.lm.state_dict().items())
            backbone = loaded.backbone
            assert backbone.get_output_embeddings().weight is backbone.get_input_embeddings().weight


def test_an_interrupted_request_leaves_its_thread_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recommender = build({})
    wanted = recommender.recommend(["i1", "i2"])
    assert recommender.catalog_lm is not None
    backbone = recommender.catalog_lm.lm.backbone
    tokens = torch.arange(5)[None]
    text = backbone(tokens).logits

    def fail(*args: Any) -> Any:
        raise KeyError

    with monkeypatch.context() as patch:
        patch.setattr(backbone.model.layers[-1].mlp.item_expert, "forward", fail)
        with pytest.raises(KeyError):
            recommender.recommend(["i3"])
    assert torch.equal(backbone(tokens).logits, text)
    assert recommender.recommend(["i1", "i2"]) == wanted
