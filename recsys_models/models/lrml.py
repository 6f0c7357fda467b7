"""LRML: latent relational metric learning (Tay et al., WWW 2018)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from recsys_models import native
from recsys_models.data.batches import TrainBatch
from recsys_models.losses import hinge_loss
from recsys_models.models.base import OptimizerFactory
from recsys_models.models.item_bias import BiasedRecommender
from recsys_models.models.rows import rows

Distance = Literal["squared_l2", "l1"]

_ATTENTION_BYTES = 16 * 2**20  # of temporary results when ranking; CPU caches want it small


class LRML(BiasedRecommender):
    """Puts a user next to the items that a learned relation leads to.

    Keys K and memories M (N slots each) are shared by all pairs. For a pair (u, i)::

        a = softmax(K (p_u * q_i)),   r = sum_n a_n M_n
        d_ui = || p_u + r - q_i ||^2

    The score is y_ui = -d_ui (+ b_i). Training minimises the hinge max(0, margin + y_uj - y_ui).
    Vectors p and q stay in the unit ball: rows that an optimizer step took outside are scaled back
    after it. With Adam and momentum a step also moves rows that its batch does not name, so all
    rows are looked at, which costs less than the step itself; those inside are not touched.

    Args:
        num_users: number of users.
        num_items: number of items.
        dim: length of p, q, keys and memories.
        num_memories: number of slots N.
        margin: how much farther than the positive a negative should be.
        share_relation: whether a negative is measured along the relation r of its positive, as in
            the authors' program, or along its own. Ranking always uses each pair's own r, which
            sharing never trains to lead away from a negative: on MovieLens-1M, where the pairs do
            not follow from popularity alone, it ranks worse than popularity.
        distance: "squared_l2" as in the paper, or "l1", the sum of absolute differences.
        item_bias: whether there is a bias b_i per item, which begins at its popularity, see
            ``BiasedRecommender``; the paper has none.
        bias_scale: first distance per unit of log odds, where there is a bias.
        init_std: standard deviation of all other first weights.
        optimizer: see ``RecommenderModule``.
        top_k: see ``RecommenderModule``.
        compile: see ``RecommenderModule``.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        dim: int = 64,
        num_memories: int = 20,
        margin: float = 1.0,
        share_relation: bool = False,
        distance: Distance = "squared_l2",
        item_bias: bool = False,
        bias_scale: float = 0.1,
        init_std: float = 0.01,
        optimizer: OptimizerFactory | None = None,
        top_k: Sequence[int | str] = (10,),
        compile: bool = False,
    ) -> None:
        super().__init__(num_users, num_items, item_bias, bias_scale, optimizer, top_k, compile)
        for name, size in (("dim", dim), ("num_memories", num_memories)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}. Leave it out if unsure.")
        if not margin > 0:
            raise ValueError(f"margin must be above 0, or nothing is learned; got {margin}.")
        if distance not in ("squared_l2", "l1"):
            raise ValueError(f"distance must be 'squared_l2' or 'l1'; got {distance!r}.")
        self.margin = margin
        self.share_relation = share_relation
        self.distance = distance
        self.user_embedding = nn.Embedding(num_users, dim)
        self.item_embedding = nn.Embedding(num_items, dim)
        self.keys = nn.Parameter(torch.empty(num_memories, dim))
        self.memories = nn.Parameter(torch.empty(num_memories, dim))
        tables = self.user_embedding.weight, self.item_embedding.weight
        for parameter in (*tables, self.keys, self.memories):
            nn.init.normal_(parameter, std=init_std)
        self._project()

    def score_users(self, users: Tensor) -> Tensor:
        """Negative distances to all items: from shape (B,) to (B, num_items).

        Users are taken so many at a time that temporary results fill ``_ATTENTION_BYTES``.
        """
        p, q = self.user_embedding(users), self.item_embedding.weight
        distances = None
        if self.distance == "squared_l2":
            distances = native.squared_distances(p, q, self.keys, self.memories)
        if distances is None:
            distances = self._distances_by_torch(p, q)
        return self.biased(distances.neg_())

    def training_loss(self, batch: TrainBatch) -> Tensor:
        """Hinge loss of the batch; positives and negatives share one look-up for speed."""
        items = torch.cat([batch.items.unsqueeze(1), batch.negatives], dim=1)
        p = rows(self.user_embedding.weight, batch.users).unsqueeze(1)
        q = rows(self.item_embedding.weight, items)
        relation = self._attention(p * (q[:, :1] if self.share_relation else q)) @ self.memories
        difference = p + relation - q
        distances = difference.square() if self.distance == "squared_l2" else difference.abs()
        behind = -self.biased(-distances.sum(-1), items)
        return hinge_loss(behind[:, :1], behind[:, 1:], self.margin)

    def layer_groups(self) -> dict[str, list[str]]:
        """Two layers: tables of users and items, with the bias, and keys with memories."""
        embeddings = ["user_embedding.weight", "item_embedding.weight"]
        if self.item_bias is not None:
            embeddings.append("item_bias.weight")
        return {"embeddings": embeddings, "memory": ["keys", "memories"]}

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Keep p and q in the unit ball."""
        self._project()

    @torch.no_grad()
    def _project(self) -> None:
        for table in (self.user_embedding, self.item_embedding):
            # A divisor of exactly 1 leaves a row inside the ball as it is, bit for bit.
            table.weight.div_(table.weight.norm(dim=1, keepdim=True).clamp_(min=1.0))

    def _attention(self, products: Tensor) -> Tensor:
        """From p * q, shape (..., dim), to weights over the slots, shape (..., N)."""
        return linear(products, self.keys).softmax(-1)

    def _distances_by_torch(self, p: Tensor, q: Tensor) -> Tensor:
        num_memories, dim = self.keys.shape
        per_pair = 3 * num_memories if self.distance == "squared_l2" else 2 * (num_memories + dim)
        chunk = max(1, _ATTENTION_BYTES // (4 * per_pair * self.num_items))
        distances = self._squared_l2 if self.distance == "squared_l2" else self._l1
        return torch.cat([distances(some, q) for some in torch.split(p, chunk)])

    def _attention_to_all(self, p: Tensor, q: Tensor) -> Tensor:
        """Attention of all pairs of p, shape (B, dim), with q, (I, dim): shape (B, N, I).

        K (p * q) = (K p) q, where K p scales the keys by p. So the products p * q, dim numbers
        for each pair, are never formed.
        """
        keys_of_users = p.unsqueeze(1) * self.keys
        return linear(keys_of_users, q).softmax(1)

    def _squared_l2(self, p: Tensor, q: Tensor) -> Tensor:
        """Distances of all pairs, shape (B, I), with N instead of dim numbers for each pair.

        || p + r - q ||^2 = || p - q ||^2 + 2 r.p - 2 r.q + r.r, and r is a mix of memories.
        """
        attention = self._attention_to_all(p, q)
        gram = self.memories @ self.memories.T
        distance = p.square().sum(1, keepdim=True) - 2 * p @ q.T + q.square().sum(1)
        along = gram @ attention  # r.r, before the sum over slots
        along += 2 * (p @ self.memories.T).unsqueeze(2)
        along -= 2 * (self.memories @ q.T)
        return distance + (attention * along).sum(1)

    def _l1(self, p: Tensor, q: Tensor) -> Tensor:
        """Distances of all pairs, shape (B, I); absolute values leave no shorter way."""
        relation = self._attention_to_all(p, q).transpose(1, 2) @ self.memories
        return (relation.add_(p.unsqueeze(1)).sub_(q)).abs_().sum(-1)
