"""SGD that visits only the rows in a batch, and does to all others what is due to them later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from recsys_models import native
from recsys_models.optim import deferred
from recsys_models.optim.row_sparse import RowSparseOptimizer, Visit, check_not_negative

_LEAST_KEPT = 0.5  # of the weights in a step; a decay beyond that is done to all rows at once
_LEAST_SCALE = 1e-2  # of all rows together, before it is multiplied out
_ROWS_AT_A_TIME = 4096  # of a flush, whose temporary results then stay in the caches


class RowSparseSGD(RowSparseOptimizer):
    """``torch.optim.SGD`` up to rounding, at a cost that does not grow with the tables.

    Weight decay multiplies all rows of a table by the same number. So a table in training is
    stored as ``weights / scale``; a step multiplies the scale, and touches only rows with a
    gradient. With momentum, a step of other rows is a 2 x 2 matrix times weights and momentum,
    see ``deferred``. Both hold for any lr, weight decay and momentum that each step has.

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

    def read(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows as all steps so far have left them: from ids of shape (n,) to (n, dim)."""
        state = self._state_of(table)
        if deferred.is_pending(state):
            found = native.caught_up_rows(table, *deferred.tensors_of(state), ids)
            return deferred.caught_up(state, table, ids)[0] if found is None else found
        rows = table.index_select(0, ids)
        return rows.mul_(float(state["scale"])) if "scale" in state else rows

    def is_pending(self, table: Tensor) -> bool:
        """Whether rows of the table may wait for an update."""
        state = self._state_of(table)
        return "scale" in state or deferred.is_pending(state)

    def flush_table(self, table: Tensor) -> None:
        """Bring all rows of one table up to date."""
        state = self._state_of(table)
        if "scale" in state:
            table.mul_(float(state.pop("scale")))
        elif deferred.is_pending(state):
            for start in range(0, len(table), _ROWS_AT_A_TIME):
                rows = slice(start, start + _ROWS_AT_A_TIME)
                table[rows], state["momentum_buffer"][rows] = deferred.caught_up(state, table, rows)
            deferred.settle(state)

    def step_rows(self, table: Tensor, visit: Visit, group: dict[str, Any]) -> None:
        """Update rows; what is due to all others is deferred."""
        state, has_momentum = self.state[table], float(group["momentum"]) != 0
        if deferred.is_full(state) or (
            self.is_pending(table) and ("scale" in state) == has_momentum
        ):
            self.flush_table(table)
        if has_momentum:
            self._step_with_momentum(table, visit, group)
        else:
            self._step_scaled(table, visit, group)

    def _step_scaled(self, table: Tensor, visit: Visit, group: dict[str, Any]) -> None:
        state, lr = self.state[table], float(group["lr"])
        kept = 1 - lr * float(group["weight_decay"])
        scale = kept * float(state.get("scale", 1.0))
        if not (kept > _LEAST_KEPT and scale > _LEAST_SCALE):
            self.flush_table(table)
            table.mul_(kept)
            scale = 1.0
        if scale != 1.0:
            state.setdefault("scale", torch.tensor(1.0, dtype=torch.float64)).fill_(scale)
        if not native.add_rows(table, *visit, -lr / scale):
            table.index_add_(0, visit.ids, visit.grad * (-lr / scale))

    def _step_with_momentum(self, table: Tensor, visit: Visit, group: dict[str, Any]) -> None:
        lr, momentum, decay = (float(group[key]) for key in ("lr", "momentum", "weight_decay"))
        state, buffer = self.state[table], self._momentum_of(table)
        number = deferred.begin_step(state, table)
        places, options = self.places_of(table), (lr, momentum, decay)
        behind = deferred.tensors_of(state)
        if native.momentum_rows(table, *behind, number, *visit, places, options):
            return
        ids, grad = self.summed(table, visit)
        weights, momentum_rows = deferred.caught_up(state, table, ids)
        _sgd([weights], [grad], [momentum_rows], group)
        table.index_copy_(0, ids, weights)
        buffer.index_copy_(0, ids, momentum_rows)
        matrix = [[1 - lr * decay, -lr * momentum], [decay, momentum]]
        deferred.defer(state, matrix, ids)

    def step_dense(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Update whole parameters as ``torch.optim.SGD`` does."""
        has_momentum = float(group["momentum"]) != 0
        buffers = [self._momentum_of(p) if has_momentum else None for p in params]
        _sgd(params, grads, buffers, group)

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        """Its momentum; zeros before the first step, whose momentum is then the gradient."""
        state = self.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        """Its state, without making one."""
        state: dict[str, Any] = self.state.get(parameter, {})
        return state


def _sgd(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor] | list[Tensor | None],
    group: dict[str, Any],
) -> None:
    """One step of ``torch.optim.SGD``, with the present options, which anyone may have changed."""
    sgd(
        params,
        grads,
        list(buffers),
        fused=all(p.device.type in ("cpu", "cuda") for p in params),
        lr=float(group["lr"]),
        momentum=float(group["momentum"]),
        weight_decay=float(group["weight_decay"]),
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
