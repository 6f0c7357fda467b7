"""SGD, Adam, AdamW and AMSGrad as functions of tensors: for one model, or for many stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

NUMBERS = 6  # how many numbers a rule takes


@dataclass(frozen=True)
class Rule:
    """How one parameter group is updated, but for its numbers.

    All numbers of a step, lr and weight decay among them, come in a tensor, so that a compiled
    step serves every candidate, and stacked members can each have their own.

    Attributes:
        adam: Adam and its kin, else SGD.
        momentum: Whether SGD keeps a momentum buffer.
        nesterov: Whether that momentum is Nesterov's.
        amsgrad: Whether Adam divides by the largest second moment so far.
        decoupled: Whether weight decay shrinks the weights, as in AdamW, or joins the gradient.
    """

    adam: bool
    momentum: bool = False
    nesterov: bool = False
    amsgrad: bool = False
    decoupled: bool = False

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the tensors in the optimizer's state, each of the parameter's shape."""
        if not self.adam:
            return ("momentum_buffer",) if self.momentum else ()
        return ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if self.amsgrad else ())

    def numbers(self, group: Mapping[str, Any], lr: float, step: float) -> list[float]:
        """The `NUMBERS` numbers of one update.

        Args:
            group: The parameter group's options.
            lr: Its learning rate, as it is to act.
            step: Number of this update, from 1.
        """
        decay = float(group["weight_decay"])
        shrink, coupled = (1 - lr * decay, 0.0) if self.decoupled else (1.0, decay)
        if not self.adam:
            return [shrink, coupled, lr, float(group["momentum"]), 1 - group["dampening"], 0.0]
        beta1, beta2 = map(float, group["betas"])
        size, scale = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
        return [shrink, coupled, size, 1 - beta1, 1 - beta2, scale]

    def update(
        self,
        parameter: Tensor,
        grad: Tensor,
        state: Sequence[Tensor],
        numbers: Sequence[Tensor],
        eps: float = 0.0,
    ) -> None:
        """Updates a parameter and its state in place, as torch.optim does up to rounding.

        Args:
            parameter: The parameter, or several members' stacked along a first dimension.
            grad: Its gradient.
            state: The tensors of `state_names`.
            numbers: What `numbers` gives, as tensors that broadcast to the parameter.
            eps: Adam's.
        """
        shrink, coupled, size, *others = numbers
        if self.decoupled:
            parameter.mul_(shrink)
        else:
            grad = grad + coupled * parameter
        if self.adam:
            _adam(parameter, grad, state, size, others, eps)
            return
        if self.momentum:
            momentum, undamped, _ = others
            (buffer,) = state
            buffer.mul_(momentum).add_(undamped * grad)
            grad = grad + momentum * buffer if self.nesterov else buffer
        parameter.sub_(size * grad)


def _adam(
    parameter: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    size: Tensor,
    others: Sequence[Tensor],
    eps: float,
) -> None:
    fresh1, fresh2, scale = others
    first, second, *largest = state
    first.add_(fresh1 * (grad - first))
    second.add_(fresh2 * (grad * grad - second))
    if largest:
        second = torch.maximum(largest[0], second, out=largest[0])
    parameter.sub_(size * first / (second.sqrt() * scale + eps))


def rule_of(optimizer: Optimizer, group: Mapping[str, Any]) -> Rule | None:
    """The rule of one of an optimizer's groups; None if it is another one."""
    if group.get("maximize") or group.get("differentiable"):
        return None
    if type(optimizer) is SGD:
        momentum = float(group["momentum"]) != 0
        return Rule(adam=False, momentum=momentum, nesterov=bool(group["nesterov"]))
    if type(optimizer) in (Adam, AdamW):
        decoupled = group.get("decoupled_weight_decay", type(optimizer) is AdamW)
        return Rule(adam=True, amsgrad=bool(group["amsgrad"]), decoupled=bool(decoupled))
    return None
