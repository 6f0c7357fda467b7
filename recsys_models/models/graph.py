"""What graph recommenders share: where their edges come from, and tables kept for a ranking."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from recsys_models.data.batches import TrainBatch
from recsys_models.data.interactions import Interactions
from recsys_models.losses import bpr_loss
from recsys_models.metrics import Products
from recsys_models.models.adjacency import Adjacency, Norm
from recsys_models.models.base import OptimizerFactory, RecommenderModule
from recsys_models.models.rows import pair_scores
from recsys_models.models.training_pairs import check_sizes, missing_message, training_pairs


class GraphRecommender(RecommenderModule):
    """Scores y_ui = e*_u . e*_i of tables that were passed along the edges of a graph.

    The edges are the training pairs and nothing else. They come from the data module of the
    Trainer, its attribute ``train``, or from ``set_interactions``; no checkpoint holds them.

    A training step passes the tables through the whole graph. An evaluation by the Trainer does so
    once, at its start; ``scorer`` and ``score_users`` elsewhere do so at every call.

    Args:
        num_users: number of users.
        num_items: number of items.
        dim: length of the embeddings E^(0).
        norm: see ``Adjacency.from_interactions``.
        optimizer: see ``RecommenderModule``.
        top_k: see ``RecommenderModule``.
        compile: see ``RecommenderModule``.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        dim: int,
        norm: Norm,
        optimizer: OptimizerFactory | None,
        top_k: Sequence[int | str],
        compile: bool = False,
    ) -> None:
        super().__init__(num_users, num_items, optimizer, top_k, compile)
        if dim < 1:
            raise ValueError(f"dim must be at least 1; got {dim}. The usual value is 64.")
        self.norm: Norm = norm
        self.user_embedding = nn.Embedding(num_users, dim)
        self.item_embedding = nn.Embedding(num_items, dim)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)
        # Not a buffer: it never changes, so checkpoints, broadcasts and copies of the model's
        # state do without it.
        self._adjacency: Adjacency | None = None
        self._evaluated: Tensor | None = None

    @abstractmethod
    def propagate(self, adjacency: Adjacency, embeddings: Tensor) -> list[Tensor]:
        """E*, in parts that lie side by side: from E^(0), users and then items, shape (n, dim).

        Returns:
            Tables of shape (n, any); their products are summed.
        """

    def set_interactions(self, train: Interactions) -> None:
        """Make these pairs the edges of the graph; within a Trainer its data module does it."""
        check_sizes(self, train)
        self._adjacency = Adjacency.from_interactions(train, self.norm)
        self._evaluated = None

    def setup(self, stage: str) -> None:
        """Take the edges from the data module, if there is one."""
        train = training_pairs(self)
        if train is not None:
            self.set_interactions(train)
        elif self._adjacency is None:
            raise MisconfigurationException(missing_message(self, "its graph"))

    def score_users(self, users: Tensor) -> Tensor:
        """Scores of all items: from shape (B,) to (B, num_items)."""
        return self.scorer()(users)

    def scorer(self) -> Products:
        """Users' and items' part of E*."""
        table = self._side_by_side() if self._evaluated is None else self._evaluated
        users, items = table.tensor_split((self.num_users,))
        return Products(users, items)

    def training_loss(self, batch: TrainBatch) -> Tensor:
        """BPR loss of the batch."""
        if not torch.compiler.is_compiling():  # in one table the next user would be an item
            self._check_ids(batch.users, batch.items, batch.negatives)
        items = torch.cat([batch.items.unsqueeze(1), batch.negatives], dim=1) + self.num_users
        tables = self._propagated()
        scores = torch.stack([pair_scores(t, t, batch.users, items) for t in tables]).sum(0)
        return bpr_loss(scores[:, :1], scores[:, 1:])

    def train(self, mode: bool = True) -> GraphRecommender:
        """Change the mode; what an evaluation had kept is dropped."""
        self._evaluated = None
        super().train(mode)
        return self

    def on_validation_start(self) -> None:
        """Propagate once for all batches of the validation."""
        self._keep_final()

    def on_validation_end(self) -> None:
        """Drop the tables; the weights are about to change."""
        self._evaluated = None

    def on_test_start(self) -> None:
        """Propagate once for all batches of the test."""
        self._keep_final()

    def on_test_end(self) -> None:
        """Drop the tables."""
        self._evaluated = None

    @torch.no_grad()
    def _keep_final(self) -> None:
        with torch.autocast(self.device.type, enabled=False):  # rounded scores tie
            self._evaluated = self._side_by_side()

    def _side_by_side(self) -> Tensor:
        return torch.cat(self._propagated(), dim=1)

    def _propagated(self) -> list[Tensor]:
        if self._adjacency is None:
            raise RuntimeError(missing_message(self, "its graph"))
        embeddings = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
        self._adjacency = self._adjacency.to(embeddings.device, dtype)
        return self.propagate(self._adjacency, embeddings)
