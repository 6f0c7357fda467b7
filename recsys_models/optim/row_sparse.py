"""What row-sparse optimizers share: look-ups with gradients of rows, and the frame of a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class RowSparseOptimizer(Optimizer):
    """An optimizer whose step costs what a batch looks up, not what its tables hold.

    A table that training reads through `lookup` gets a sparse gradient, and only its rows in the
    batch are updated. What is due to the others may be deferred, so between steps a table's rows
    are current only where `lookup` returns them, or after `flush`. All else, and a table that was
    read through `whole`, gets a dense gradient and torch's own dense update.

    What is deferred lies in ``state[table]`` beside the moments: whoever copies and restores
    weights and optimizer state as they are, at any time, has a consistent copy. `state_dict`
    flushes first and holds what torch's own optimizer of the kind holds.

    Args:
        params: parameters or groups, as for any optimizer of torch.
        defaults: options of the groups.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        check_not_negative("lr", defaults["lr"])
        check_not_negative("weight_decay", defaults["weight_decay"])
        super().__init__(params, defaults)
        self._looked_up: set[int] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Keep out of copies what names the original's parameters."""
        super().__setstate__(state)
        self._looked_up = set()

    def lookup(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table, brought up to date: from ids of shape (...) to (..., dim)."""
        if not torch.is_grad_enabled():
            values = self.current_rows(table, ids.flatten())
        elif self.prefers_dense(table, ids.numel()):
            values = self.whole(table).index_select(0, ids.flatten())
        else:
            self._looked_up.add(id(table))
            values = _Lookup.apply(table, ids.flatten(), self)  # type: ignore[no-untyped-call]
        return values.view(*ids.shape, -1)

    def whole(self, table: Tensor) -> Tensor:
        """The table itself, all of its rows up to date; costs as much as the table is large."""
        self.flush(table)
        return table

    @torch.no_grad()
    def flush(self, table: Tensor | None = None) -> None:
        """Bring all rows up to date, of one table or of all."""
        for each in list(self.state) if table is None else [table]:
            self.flush_table(each)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update rows where the gradient is sparse, and whole parameters where it is dense."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse and id(parameter) in self._looked_up:
                    grad = parameter.grad.coalesce()
                    self.step_rows(parameter, grad.indices()[0], grad.values(), group)
                else:
                    self._check_current(parameter)
                    dense.append(parameter)
            if dense:
                self.step_dense(dense, [_densely(parameter.grad) for parameter in dense], group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As for any optimizer, after a flush: nothing in it is deferred."""
        self.flush()
        return super().state_dict()

    def clip_gradients(self, limit: float, algorithm: str) -> None:
        """Clip dense gradients and gradients of rows as if all were dense.

        Args:
            limit: largest norm of all gradients together, or largest absolute value of an entry.
            algorithm: "norm" or "value".
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        parameters = [p for p in parameters if p.grad is not None]
        for parameter in parameters:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
        grads = [p.grad.values() if p.grad.is_sparse else p.grad for p in parameters]
        if algorithm == "value":
            for grad in grads:
                grad.clamp_(-limit, limit)
        elif grads:
            factor = (limit / (get_total_norm(grads) + 1e-6)).clamp(max=1.0)  # as torch has it
            for grad in grads:
                grad.mul_(factor)

    def prefers_dense(self, table: Tensor, count: int) -> bool:
        """Whether to read so many rows by a dense gradient; only where that changes no result."""
        return False

    def current_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows as all steps so far have left them: from shape (n,) to (n, dim)."""
        return table.index_select(0, ids)

    def is_pending(self, table: Tensor) -> bool:
        """Whether rows of the table may wait for an update."""
        return False

    def flush_table(self, table: Tensor) -> None:
        """Bring all rows of one table up to date."""
        return

    @abstractmethod
    def step_rows(self, table: Tensor, ids: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Update rows.

        Args:
            table: the table.
            ids: the rows, each once, shape (n,).
            grad: their gradients, shape (n, dim).
            group: the options.
        """

    @abstractmethod
    def step_dense(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Update whole parameters as torch's own optimizer does."""

    def _check_current(self, parameter: Tensor) -> None:
        if self.is_pending(parameter):
            raise RuntimeError(
                f"{type(self).__name__} got a dense gradient of a table of shape "
                f"{tuple(parameter.shape)}, some of whose rows were not up to date when it was "
                "read. Read it through lookup(table, ids) or whole(table) wherever the training "
                "loss uses it, or take an optimizer of torch.optim."
            )


class _Lookup(torch.autograd.Function):
    """Current rows of a table, whose gradient is sparse."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, optimizer: RowSparseOptimizer) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.size = table.shape
        return optimizer.current_rows(table, ids)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        rows = torch.sparse_coo_tensor(ids.unsqueeze(0), grad, ctx.size, check_invariants=False)
        return rows.coalesce(), None, None


def check_not_negative(name: str, value: float) -> None:
    """Refuse a negative or undefined option."""
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0; got {value}.")


def _densely(grad: Tensor) -> Tensor:
    return grad.to_dense() if grad.is_sparse else grad
