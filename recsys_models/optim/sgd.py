"""SGD that visits only the rows in a batch, and does to all others what is due to them later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from recsys_models.optim import deferred
from recsys_models.optim.row_sparse import RowSparseOptimizer, Visit, check_not_negative


class RowSparseSGD(RowSparseOptimizer):
    """``torch.optim.SGD`` up to rounding, at a cost that does not grow with the tables.

    Without a gradient a step multiplies a row by 1 - lr * weight_decay; with momentum it is a
    2 x 2 matrix times the row and its momentum. These steps are deferred for rows outside the
    batch and done at once, with the lr, weight decay and momentum that each step had, when the row
    is looked up next, or by `flush`. Small tables, of which a batch names a good part, are updated
    densely, which is faster and gives the same.

    Args:
        params: see ``RowSparseOptimizer``.
        lr: learning rate.
        momentum: as in ``torch.optim.SGD``; with neither dampening nor Nesterov's form.
        weight_decay: coefficient of the L2 penalty, which applies to all rows at every step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        check_not_negative("momentum", momentum)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def read(self, table: Tensor, ids: Tensor) -> list[Tensor]:
        """Rows as all steps so far have left them, and their momentum if it is behind, too."""
        size = deferred.width(self.state[table]) if self.is_pending(table) else 1
        stored = [tensor.index_select(0, ids) for tensor in self._tensors(table, size)]
        return (
            deferred.caught_up(self.state[table], stored, ids) if self.is_pending(table) else stored
        )

    def is_pending(self, table: Tensor) -> bool:
        """Whether rows of the table may wait for an update."""
        return table in self.state and deferred.is_pending(self.state[table])

    def flush_table(self, table: Tensor) -> None:
        """Bring all rows of one table up to date."""
        if self.is_pending(table):
            state = self.state[table]
            stored = self._tensors(table, deferred.width(state))
            for old, new in zip(stored, deferred.caught_up(state, stored), strict=True):
                old.copy_(new)
            deferred.settle(state)

    def step_rows(self, table: Tensor, visit: Visit, group: dict[str, Any]) -> None:
        """Update rows; the decay and momentum of all others are deferred."""
        lr, momentum, decay = (float(group[key]) for key in ("lr", "momentum", "weight_decay"))
        matrix = [[1 - lr * decay]]
        if momentum:
            matrix = [[1 - lr * decay, -lr * momentum], [decay, momentum]]
        state, size = self.state[table], len(matrix)
        if self.is_pending(table) and (deferred.is_full(state) or deferred.width(state) != size):
            self.flush_table(table)
        tensors = self._tensors(table, size)
        rows = visit.vectors[:size]
        rows += [tensor.index_select(0, visit.ids) for tensor in tensors[len(rows) :]]
        buffers: list[Tensor | None] = [rows[1]] if momentum else [None]
        _sgd(rows[:1], [visit.grad], buffers, group)
        for tensor, values in zip(tensors, rows, strict=True):
            tensor.index_copy_(0, visit.ids, values)
        deferred.defer(state, table, matrix, visit.ids)

    def step_dense(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Update whole parameters as ``torch.optim.SGD`` does."""
        _sgd(
            params,
            grads,
            [self._momentum_of(p) if group["momentum"] else None for p in params],
            group,
        )

    def _tensors(self, table: Tensor, size: int) -> list[Tensor]:
        """The table and, if there are two vectors to a row, its momentum."""
        return [table] if size == 1 else [table, self._momentum_of(table)]

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        """Its momentum; zeros before the first step, whose momentum is then the gradient."""
        state = self.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _sgd(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None], group: dict[str, Any]
) -> None:
    """One step of ``torch.optim.SGD``, with the present options, which anyone may have changed."""
    sgd(
        params,
        grads,
        buffers,
        fused=all(p.device.type in ("cpu", "cuda") for p in params),
        lr=float(group["lr"]),
        momentum=float(group["momentum"]),
        weight_decay=float(group["weight_decay"]),
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
