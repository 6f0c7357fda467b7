"""NGCF: neural graph collaborative filtering (Wang et al., SIGIR 2019)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize

from recsys_models.models.adjacency import Adjacency, Norm
from recsys_models.models.base import OptimizerFactory
from recsys_models.models.dropout import dropout
from recsys_models.models.graph import GraphRecommender

_SLOPE = 0.2  # of the leaky ReLU, the default of the library that the authors used


class NGCF(GraphRecommender):
    """Passes messages between users and items, trained with the BPR loss on sampled negatives.

    With L = D^-1/2 A D^-1/2 of the training pairs, and * between equal shapes by element::

        E^(l) = LeakyReLU((L + I) E^(l-1) W1 + b1 + (L E^(l-1)) * E^(l-1) W2 + b2)
        E* = concat(E^(0), ..., E^(L)),   y_ui = e*_u . e*_i

    The defaults are the paper's; it prints no biases, its program has them. That program differs
    from the paper in three more ways, which are arguments here: ``norm="rw_selfloop"``,
    ``activation_per_term`` and ``concat_normalised``.

    Args:
        num_users: number of users.
        num_items: number of items.
        dim: length of the embeddings E^(0).
        layer_dims: widths of E^(1) to E^(L).
        message_dropout: share of the entries of each E^(l), l >= 1, that training sets to 0.
        edge_dropout: share of the entries of the matrix that a training step leaves out, drawn
            once for all layers; the paper's node dropout as its program has it.
        norm: "sym" is the matrix L above. "rw_selfloop" puts D^-1 (A + I) in the place of both L
            and L + I.
        activation_per_term: LeakyReLU of each of the two terms, then their sum.
        concat_normalised: E^(1) to E^(L) enter E* with rows of length 1.
        propagate_normalised: the next layer gets E^(l) with rows of length 1.
        optimizer: see ``RecommenderModule``.
        top_k: see ``RecommenderModule``.
        compile: see ``RecommenderModule``.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        dim: int = 64,
        layer_dims: Sequence[int] = (64, 64, 64),
        message_dropout: float = 0.1,
        edge_dropout: float = 0.0,
        norm: Norm = "sym",
        activation_per_term: bool = False,
        concat_normalised: bool = False,
        propagate_normalised: bool = False,
        optimizer: OptimizerFactory | None = None,
        top_k: Sequence[int | str] = (10,),
        compile: bool = False,
    ) -> None:
        if norm not in ("sym", "rw_selfloop"):
            raise ValueError(f"norm must be 'sym' or 'rw_selfloop'; got {norm!r}.")
        super().__init__(num_users, num_items, dim, norm, optimizer, top_k, compile)
        if not layer_dims or min(layer_dims) < 1:
            raise ValueError(
                "layer_dims must hold at least one width, each 1 or more; "
                f"got {list(layer_dims)}. The usual value is [64, 64, 64]."
            )
        for name, rate in (("message_dropout", message_dropout), ("edge_dropout", edge_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and below 1; got {rate}.")
        self.message_dropout = message_dropout
        self.edge_dropout = edge_dropout
        self.concat_normalised = concat_normalised
        self.propagate_normalised = propagate_normalised
        widths = (dim, *layer_dims)
        self.layers = nn.ModuleList(
            _Layer(before, after, norm == "sym", activation_per_term)
            for before, after in pairwise(widths)
        )

    def propagate(self, adjacency: Adjacency, embeddings: Tensor) -> list[Tensor]:
        """E^(0) to E^(L), of shapes (n, dim) and (n, width of the layer)."""
        if self.training and self.edge_dropout:
            adjacency = adjacency.drop_entries(self.edge_dropout)
        result = [embeddings]
        for layer in self.layers:
            messages = layer(adjacency.product(embeddings), embeddings)
            messages = dropout(messages, self.message_dropout, self.training)
            result.append(normalize(messages) if self.concat_normalised else messages)
            embeddings = normalize(messages) if self.propagate_normalised else messages
        return result

    def layer_groups(self) -> dict[str, list[str]]:
        """E^(0) of users and items, then W1, b1, W2 and b2 of each layer."""
        groups = {"embeddings": ["user_embedding.weight", "item_embedding.weight"]}
        for number, layer in enumerate(self.layers):
            names = [f"layers.{number}.{name}" for name, _ in layer.named_parameters()]
            groups[f"layer_{number + 1}"] = names
        return groups


class _Layer(nn.Module):
    """One layer before dropout: W1 and W2 with biases that begin at 0."""

    def __init__(self, before: int, after: int, adds_self: bool, activation_per_term: bool) -> None:
        super().__init__()
        self.adds_self = adds_self
        self.activation_per_term = activation_per_term
        self.w1 = nn.Linear(before, after)
        self.w2 = nn.Linear(before, after)
        for linear in (self.w1, self.w2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, side: Tensor, embeddings: Tensor) -> Tensor:
        """E^(l), from the matrix times E^(l-1) and from E^(l-1) itself."""
        first = self.w1(side + embeddings if self.adds_self else side)
        second = self.w2(side * embeddings)
        if self.activation_per_term:
            return leaky_relu(first, _SLOPE) + leaky_relu(second, _SLOPE)
        return leaky_relu(first + second, _SLOPE)
