"""BPR-MF: matrix factorisation trained by pairwise ranking (Rendle et al., UAI 2009)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_models.data.batches import TrainBatch
from recsys_models.losses import bpr_loss
from recsys_models.metrics import Products
from recsys_models.models.base import OptimizerFactory, RecommenderModule


class BPRMF(RecommenderModule):
    """Scores y_ui = p_u . q_i (+ b_i), trained with the BPR loss on sampled negatives.

    Args:
        num_users: number of users.
        num_items: number of items.
        dim: length of the vectors p_u and q_i.
        item_bias: whether there is a bias b_i per item, which learns popularity.
        init_std: standard deviation of the first embeddings; biases begin at 0.
        optimizer: see ``RecommenderModule``.
        top_k: see ``RecommenderModule``.
        compile: see ``RecommenderModule``.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        dim: int = 64,
        item_bias: bool = True,
        init_std: float = 0.01,
        optimizer: OptimizerFactory | None = None,
        top_k: Sequence[int | str] = (10,),
        compile: bool = False,
    ) -> None:
        super().__init__(num_users, num_items, optimizer, top_k, compile)
        if dim < 1:
            raise ValueError(f"dim must be at least 1; got {dim}. The usual value is 64.")
        self.user_embedding = nn.Embedding(num_users, dim)
        self.item_embedding = nn.Embedding(num_items, dim)
        self.item_bias = nn.Embedding(num_items, 1) if item_bias else None
        nn.init.normal_(self.user_embedding.weight, std=init_std)
        nn.init.normal_(self.item_embedding.weight, std=init_std)
        if self.item_bias is not None:
            nn.init.zeros_(self.item_bias.weight)

    def score_users(self, users: Tensor) -> Tensor:
        """Scores of all items: from shape (B,) to (B, num_items)."""
        return self.scorer()(users)

    def scorer(self) -> Products:
        """The tables."""
        bias = None if self.item_bias is None else self.item_bias.weight.squeeze(1)
        return Products(self.user_embedding.weight, self.item_embedding.weight, bias)

    def training_loss(self, batch: TrainBatch) -> Tensor:
        """BPR loss of the batch; positives and negatives share one look-up for speed."""
        items = torch.cat([batch.items.unsqueeze(1), batch.negatives], dim=1)
        tables = self.user_embedding.weight, self.item_embedding.weight
        scores = self.pair_scores(*tables, batch.users, items)
        if self.item_bias is not None:
            scores = scores + self.lookup(self.item_bias.weight, items).squeeze(-1)
        return bpr_loss(scores[:, :1], scores[:, 1:])

    def layer_groups(self) -> dict[str, list[str]]:
        """Two layers: users, and items with their bias."""
        items = ["item_embedding.weight"]
        if self.item_bias is not None:
            items.append("item_bias.weight")
        return {"users": ["user_embedding.weight"], "items": items}
