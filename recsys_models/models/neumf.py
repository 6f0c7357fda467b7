"""NeuMF: neural matrix factorisation (He et al., Neural Collaborative Filtering, WWW 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import linear

from recsys_models import native
from recsys_models.data.batches import TrainBatch
from recsys_models.losses import bce_loss
from recsys_models.models.base import OptimizerFactory
from recsys_models.models.item_bias import BiasedRecommender
from recsys_models.models.rows import rows

_TOWER_BYTES = 8 * 2**20  # of activations at a time when ranking; CPU caches want it small


class NeuMF(BiasedRecommender):
    """Fuses a generalised matrix factorisation (GMF) with a multi-layer perceptron (MLP).

    With tables P, Q of each part, and ``*`` element by element::

        g   = p_G * q_G
        z_0 = [p_M ; q_M],   z_l = relu(W_l z_(l-1) + b_l)   for l = 1..L
        y   = h . [g ; z_L] + c (+ b_i)

    The logit y is the score. Training minimises the binary cross-entropy of observed pairs and
    sampled negatives, of which the paper draws 4 per positive (``data.num_negatives``).

    All items are ranked without any concatenated pair: W_1 z_0 is a part of the user plus a part
    of the item, each computed once per row and not once per pair, and h is folded into p_G.

    Args:
        num_users: number of users.
        num_items: number of items.
        gmf_dim: length of p_G and q_G; 0 leaves GMF out.
        mlp_dims: widths of z_0 to z_L. Half of the first is the length of p_M and of q_M. Empty
            leaves the MLP out.
        item_bias: whether there is a bias b_i, not in the paper; see ``BiasedRecommender``.
        init_std: standard deviation of the first embeddings. Dense weights begin uniform after
            Glorot, h uniform after LeCun, biases at 0.
        optimizer: see ``RecommenderModule``.
        top_k: see ``RecommenderModule``.
        compile: see ``RecommenderModule``.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        gmf_dim: int = 8,
        mlp_dims: Sequence[int] = (64, 32, 16, 8),
        item_bias: bool = False,
        init_std: float = 0.01,
        optimizer: OptimizerFactory | None = None,
        top_k: Sequence[int | str] = (10,),
        compile: bool = False,
    ) -> None:
        super().__init__(num_users, num_items, item_bias, 1.0, optimizer, top_k, compile)
        _check_widths(gmf_dim, mlp_dims)
        self.pretrained_on: frozenset[str] = frozenset()  # fingerprints of training pairs
        self.gmf_dim = gmf_dim
        self.mlp_dims = tuple(mlp_dims)
        self.gmf = _Tables(num_users, num_items, gmf_dim, init_std) if gmf_dim else None
        self.mlp = _Tables(num_users, num_items, mlp_dims[0] // 2, init_std) if mlp_dims else None
        layers = [nn.Linear(before, after) for before, after in pairwise(mlp_dims)]
        self.dense = nn.ModuleList(layers)
        self.head = nn.Linear(gmf_dim + (mlp_dims[-1] if mlp_dims else 0), 1)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_uniform_(self.head.weight, nonlinearity="linear")  # LeCun's is this one
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_pretrained(
        cls,
        gmf: NeuMF,
        mlp: NeuMF,
        alpha: float = 0.5,
        optimizer: OptimizerFactory | None = None,
    ) -> NeuMF:
        """Joins a trained GMF and a trained MLP, as the paper does before it trains on with SGD.

        The first logit is ``alpha * y_GMF + (1 - alpha) * y_MLP``.

        Args:
            gmf: a ``NeuMF`` with ``mlp_dims=()``.
            mlp: a ``NeuMF`` with ``gmf_dim=0``, for the same users and items.
            alpha: weight of the GMF, between 0 and 1.
            optimizer: see ``RecommenderModule``.
        """
        _check_parts(gmf, mlp, alpha)
        sizes = gmf.num_users, gmf.num_items, gmf.gmf_dim, mlp.mlp_dims
        model = cls(*sizes, gmf.item_bias is not None, optimizer=optimizer, top_k=gmf.top_k)
        weights = {**gmf.state_dict(), **mlp.state_dict()}
        heads = alpha * gmf.head.weight, (1 - alpha) * mlp.head.weight
        weights["head.weight"] = torch.cat(heads, dim=1)
        for name in model.layer_groups()["head"][1:]:  # the biases
            weights[name] = alpha * gmf.get_parameter(name) + (1 - alpha) * mlp.get_parameter(name)
        model.load_state_dict(weights)
        return model

    def setup(self, stage: str) -> None:
        """Refuse data in which pairs may be held out that pre-trained parts have seen."""
        super().setup(stage)
        own = getattr(getattr(self.trainer, "datamodule", None), "fingerprint", None)
        if own is not None and self.pretrained_on - {own}:
            raise MisconfigurationException(
                "the parts of this NeuMF were trained on other pairs than those of this data, "
                "among which may be its validation and test pairs. Use the file, filters, split, "
                "ratios and split_seed that they were trained with, or train them anew."
            )

    @torch.no_grad()
    def score_users(self, users: Tensor) -> Tensor:
        """Scores of all items, without gradients: from shape (B,) to (B, num_items)."""
        scores = self.biased(self.head.bias.repeat(len(users), self.num_items))
        if self.gmf is not None:
            scores = scores + linear(self._weighted_gmf_users(users), self.gmf.items.weight)
        if self.mlp is not None:
            parts = self._user_part(users), self._item_part(self.mlp.items.weight)
            layers = [(layer.weight, layer.bias) for layer in self._layers[1:]]
            head = self.head.weight[0, self.gmf_dim :]
            if not native.add_towers(scores, *parts, layers, head):
                self._add_towers_by_torch(scores, *parts)
        return scores

    def training_loss(self, batch: TrainBatch) -> Tensor:
        """Cross-entropy of the batch; positives and negatives share one look-up for speed."""
        items = torch.cat([batch.items.unsqueeze(1), batch.negatives], dim=1)
        logits = self.biased(self.head.bias.expand(items.shape), items)
        if self.gmf is not None:
            weighted = self._weighted_gmf_users(batch.users).unsqueeze(1)
            logits = logits + (weighted * self.lookup(self.gmf.items.weight, items)).sum(-1)
        if self.mlp is not None:
            user_part = self._user_part(batch.users).unsqueeze(1)
            logits = logits + self._tower(user_part, self._item_parts(items))
        return bce_loss(logits[:, :1], logits[:, 1:])

    def layer_groups(self) -> dict[str, list[str]]:
        """GMF tables, MLP tables, dense layers 1 to L, head and b; without the parts left out."""
        groups = {
            part: [f"{part}.users.weight", f"{part}.items.weight"]
            for part in ("gmf", "mlp")
            if getattr(self, part) is not None
        }
        for number in range(len(self.dense)):
            groups[f"dense_{number + 1}"] = [f"dense.{number}.weight", f"dense.{number}.bias"]
        head = ["head.weight", "head.bias", "item_bias.weight"]
        return {**groups, "head": head[:2] if self.item_bias is None else head}

    def _weighted_gmf_users(self, users: Tensor) -> Tensor:
        """Each p_G times the GMF's share of h: shape (B, gmf_dim)."""
        assert self.gmf is not None
        weighted: Tensor = (
            self.lookup(self.gmf.users.weight, users) * self.head.weight[0, : self.gmf_dim]
        )
        return weighted

    def _user_part(self, users: Tensor) -> Tensor:
        """The user's share of W_1 z_0 + b_1: from shape (...,) to (..., first width)."""
        assert self.mlp is not None
        weight = self._layers[0].weight[:, : self.mlp_dims[0] // 2]
        vectors = self.lookup(self.mlp.users.weight, users)
        return linear(vectors, weight, self._layers[0].bias)

    def _item_part(self, vectors: Tensor) -> Tensor:
        """The item's share of W_1 z_0: from q_M, shape (..., d), to (..., first width)."""
        return linear(vectors, self._layers[0].weight[:, self.mlp_dims[0] // 2 :])

    def _item_parts(self, items: Tensor) -> Tensor:
        """The same for ids: from shape (...) to (..., first width)."""
        assert self.mlp is not None
        if items.numel() <= self.num_items:
            return self._item_part(self.lookup(self.mlp.items.weight, items))
        # More ids than items: each item's share once, not once per id.
        shares = self._item_part(self.whole(self.mlp.items.weight))
        return rows(shares, items)

    @property
    def _layers(self) -> list[nn.Linear]:
        return [cast(nn.Linear, layer) for layer in self.dense]

    def _tower(self, user_part: Tensor, item_part: Tensor) -> Tensor:
        """The MLP's share of the logit: from parts that broadcast, less their last dimension."""
        hidden = (user_part + item_part).relu_()
        for layer in self._layers[1:]:
            hidden = layer(hidden).relu_()
        return linear(hidden, self.head.weight[:, self.gmf_dim :]).squeeze(-1)

    def _add_towers_by_torch(self, scores: Tensor, user_parts: Tensor, item_parts: Tensor) -> None:
        """Adds the MLP's share of the logits of all pairs.

        It holds activations of about ``_TOWER_BYTES``, in the same memory for all users: fresh
        memory of that size costs more than the network.
        """
        item_parts = item_parts.T.contiguous()
        count, items = self._chunk(len(scores))
        activations = [scores.new_empty(count, width, items) for width in (*self.mlp_dims[1:], 1)]
        for u, i in product(range(0, len(scores), count), range(0, self.num_items, items)):
            scores[u : u + count, i : i + items] += self._tower_of_all(
                user_parts[u : u + count], item_parts[:, i : i + items], activations
            )

    def _tower_of_all(
        self, user_part: Tensor, item_part: Tensor, activations: Sequence[Tensor]
    ) -> Tensor:
        """The MLP's share of all logits: from shapes (B, width) and (width, I) to (B, I).

        A user's items come last: rows are long, a narrow layer is one product of two matrices for
        each user, bias included, and threads take a user each.

        Args:
            user_part: The users' share of W_1 z_0 + b_1.
            item_part: The items' share of W_1 z_0.
            activations: Memory for z_1 to z_L and the logit, each of shape (B or more, its width,
                I or more).
        """
        shape = slice(len(user_part)), slice(None), slice(item_part.shape[1])
        first, *others, logits = (memory[shape] for memory in activations)
        hidden = first.copy_(user_part.unsqueeze(2)).add_(item_part).relu_()
        for layer, memory in zip(self._layers[1:], others, strict=True):
            weight = layer.weight.expand(len(user_part), -1, -1)
            hidden = memory.copy_(layer.bias.unsqueeze(1)).baddbmm_(weight, hidden).relu_()
        head = self.head.weight[:, self.gmf_dim :].expand(len(user_part), 1, -1)
        return logits.baddbmm_(head, hidden, beta=0).squeeze(1)

    def _chunk(self, num_users: int) -> tuple[int, int]:
        """How many users and items at a time; their activations fit into ``_TOWER_BYTES``."""
        pairs = max(1, _TOWER_BYTES // (4 * (sum(self.mlp_dims[1:]) + 1)))
        items = min(pairs, self.num_items)
        return min(pairs // items, max(1, num_users)), items


class _Tables(nn.Module):
    """One embedding table for users and one for items."""

    def __init__(self, num_users: int, num_items: int, dim: int, init_std: float) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, dim)
        self.items = nn.Embedding(num_items, dim)
        nn.init.normal_(self.users.weight, std=init_std)
        nn.init.normal_(self.items.weight, std=init_std)


def _check_widths(gmf_dim: int, mlp_dims: Sequence[int]) -> None:
    if gmf_dim < 0:
        raise ValueError(f"gmf_dim must be at least 0; got {gmf_dim}. The usual value is 8.")
    if not gmf_dim and not mlp_dims:
        raise ValueError(
            "NeuMF needs a GMF or an MLP; got gmf_dim=0 and no mlp_dims. Give one of the two."
        )
    if mlp_dims and (len(mlp_dims) < 2 or min(mlp_dims) < 1 or mlp_dims[0] % 2):
        raise ValueError(
            "mlp_dims must hold at least two widths, each 1 or more, and the first even, because "
            f"user and item share it; got {list(mlp_dims)}. The usual value is [64, 32, 16, 8]."
        )


def _check_parts(gmf: NeuMF, mlp: NeuMF, alpha: float) -> None:
    if gmf.mlp_dims or mlp.gmf_dim:
        raise ValueError(
            "pre-trained parts must be a GMF alone and an MLP alone; got a first part with "
            f"mlp_dims={list(gmf.mlp_dims)} and a second with gmf_dim={mlp.gmf_dim}. "
            "Train one with mlp_dims=() and one with gmf_dim=0."
        )
    if (gmf.num_users, gmf.num_items) != (mlp.num_users, mlp.num_items):
        raise ValueError(
            "pre-trained parts must be of the same data; got "
            f"{gmf.num_users} x {gmf.num_items} and {mlp.num_users} x {mlp.num_items} users and "
            "items. Train both on one data set."
        )
    if (gmf.item_bias is None) != (mlp.item_bias is None):
        raise ValueError(
            "pre-trained parts must agree about item_bias; got "
            f"{gmf.item_bias is not None} and {mlp.item_bias is not None}. Train both alike."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha}. The paper uses 0.5.")
