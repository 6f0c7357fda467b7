"""An L2 penalty with learned weights lambda, on the rows that a batch looks up.

The penalty of a batch is a mean over its pairs (u, i, j), like the loss that it joins::

    Omega = mean over pairs of  lambda_u . p_u^2 + lambda_i . q_i^2 + lambda_j . q_j^2

with an item's bias as one more number of its row. Hence its gradient is 2 lambda theta c/P for a
row that c of the P pairs look up, and zero for all others. c/P is called the row's share. Every
step, assumed or real, means this penalty and no other.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from recsys_models.data.batches import TrainBatch

Shares = Mapping[str, Tensor]


class Penalty:
    """The lambdas of a model's tables, at one granularity, and what they do to gradients.

    A table is shaped (rows, columns), its lambda likewise, with 1 in place of a size along which
    it is shared. "user" and "item" in the granularity give every row of such tables its own
    lambda, "dimension" every column. Users and items have lambdas of their own, unless the
    granularity is "global" or "dimension" alone. Where an item's bias cannot share the lambda of
    its vector, because that has several columns, it has its own.

    Args:
        tables: the model's parameters; names begin with user or item.
        granularity: words joined by "+".
    """

    def __init__(self, tables: Mapping[str, Parameter], granularity: str) -> None:
        words = granularity.split("+")
        joint = granularity in ("global", "dimension")
        self.tables = dict(tables)
        self.lambdas: dict[str, Tensor] = {}
        self._key: dict[str, str] = {}
        for name, table in tables.items():
            owner = owner_of(name)
            rows = len(table) if owner in words else 1
            columns = table.shape[1] if "dimension" in words else 1
            key = f"{'all' if joint else owner}[{rows}x{columns}]"
            self._key[name] = key
            self.lambdas.setdefault(key, table.detach().new_zeros(rows, columns))

    def of(self, name: str, rows: Tensor) -> Tensor:
        """Lambda for some rows of a table, to be broadcast: (len(rows) or 1, columns or 1)."""
        weights = self.lambdas[self._key[name]]
        return weights[rows] if len(weights) > 1 else weights

    @torch.no_grad()
    def add_to_gradients(self, shares: Shares) -> None:
        """Add 2 lambda theta c/P to the gradient of every row that the batch looks up."""
        for name, table in self.tables.items():
            assert table.grad is not None
            share = shares[owner_of(name)]
            rows = share.nonzero().squeeze(1)
            by_lambda = slope(table[rows], share[rows])
            table.grad.index_add_(0, rows, by_lambda * self.of(name, rows))

    def collect(self, parts: Iterable[tuple[str, Tensor, Tensor]]) -> dict[str, Tensor]:
        """Sum gradients by table entry into gradients by lambda.

        Args:
            parts: of each table its name, some rows, and a gradient shaped (len(rows), columns).
        """
        total = {key: torch.zeros_like(weights) for key, weights in self.lambdas.items()}
        for name, rows, values in parts:
            gradient = total[self._key[name]]
            values = values.sum_to_size(len(values), gradient.shape[1])
            if len(gradient) > 1:
                gradient.index_add_(0, rows, values)
            else:
                gradient += values.sum(0)
        return total

    def means(self, layers: Mapping[str, Iterable[str]]) -> dict[str, float]:
        """Mean lambda of each layer, given the names of its tables; every entry counts alike."""
        sizes = {name: table.numel() for name, table in self.tables.items()}
        return {
            layer: sum(sizes[n] * float(self.lambdas[self._key[n]].mean()) for n in names)
            / sum(sizes[n] for n in names)
            for layer, names in layers.items()
        }


def row_shares(batch: TrainBatch, num_users: int, num_items: int, dtype: torch.dtype) -> Shares:
    """Share c/P of every user and every item, by owner; the P pairs are those of the loss."""
    count = len(batch.users)
    negatives = torch.bincount(batch.negatives.flatten(), minlength=num_items)
    items = torch.bincount(batch.items, minlength=num_items)
    users = torch.bincount(batch.users, minlength=num_users)
    per_positive = batch.negatives.shape[1]
    return {
        "user": users.to(dtype) / count,
        "item": (items + negatives.to(dtype) / per_positive) / count,
    }


def slope(theta: Tensor, share: Tensor) -> Tensor:
    """Derivative of the gradient by lambda, 2 theta c/P, of some rows (n, columns)."""
    return 2 * theta * share.unsqueeze(1)


def owner_of(name: str) -> str:
    """Whose rows a table holds: "user" or "item"."""
    return name.partition("_")[0]
