"""Scores that are products of vectors, ranked without a matrix of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recsys_models import native
from recsys_models.data.batches import RankingBatch

_LEAST_USERS = 32  # who are worth the copy of the items


class Products(NamedTuple):
    """Scores p_u . q_i (+ b_i) of all items.

    Attributes:
        users: a vector p_u for each user, shape (U, dim).
        items: a vector q_i for each item, shape (I, dim).
        item_bias: b_i, shape (I,).
        laid: the items in the order in which they are read to rank them, see `laid_out`.
    """

    users: Tensor
    items: Tensor
    item_bias: Tensor | None = None
    laid: native.LaidItems | None = None

    def laid_out(self) -> Products:
        """The same, with the copy of the items that `ranks` else makes for each batch.

        On a CPU; elsewhere there is none.
        """
        return self._replace(laid=native.laid_items(*self[:3]))

    def __call__(self, users: Tensor) -> Tensor:
        """From user ids, shape (B,), to fresh scores, shape (B, I)."""
        vectors = self.users.index_select(0, users)  # which refuses negative ids
        if self.item_bias is None:
            return vectors @ self.items.T
        return torch.addmm(self.item_bias, vectors, self.items.T)

    def ranks(self, batch: RankingBatch, k: int) -> Tensor | None:
        """The result of ``ranks_of_relevant``, on torch's threads.

        Returns:
            None where it has to be worked out from a matrix of scores, or is sooner so.
        """
        if len(batch.users) < _LEAST_USERS:
            return None
        laid = self.laid if self.laid is not None else self.laid_out().laid
        if laid is None:
            return None
        users = self.users.index_select(0, batch.users)
        return native.product_ranks(users, self.items, laid, batch, k)
