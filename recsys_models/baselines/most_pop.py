"""MostPop: every user is shown the items that most users have. The floor for any recommender."""

import torch
from torch import Tensor

from recsys_models.data.interactions import Interactions


class MostPop:
    """Scores an item by its number of training interactions, alike for all users.

    Args:
        train: the training interactions.
    """

    def __init__(self, train: Interactions) -> None:
        items = torch.from_numpy(train.items)
        self._counts = torch.bincount(items, minlength=train.num_items).float()

    def score_users(self, users: Tensor) -> Tensor:
        """Scores of all items: from shape (B,) to (B, num_items)."""
        return self._counts.repeat(len(users), 1)
