"""EASE: a linear item-to-item model in closed form (Steck, WWW 2019)."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from recsys_models.data.batches import RankingBatch
from recsys_models.data.interactions import Interactions
from recsys_models.metrics import evaluate

PENALTIES = (100.0, 300.0, 1000.0, 3000.0)


class EASE:
    """Scores X_u B, where B minimises ||X - X B||^2 + penalty ||B||^2 with a zero diagonal.

    With P = (X^T X + penalty I)^-1 the solution is B_ij = -P_ij / P_jj off the diagonal. Time grows
    with the cube and memory with the square of the number of items (4,000 items: about a second,
    some 400 MB).

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
        return torch.from_numpy(self._rows[users.numpy()] @ self._weights)


def _item_weights(rows: sparse.csr_matrix, penalty: float) -> NDArray[np.float32]:
    gram = torch.from_numpy((rows.T @ rows).toarray().astype(np.float64))
    gram.diagonal().add_(penalty)
    inverse = torch.linalg.inv(gram)
    weights = inverse / -inverse.diagonal()
    weights.fill_diagonal_(0.0)
    result: NDArray[np.float32] = weights.float().numpy()
    return result
