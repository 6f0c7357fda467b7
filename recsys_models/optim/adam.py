"""Adam that visits only the rows in a batch: its lazy form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from recsys_models import native
from recsys_models.optim.row_sparse import RowSparseOptimizer, Visit, check_not_negative


class RowSparseAdam(RowSparseOptimizer):
    """Lazy Adam: a row of a large table moves at the steps whose batch names it, and at no other.

    That is not ``torch.optim.Adam``, which moves all rows at every step. There the moments of a
    row outside the batch fade, it goes on in its last direction for some ten steps, and it decays;
    here its moments, its place and its decay wait. With weight decay a row is thus drawn to 0 at
    the rate at which batches name it, so a good weight decay is a larger one. In both, t in the
    bias correction counts the table's steps.

    It is ``torch.optim.Adam`` where laziness would save nothing: for every parameter that is not
    looked up, and at a step whose batch looks up at least a quarter as many rows as the table has.

    Adam's own course has no short form: what is due to a row after n steps without a gradient
    takes n steps to work out, since each divides by a root of its own.

    Args:
        params: see ``RowSparseOptimizer``.
        lr: learning rate.
        betas: how much of the first and of the second moment is kept at a step.
        eps: added to the root of the second moment.
        weight_decay: coefficient of the L2 penalty, whose gradient goes through the moments.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas must be at least 0 and below 1; got {tuple(betas)}.")
        check_not_negative("eps", eps)
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def step_rows(self, table: Tensor, visit: Visit, group: dict[str, Any]) -> None:
        """Update rows and their moments."""
        state = self._state(table)
        rows = *visit, self.places_of(table)
        step = float(state["step"]) + 1
        named = group["lr"], *group["betas"], group["eps"], group["weight_decay"], step
        options = tuple(map(float, named))
        if native.adam_rows(table, state["exp_avg"], state["exp_avg_sq"], *rows, options):
            state["step"].fill_(step)
            return
        ids, grad = self.summed(table, visit)
        tensors = [table, state["exp_avg"], state["exp_avg_sq"]]
        weights, first, second = updated = [tensor.index_select(0, ids) for tensor in tensors]
        _adam([weights], [grad], [first], [second], [state["step"]], group)
        for tensor, values in zip(tensors, updated, strict=True):
            tensor.index_copy_(0, ids, values)

    def step_dense(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Update whole parameters as ``torch.optim.Adam`` does."""
        states = [self._state(parameter) for parameter in params]
        keys = ("exp_avg", "exp_avg_sq", "step")
        first, second, steps = ([state[key] for state in states] for key in keys)
        _adam(params, grads, first, second, steps, group)

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _adam(
    params: list[Tensor],
    grads: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    steps: list[Tensor],
    group: dict[str, Any],
) -> None:
    """One step of ``torch.optim.Adam``, with the present options, which anyone may have changed."""
    beta1, beta2 = group["betas"]
    adam(
        params,
        grads,
        first,
        second,
        [],
        steps,
        fused=all(p.device.type in ("cpu", "cuda") for p in params),
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=float(group["lr"]),
        weight_decay=float(group["weight_decay"]),
        eps=group["eps"],
        maximize=False,
    )
