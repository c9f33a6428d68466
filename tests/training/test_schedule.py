import pytest

from recbole_idiomoe.training.schedule import text_share


def test_items_alone_then_a_linear_rise_to_all() -> None:
    shares = [text_share(epoch, 10, warmup=0.2, ramp=1.0) for epoch in range(10)]
    assert shares == pytest.approx([0, 0, *(n / 8 for n in range(1, 9))])


def test_an_early_ramp_stays_at_one() -> None:
    shares = [text_share(epoch, 10, warmup=0.5, ramp=0.7) for epoch in range(10)]
    assert shares == pytest.approx([0] * 5 + [0.5, 1, 1, 1, 1])


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("warmup", "ramp"), [(0.0, 0.0), (0.2, 1.0), (0.5, 0.5), (0.9, 0.9)])
def test_shares_never_fall_and_end_at_one(epochs: int, warmup: float, ramp: float) -> None:
    shares = [text_share(epoch, epochs, warmup, ramp) for epoch in range(epochs)]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    assert shares[-1] == 1 or round(warmup * epochs) == epochs


def test_no_warmup_no_ramp_is_text_from_the_start() -> None:
    assert text_share(0, 10, warmup=0.0, ramp=0.0) == 1.0


def test_warmup_for_all_epochs_never_reads_text() -> None:
    assert [text_share(epoch, 4, warmup=1.0, ramp=1.0) for epoch in range(4)] == [0.0] * 4
