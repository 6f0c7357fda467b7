"""LightGCN: embeddings averaged along the graph and nothing else (He et al., SIGIR 2020)."""

from collections.abc import Sequence

from torch import Tensor

from recsys_models.models.adjacency import Adjacency
from recsys_models.models.base import OptimizerFactory
from recsys_models.models.graph import GraphRecommender


class LightGCN(GraphRecommender):
    """Trains E^(0) alone, by the BPR loss, for the mean of its propagated layers.

    With L = D^-1/2 A D^-1/2 of the training pairs::

        E^(k) = L E^(k-1),   E* = mean(E^(0), ..., E^(K)),   y_ui = e*_u . e*_i

    The paper's L2 penalty on E^(0) is the optimizer's weight decay.

    Args:
        num_users: number of users.
        num_items: number of items.
        dim: length of the embeddings.
        num_layers: number K of propagations.
        optimizer: see ``RecommenderModule``.
        top_k: see ``RecommenderModule``.
        compile: see ``RecommenderModule``.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        dim: int = 64,
        num_layers: int = 3,
        optimizer: OptimizerFactory | None = None,
        top_k: Sequence[int | str] = (10,),
        compile: bool = False,
    ) -> None:
        super().__init__(num_users, num_items, dim, "sym", optimizer, top_k, compile)
        if num_layers < 1:
            raise ValueError(
                f"num_layers must be at least 1; got {num_layers}. The usual value is 3; "
                "without any, use BPRMF."
            )
        self.num_layers = num_layers

    def propagate(self, adjacency: Adjacency, embeddings: Tensor) -> list[Tensor]:
        """The mean of E^(0) to E^(K), shape (n, dim)."""
        total = layer = embeddings
        for _ in range(self.num_layers):
            layer = adjacency.product(layer)
            total = total + layer
        return [total / (self.num_layers + 1)]

    def layer_groups(self) -> dict[str, list[str]]:
        """Two layers: users and items."""
        return {"users": ["user_embedding.weight"], "items": ["item_embedding.weight"]}
