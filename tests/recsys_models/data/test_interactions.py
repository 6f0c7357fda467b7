import numpy as np
import pytest

from recsys_models.data import Interactions


def ids(*values):
    return np.array(values, dtype=np.int64)


def test_csr_lists_each_users_items_including_users_without_any():
    pairs = Interactions(ids(0, 0, 2), ids(1, 3, 0), num_users=4, num_items=4)
    indptr, items = pairs.csr()
    assert indptr.tolist() == [0, 2, 2, 3, 3]
    assert [items[a:b].tolist() for a, b in zip(indptr, indptr[1:], strict=False)] == [
        [1, 3],
        [],
        [0],
        [],
    ]
    assert len(pairs) == 3


def test_from_pairs_sorts_and_counts_repeated_pairs_once():
    pairs = Interactions.from_pairs(ids(2, 0, 2, 0), ids(0, 3, 0, 1), 3, 4)
    assert pairs == Interactions(ids(0, 0, 2), ids(1, 3, 0), 3, 4)


@pytest.mark.parametrize("seed", range(5))
def test_from_pairs_keeps_exactly_the_distinct_pairs(seed):
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 7, 60), rng.integers(0, 11, 60)
    pairs = Interactions.from_pairs(users, items, 7, 11)
    assert list(zip(pairs.users, pairs.items, strict=True)) == sorted(
        set(zip(users, items, strict=True))
    )


def test_union_holds_the_pairs_of_both():
    left = Interactions(ids(0, 1), ids(2, 0), 2, 3)
    right = Interactions(ids(0, 1), ids(1, 0), 2, 3)
    assert left.union(right) == Interactions(ids(0, 0, 1), ids(1, 2, 0), 2, 3)
    with pytest.raises(ValueError, match="same users and items"):
        left.union(Interactions(ids(), ids(), 2, 4))


def test_sets_without_pairs_are_allowed():
    empty = Interactions.from_pairs(ids(), ids(), 3, 2)
    assert len(empty) == 0
    assert empty.csr()[0].tolist() == [0, 0, 0, 0]


def test_equality_compares_pairs_and_sizes():
    pairs = Interactions(ids(0), ids(1), 2, 3)
    assert pairs == Interactions(ids(0), ids(1), 2, 3)
    assert pairs != Interactions(ids(0), ids(2), 2, 3)
    assert pairs != Interactions(ids(0), ids(1), 2, 4)
    assert pairs != "pairs"


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        (ids(0, 1), ids(0), r"equal length; got shapes \(2,\) and \(1,\)"),
        (ids(0, 2), ids(0, 0), r"users must be int64 ids in 0\.\.1"),
        (ids(0, 1), ids(-1, 0), r"items must be int64 ids in 0\.\.2"),
        (ids(0, 1).astype(float), ids(0, 1), "float64"),
        (ids(1, 0), ids(0, 0), r"pair \(0, 0\) at position 1"),
        (ids(0, 0), ids(1, 1), "distinct and sorted"),
    ],
)
def test_inconsistent_pairs_are_refused(users, items, message):
    with pytest.raises(ValueError, match=message):
        Interactions(users, items, num_users=2, num_items=3)
