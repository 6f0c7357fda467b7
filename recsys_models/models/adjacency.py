"""The normalised adjacency of users and items, and its product with a table."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recsys_models import native
from recsys_models.data.interactions import Interactions
from recsys_models.models.dropout import dropout

Norm = Literal["sym", "rw_selfloop"]


@dataclass(frozen=True, eq=False)
class Adjacency:
    """A normalised adjacency matrix over users and then items, in compressed rows.

    Where it has an entry (r, c) it has an entry (c, r), perhaps of another value. So its transpose
    has the same offsets and columns, and takes only values of its own.

    Attributes:
        row_offsets: first entry of each row, and the number of entries, shape (n + 1,), int32.
        columns: column of each entry, ascending in each row, shape (entries,), int32.
        values: value of each entry (r, c), shape (entries,).
        transposed_values: value of (c, r), in the place of (r, c); the very same tensor where the
            matrix is symmetric.
        transposed_places: place of (c, r), in the place of (r, c), shape (entries,), int64.
    """

    row_offsets: Tensor
    columns: Tensor
    values: Tensor
    transposed_values: Tensor
    transposed_places: Tensor

    @classmethod
    def from_interactions(cls, train: Interactions, norm: Norm) -> Adjacency:
        """Build from training pairs; with A their bipartite graph, D its row sums.

        Args:
            train: the pairs, each an edge in both directions.
            norm: "sym" is D^-1/2 A D^-1/2, where a node without an edge has a row of zeros;
                "rw_selfloop" is D^-1 (A + I) with D of A + I, so that rows sum to 1.
        """
        items = train.num_users + train.items
        rows, columns = np.append(train.users, items), np.append(items, train.users)
        size = train.num_users + train.num_items
        if norm == "rw_selfloop":
            nodes = np.arange(size)
            rows, columns = np.append(rows, nodes), np.append(columns, nodes)
        order = np.argsort(rows * size + columns)
        rows, columns = rows[order], columns[order]
        degree = np.bincount(rows, minlength=size)
        scale = degree[rows] * degree[columns] if norm == "sym" else degree[rows] ** 2
        values = torch.from_numpy(1 / np.sqrt(scale)).float()
        places = torch.from_numpy(np.argsort(columns * size + rows))
        adjacency = cls(
            torch.from_numpy(np.append(0, np.cumsum(degree))).int(),
            torch.from_numpy(columns).int(),
            values,
            values if norm == "sym" else values[places],
            places,
        )
        with warnings.catch_warnings():  # torch calls its CSR format beta, once in a process
            warnings.filterwarnings("ignore", message=".*CSR.*")
            adjacency.csr()
        return adjacency

    def transpose(self) -> Adjacency:
        """The transpose; nothing is copied."""
        return replace(self, values=self.transposed_values, transposed_values=self.values)

    def csr(self) -> Tensor:
        """The matrix as a sparse tensor, shape (n, n); nothing is copied."""
        return _csr(self.row_offsets, self.columns, self.values)

    def to(self, device: torch.device, dtype: torch.dtype) -> Adjacency:
        """The same matrix there; itself where it is there already."""
        if self.values.device == device and self.values.dtype == dtype:
            return self
        values = self.values.to(device, dtype)
        symmetric = self.transposed_values is self.values
        return Adjacency(
            self.row_offsets.to(device),
            self.columns.to(device),
            values,
            values if symmetric else self.transposed_values.to(device, dtype),
            self.transposed_places.to(device),
        )

    def drop_entries(self, rate: float) -> Adjacency:
        """A copy in which each entry is 0 with probability `rate`, else divided by 1 - rate.

        The two directions of an edge are dropped independently, so the result is not symmetric.
        """
        values = dropout(self.values, rate)
        return replace(self, values=values, transposed_values=values[self.transposed_places])

    def product(self, x: Tensor) -> Tensor:
        """The matrix times x, shape (n, d); differentiable in x, any number of times."""
        product: Tensor = _SparseProduct.apply(x.to(self.values.dtype), self)  # type: ignore[no-untyped-call]
        return product.to(x.dtype)


def _csr(row_offsets: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    size = (len(row_offsets) - 1,) * 2
    return torch.sparse_csr_tensor(row_offsets, columns, values, size=size, check_invariants=False)


# An operation to torch, so that a compiled loss calls it as it is.
@torch.library.custom_op("recsys_models::product", mutates_args=())
def _product(row_offsets: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    product = native.sparse_product(row_offsets, columns, values, x)
    return torch.mm(_csr(row_offsets, columns, values), x) if product is None else product


@_product.register_fake
def _(row_offsets: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _SparseProduct(torch.autograd.Function):
    """A x, whose gradient is A^T g: with A^T at hand, torch need not transpose at every step."""

    @staticmethod
    def forward(x: Tensor, adjacency: Adjacency) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # few types have a sparse product
            parts = adjacency.row_offsets, adjacency.columns, adjacency.values
            product: Tensor = _product(*parts, x)
            return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Adjacency], output: Tensor) -> None:
        ctx.adjacency = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SparseProduct.apply(grad, ctx.adjacency.transpose()), None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None], x: Tensor, adjacency: Adjacency
    ) -> tuple[Tensor, int]:
        """Stacked x side by side, so that one product serves all."""
        stacked = x.movedim(in_dims[0], 1)
        product = _SparseProduct.apply(stacked.flatten(1), adjacency)  # type: ignore[no-untyped-call]
        return product.view(stacked.shape), 1
