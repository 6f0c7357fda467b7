"""SGD that visits only the rows in a batch, and does to all others what is due to them later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from recsys_models.optim import deferred
from recsys_models.optim.row_sparse import RowSparseOptimizer, check_not_negative

_DENSE_UP_TO = 4  # rows of a table per row that is looked up; a larger table is visited by rows


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

    def prefers_dense(self, table: Tensor, count: int) -> bool:
        """Whether a table is small beside the rows that are looked up."""
        return len(table) <= _DENSE_UP_TO * count

    def current_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows as all steps so far have left them: from shape (n,) to (n, dim)."""
        return self._vectors(table, ids)[0]

    def is_pending(self, table: Tensor) -> bool:
        """Whether rows of the table may wait for an update."""
        return table in self.state and deferred.is_pending(self.state[table])

    def flush_table(self, table: Tensor) -> None:
        """Bring all rows of one table up to date."""
        if self.is_pending(table):
            state = self.state[table]
            stored = self._deferred(table)
            for old, new in zip(stored, deferred.caught_up(state, stored), strict=True):
                old.copy_(new)
            deferred.settle(state)

    def step_rows(self, table: Tensor, ids: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Update rows; the decay and momentum of all others are deferred."""
        lr, momentum, decay = _options(group)
        state = self.state[table]
        if self.is_pending(table) and (
            deferred.is_full(state) or (deferred.width(state) > 1) != (momentum != 0)
        ):
            self.flush_table(table)
        buffer = self._momentum_of(table) if momentum else None
        weights, *rest = self._vectors(table, ids, with_momentum=momentum != 0)
        update = grad.add(weights, alpha=decay)
        matrix = [[1 - lr * decay]]
        if buffer is not None:
            update.add_(rest[0], alpha=momentum)
            buffer.index_copy_(0, ids, update)
            matrix = [[1 - lr * decay, -lr * momentum], [decay, momentum]]
        table.index_copy_(0, ids, weights.sub_(update, alpha=lr))
        deferred.defer(state, table, matrix, ids)

    def step_dense(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Update whole parameters as ``torch.optim.SGD`` does."""
        lr, momentum, decay = _options(group)
        buffers = [self._momentum_of(p) if momentum else None for p in params]
        sgd(
            params,
            grads,
            buffers,
            fused=all(p.device.type in ("cpu", "cuda") for p in params),
            lr=lr,
            momentum=momentum,
            weight_decay=decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        """Its momentum; zeros before the first step, whose momentum is then the gradient."""
        state = self.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _vectors(self, table: Tensor, ids: Tensor, with_momentum: bool = False) -> list[Tensor]:
        """Current weights of rows and, where deferred or asked for, their current momentum."""
        if self.is_pending(table):
            stored = [tensor.index_select(0, ids) for tensor in self._deferred(table)]
            return deferred.caught_up(self.state[table], stored, ids)
        tensors = [table, self._momentum_of(table)] if with_momentum else [table]
        return [tensor.index_select(0, ids) for tensor in tensors]

    def _deferred(self, table: Tensor) -> list[Tensor]:
        """The tensors whose rows wait for an update."""
        alone = deferred.width(self.state[table]) == 1
        return [table] if alone else [table, self._momentum_of(table)]


def _options(group: dict[str, Any]) -> tuple[float, float, float]:
    """The present lr, momentum and weight decay, which anyone may have rewritten."""
    return float(group["lr"]), float(group["momentum"]), float(group["weight_decay"])
