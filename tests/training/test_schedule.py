import pytest

from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.training.schedule import Curriculum


def text_shares(epochs: int, warmup: float, ramp: float) -> list[float]:
    settings = LanguageModelOptions(item_warmup=warmup, text_ramp=ramp)
    curriculum = Curriculum(settings, epochs, eval_step=1)
    return [curriculum.text_share(epoch) for epoch in range(epochs)]


def test_items_alone_then_a_linear_rise_to_all() -> None:
    shares = text_shares(10, warmup=0.2, ramp=1.0)
    assert shares == pytest.approx([0, 0, *(n / 8 for n in range(1, 9))])


def test_an_early_ramp_stays_at_one() -> None:
    shares = text_shares(10, warmup=0.5, ramp=0.7)
    assert shares == pytest.approx([0] * 5 + [0.5, 1, 1, 1, 1])


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("warmup", "ramp"), [(0.0, 0.0), (0.2, 1.0), (0.5, 0.5), (0.9, 0.9)])
def test_shares_never_fall_and_end_at_one(epochs: int, warmup: float, ramp: float) -> None:
    shares = text_shares(epochs, warmup, ramp)
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    assert shares[-1] == 1


def test_no_warmup_no_ramp_is_text_from_the_start() -> None:
    assert text_shares(10, warmup=0.0, ramp=0.0)[0] == 1.0


def test_warmup_for_all_epochs_never_reads_text() -> None:
    assert text_shares(4, warmup=1.0, ramp=1.0) == [0.0] * 4


def test_nothing_is_ranked_or_stopped_before_it_trains_as_in_use() -> None:
    settings = LanguageModelOptions(item_warmup=0.2, text_ramp=0.6, query_share=0.3)
    curriculum = Curriculum(settings, epochs=10, eval_step=1)
    epochs = range(10)
    assert [curriculum.is_evaluated(epoch) for epoch in epochs] == [False] * 2 + [True] * 8
    assert [curriculum.query_share(epoch) for epoch in epochs] == [0.0] * 2 + [0.3] * 8
    assert [curriculum.may_stop_after(epoch) for epoch in epochs] == [False] * 5 + [True] * 5


@pytest.mark.parametrize(("eval_step", "evaluated"), [(2, [1, 3, 4]), (0, [4])])
def test_without_text_there_is_no_warm_up_and_the_last_epoch_is_evaluated(
    eval_step: int, evaluated: list[int]
) -> None:
    curriculum = Curriculum(LanguageModelOptions(use_text=False, query_share=0.3), 5, eval_step)
    assert [epoch for epoch in range(5) if curriculum.is_evaluated(epoch)] == evaluated
    assert all(curriculum.may_stop_after(epoch) for epoch in range(5))
    assert {curriculum.query_share(epoch) for epoch in range(5)} == {0.3}
