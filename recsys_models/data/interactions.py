"""Who interacted with what: the one data type that readers, splits, models and metrics share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Interactions:
    """Distinct (user, item) pairs with implicit relevance 1, sorted by user and then by item.

    Use `from_pairs` for pairs in any order; the constructor checks and never reorders.

    Args:
        users: user of each pair, shape (n,), in 0..num_users-1.
        items: item of each pair, shape (n,), in 0..num_items-1.
        num_users: number of users, including those without a pair.
        num_items: number of items, including those without a pair.
    """

    users: IntArray
    items: IntArray
    num_users: int
    num_items: int

    def __post_init__(self) -> None:
        if self.users.ndim != 1 or self.users.shape != self.items.shape:
            raise ValueError(
                "users and items must be two flat arrays of equal length; "
                f"got shapes {self.users.shape} and {self.items.shape}."
            )
        _check_ids("users", self.users, self.num_users)
        _check_ids("items", self.items, self.num_items)
        unordered = np.flatnonzero(np.diff(self._keys()) <= 0)
        if unordered.size:
            k = int(unordered[0]) + 1
            raise ValueError(
                "pairs must be distinct and sorted by user, then item; pair "
                f"({self.users[k]}, {self.items[k]}) at position {k} is not greater than the one "
                "before it. Use Interactions.from_pairs, which sorts and drops repetitions."
            )

    @classmethod
    def from_pairs(
        cls, users: IntArray, items: IntArray, num_users: int, num_items: int
    ) -> Interactions:
        """Build from pairs in any order; a repeated pair counts once."""
        _check_ids("users", users, num_users)
        _check_ids("items", items, num_items)
        keys = np.sort(users * num_items + items)
        keys = keys[np.diff(keys, prepend=-1) > 0]
        return cls(*np.divmod(keys, max(num_items, 1)), num_users, num_items)

    def __len__(self) -> int:
        return self.users.size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Interactions):
            return NotImplemented
        return (
            (self.num_users, self.num_items) == (other.num_users, other.num_items)
            and np.array_equal(self.users, other.users)
            and np.array_equal(self.items, other.items)
        )

    def csr(self) -> tuple[IntArray, IntArray]:
        """Row offsets `indptr`, shape (num_users + 1,), and the items, ascending in each row.

        The items of user u are items[indptr[u] : indptr[u + 1]].
        """
        indptr = np.zeros(self.num_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.users, minlength=self.num_users), out=indptr[1:])
        return indptr, self.items

    def select(self, keep: IntArray | NDArray[np.bool_]) -> Interactions:
        """The pairs at ascending positions `keep`, or where the mask `keep` is true."""
        return Interactions(self.users[keep], self.items[keep], self.num_users, self.num_items)

    def union(self, other: Interactions) -> Interactions:
        """The pairs found in either of two sets over the same users and items."""
        if (self.num_users, self.num_items) != (other.num_users, other.num_items):
            raise ValueError(
                "a union needs the same users and items on both sides; got "
                f"{self.num_users} x {self.num_items} and {other.num_users} x {other.num_items}."
            )
        return Interactions.from_pairs(
            np.concatenate([self.users, other.users]),
            np.concatenate([self.items, other.items]),
            self.num_users,
            self.num_items,
        )

    def _keys(self) -> IntArray:
        """One number per pair that orders pairs by user, then item; shape (n,)."""
        return self.users * self.num_items + self.items


def _check_ids(name: str, ids: IntArray, count: int) -> None:
    if ids.size and (ids.dtype != np.int64 or ids.min() < 0 or ids.max() >= count):
        raise ValueError(
            f"{name} must be int64 ids in 0..{count - 1}; got {ids.dtype} values from "
            f"{ids.min()} to {ids.max()}. Re-index the ids first."
        )
