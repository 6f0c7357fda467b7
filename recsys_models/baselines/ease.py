"""EASE: a linear item-to-item model in closed form (Steck, WWW 2019)."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recsys_models import native
from recsys_models.data.batches import RankingBatch
from recsys_models.data.interactions import Interactions
from recsys_models.metrics import evaluate

PENALTIES = (100.0, 300.0, 1000.0, 3000.0)
MOST_ITEMS = 12_000  # for a reference beside a run: 5 GB and some minutes; twice as many, 20 GB


class EASE:
    """Scores X_u B, where B minimises ||X - X B||^2 + penalty ||B||^2 with a zero diagonal.

    With P = (X^T X + penalty I)^-1 the solution is B_ij = -P_ij / P_jj off the diagonal. Time grows
    with the cube and memory with the square of the number of items (4,000 items: some seconds,
    400 MB).

    Args:
        train: the training interactions; X is their 0/1 matrix, users by items.
        penalty: the weight of ||B||^2, above 0.
    """

    def __init__(self, train: Interactions, penalty: float) -> None:
        if not penalty > 0:
            raise ValueError(
                f"penalty must be above 0, else the matrix has no inverse; got {penalty}. "
                "Usual values lie between 10 and 1000."
            )
        self.penalty = penalty
        ones = np.ones(len(train), dtype=np.float32)
        shape = (train.num_users, train.num_items)
        self._rows = sparse.csr_matrix((ones, (train.users, train.items)), shape=shape)
        self._weights = _item_weights(self._rows, penalty)
        self._parts = native.column_parts(self._weights, native.PART_WIDTH)

    @classmethod
    def select(
        cls,
        train: Interactions,
        validation: Iterable[RankingBatch],
        penalties: Iterable[float] = PENALTIES,
        device: torch.device | str = "cpu",
    ) -> "EASE":
        """The model with the best validation NDCG@10 among some penalties.

        Args:
            train: the training interactions.
            validation: batches of validation users; read once for each penalty.
            penalties: the values to try.
            device: where to rank.
        """

        def ndcg(model: EASE) -> float:
            return evaluate(model.score_users, validation, device=device)["ndcg@10"]

        return max((cls(train, penalty) for penalty in penalties), key=ndcg)

    def score_users(self, users: Tensor) -> Tensor:
        """Scores of all items: from shape (B,) to (B, num_items)."""
        rows = self._rows[users.numpy()]
        offsets, ids, ones = map(torch.from_numpy, (rows.indptr, rows.indices, rows.data))
        scores = native.sparse_product(offsets, ids, ones, self._weights, self._parts)
        return torch.from_numpy(rows @ self._weights.numpy()) if scores is None else scores


def _item_weights(rows: sparse.csr_matrix, penalty: float) -> Tensor:
    gram = torch.from_numpy((rows.T @ rows).toarray().astype(np.float64))
    gram.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse / -inverse.diagonal()
    return weights.fill_diagonal_(0.0).float().contiguous()
