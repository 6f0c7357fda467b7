"""What row-sparse optimizers share: look-ups with gradients of rows, and the frame of a step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

_DENSE_UP_TO = 4  # rows of a table for each row that a batch looks up


class Visit(NamedTuple):
    """What a step is to know of the rows that were looked up; a row may stand there repeatedly.

    Attributes:
        ids: the rows, shape (n,).
        grad: their gradients, shape (n, dim).
    """

    ids: Tensor
    grad: Tensor


class RowSparseOptimizer(Optimizer):
    """An optimizer whose step costs what a batch looks up, not what its tables hold.

    Of a table that training reads through `lookup` only the rows in the batch are updated; their
    gradients come here instead of to ``table.grad``. What is due to other rows may be deferred, so
    between steps a table's rows are current only where `lookup` returns them, or after `flush`.
    All else, and a table that was read through `whole`, gets a dense gradient and torch's own
    dense update.

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
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Gradients are no part of a copy."""
        super().__setstate__(state)
        self._forget()

    def _forget(self) -> None:
        self._visits: dict[Tensor, list[Visit]] = {}
        self._places: dict[Tensor, Tensor] = {}  # room to work in, one number per row

    def lookup(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table, brought up to date: from ids of shape (...) to (..., dim)."""
        if not torch.is_grad_enabled():
            values = self.read(table, ids.flatten())
        elif self.prefers_dense(table, ids.numel()):
            values = self.whole(table).index_select(0, ids.flatten())
        else:
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
        """Update the rows of tables that were looked up, and all else as a whole."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._check_current(parameter)
                    dense.append(parameter)
                elif parameter in self._visits:
                    self.step_rows(parameter, self._visit_of(parameter), group)
            if dense:
                self.step_dense(dense, [self._dense_grad(p) for p in dense], group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        self._visits.clear()
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As for any optimizer, after a flush: nothing in it is deferred."""
        self.flush()
        return super().state_dict()

    @torch.no_grad()
    def clip_gradients(self, limit: float, algorithm: str) -> None:
        """Clip all gradients, of rows and others, as if they were dense.

        Args:
            limit: largest norm of all gradients together, or largest absolute value of an entry.
            algorithm: "norm" or "value".
        """
        grads = []
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.grad is not None:
                parameter.grad = self._dense_grad(parameter)
                grads.append(parameter.grad)
            elif parameter in self._visits:
                visit = self.summed(parameter, self._visit_of(parameter), repeat=False)
                self._visits[parameter] = [visit]
                grads.append(visit.grad)
        if algorithm == "value":
            for grad in grads:
                grad.clamp_(-limit, limit)
        elif grads:
            factor = (limit / (get_total_norm(grads) + 1e-6)).clamp(max=1.0)  # as torch has it
            for grad in grads:
                grad.mul_(factor)

    def receive(self, table: Tensor, visit: Visit) -> None:
        """Take gradients of rows, for the next step."""
        self._visits.setdefault(table, []).append(visit)

    def prefers_dense(self, table: Tensor, count: int) -> bool:
        """Whether so many look-ups name a good part of a table, so that a dense step is faster."""
        return len(table) <= _DENSE_UP_TO * count

    def read(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows as all steps so far have left them: from ids of shape (n,) to (n, dim)."""
        return table.index_select(0, ids)

    def is_pending(self, table: Tensor) -> bool:
        """Whether rows of the table may wait for an update."""
        return False

    def flush_table(self, table: Tensor) -> None:
        """Bring all rows of one table up to date."""
        return

    @abstractmethod
    def step_rows(self, table: Tensor, visit: Visit, group: dict[str, Any]) -> None:
        """Update rows; see `summed` for those that stand in the visit more than once."""

    @abstractmethod
    def step_dense(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Update whole parameters as torch's own optimizer does."""

    def summed(self, table: Tensor, visit: Visit, repeat: bool = True) -> Visit:
        """The same rows with the sum of each row's gradients.

        Without sorting: each place in the list is written to its row, and the one that stands there
        in the end is the row's own. Which one it is makes no difference.

        Args:
            table: the table.
            visit: the rows.
            repeat: whether the sum stands at all places of a row, or at one, with 0 at the others.
        """
        ids, grad = visit
        places = self.places_of(table)
        places.scatter_(0, ids, torch.arange(len(ids), device=ids.device))
        own = places.index_select(0, ids)
        total = torch.zeros_like(grad).index_add_(0, own, grad)
        return Visit(ids, total.index_select(0, own) if repeat else total)

    def places_of(self, table: Tensor) -> Tensor:
        """Room to work in, one number for each row: shape (rows,), int64."""
        if table not in self._places:
            self._places[table] = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        return self._places[table]

    def _visit_of(self, table: Tensor) -> Visit:
        """All that was looked up of a table since the last step."""
        visits = self._visits[table]
        if len(visits) == 1:
            return visits[0]
        return Visit(*map(torch.cat, zip(*visits, strict=True)))

    def _dense_grad(self, parameter: Tensor) -> Tensor:
        """Its gradient with what came by rows, and by torch's own sparse gradients."""
        assert parameter.grad is not None
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        for visit in self._visits.pop(parameter, []):
            grad = grad.index_add(0, visit.ids, visit.grad)
        return grad

    def _check_current(self, parameter: Tensor) -> None:
        if self.is_pending(parameter):
            raise RuntimeError(
                f"{type(self).__name__} got a dense gradient of a table of shape "
                f"{tuple(parameter.shape)}, some of whose rows were not up to date when it was "
                "read. Read it through lookup(table, ids) or whole(table) wherever the training "
                "loss uses it, or take an optimizer of torch.optim."
            )


class _Lookup(torch.autograd.Function):
    """Current rows of a table; their gradients go to the optimizer and not to the table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, optimizer: RowSparseOptimizer) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.optimizer = table, optimizer
        return optimizer.read(table, ids)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.optimizer.receive(ctx.table, Visit(ids, grad))
        return None, None, None


def check_not_negative(name: str, value: float) -> None:
    """Refuse a negative or undefined option."""
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0; got {value}.")
