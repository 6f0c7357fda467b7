"""What NeuMF and LRML share: an optional bias per item, which begins at the item's popularity."""

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from recsys_models.data.interactions import Interactions
from recsys_models.models.base import OptimizerFactory, RecommenderModule
from recsys_models.models.training_pairs import check_sizes, missing_message, training_pairs


class BiasedRecommender(RecommenderModule):
    """A recommender whose scores may have a bias b_i per item, which begins at log odds.

    With n_i training pairs of item i and pi_i = (n_i + 1) / (num_users + 2), about the share of
    users who have the item::

        b_i = scale * log(pi_i / (1 - pi_i))

    So training begins at the popularity ranking and learns what deviates from it, like a classifier
    whose output layer begins at the base rate (Lin et al., Focal loss, ICCV 2017, section 3.3).

    The pairs come from the data module of the Trainer, its attribute ``train``, or from
    ``set_interactions``. Until then the biases are NaN, and so is every score. Later evaluations
    and trainings, also those from a checkpoint, leave the biases as they are.

    Args:
        num_users: number of users.
        num_items: number of items.
        item_bias: whether there is a bias.
        scale: of the first biases; the unit of scores per unit of log odds.
        optimizer: see ``RecommenderModule``.
        top_k: see ``RecommenderModule``.
        compile: see ``RecommenderModule``.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        item_bias: bool,
        scale: float,
        optimizer: OptimizerFactory | None,
        top_k: Sequence[int | str],
        compile: bool = False,
    ) -> None:
        super().__init__(num_users, num_items, optimizer, top_k, compile)
        unknown = torch.full((num_items, 1), torch.nan)
        # Given its weights, an embedding draws none: all others begin as without a bias.
        self.item_bias = nn.Embedding(num_items, 1, _weight=unknown) if item_bias else None
        self._scale = scale

    def set_interactions(self, train: Interactions) -> None:
        """Begin at the popularity in these pairs; within a Trainer its data module does it."""
        check_sizes(self, train)
        if self.item_bias is not None:
            pairs = torch.bincount(torch.from_numpy(train.items), minlength=self.num_items)
            log_odds = ((pairs + 1.0) / (self.num_users + 2)).logit()
            with torch.no_grad():
                self.item_bias.weight.copy_(self._scale * log_odds.unsqueeze(1))

    def setup(self, stage: str) -> None:
        """Take the pairs from the data module, unless the biases have begun already."""
        if self.item_bias is None or not self.item_bias.weight.isnan().all():
            return
        train = training_pairs(self)
        if train is None:
            raise MisconfigurationException(missing_message(self, "its item biases"))
        self.set_interactions(train)

    def biased(self, scores: Tensor, items: Tensor | None = None) -> Tensor:
        """Scores plus biases: of the items given, in the scores' shape, or else of all."""
        if self.item_bias is None:
            return scores
        weight = self.item_bias.weight
        return scores + (weight if items is None else self.lookup(weight, items)).squeeze(-1)
