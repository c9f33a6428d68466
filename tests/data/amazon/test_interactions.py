"""Interactions against plain Python that does the same slowly."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from recbole_idiomoe.data.amazon.reading import Review
from recbole_idiomoe.data.amazon.writing import Interactions

REVIEWS = st.lists(
    st.builds(
        Review,
        st.integers(0, 6).map("u{}".format),
        st.integers(0, 6).map("i{}".format),
        st.integers(0, 4).map(float),
    ),
    max_size=60,
)


def rows(found: Interactions) -> list[Review]:
    assert found.user.dtype == found.item.dtype == "int32"
    assert set(found.user) == set(range(len(found.users)))  # no name that nobody has
    assert set(found.item) == set(range(len(found.items)))
    columns = zip(found.user, found.item, found.time, strict=True)
    return [Review(found.users[user], found.items[item], time) for user, item, time in columns]


@given(REVIEWS)
def test_each_pair_once_keeps_the_earliest(reviews: list[Review]) -> None:
    earliest: dict[tuple[str, str], int] = {}
    for at, row in enumerate(reviews):
        key = (row.user, row.item)
        if key not in earliest or row.time < reviews[earliest[key]].time:
            earliest[key] = at
    expected = [reviews[at] for at in sorted(earliest.values())]
    assert rows(Interactions.collect(reviews).each_pair_once()) == expected


@given(REVIEWS, st.integers(1, 4))
def test_k_core_is_what_leaving_out_one_by_one_ends_in(reviews: list[Review], k: int) -> None:
    left = list(reviews)
    while True:
        users, items = Counter(r.user for r in left), Counter(r.item for r in left)
        poor = next((r for r in left if users[r.user] < k or items[r.item] < k), None)
        if poor is None:
            break
        left.remove(poor)
    # Of equal rows, it does not matter which one is meant.
    assert Counter(rows(Interactions.collect(reviews).k_core(k))) == Counter(left)


@given(REVIEWS)
def test_in_order_keeps_ties_as_they_were(reviews: list[Review]) -> None:
    first = {}
    for row in reviews:
        first.setdefault(row.user, len(first))
    expected = sorted(reviews, key=lambda row: (first[row.user], row.time))
    assert rows(Interactions.collect(reviews).in_order()) == expected
