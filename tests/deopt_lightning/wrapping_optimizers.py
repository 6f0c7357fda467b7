"""Optimizers that keep their state in other places than torch's do, as many outside of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer


class Sharp(Optimizer):
    """Sharpness-aware minimization: Adam's moments lie in an inner optimizer."""

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.base_optimizer = Adam(self.param_groups, lr=lr, weight_decay=weight_decay)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        parameters = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        for parameter in parameters:
            self.state[parameter]["before"] = parameter.clone()
            parameter.add_(parameter.grad, alpha=0.05)
        with torch.enable_grad():
            closure()
        for parameter in parameters:
            parameter.copy_(self.state[parameter]["before"])
        self.base_optimizer.step()
        return loss


class Lookahead(Optimizer):
    """Slow weights and a counter among its own attributes; the state is that of the inner one."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        inner = Adam(params, lr=lr)
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.state, self.param_groups = inner, inner.state, inner.param_groups
        self.steps = 0
        self.slow: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.inner.step(closure)
        self.steps += 1
        if self.steps % 5 == 0:
            for parameter in (p for group in self.param_groups for p in group["params"]):
                slow = self.slow.setdefault(parameter, parameter.clone())
                slow.lerp_(parameter, 0.5)
                parameter.copy_(slow)
        return loss


class Sums(Optimizer):
    """A sum of squared lrs in each group, as schedule-free ones; a count for all, as MADGRAD."""

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "sum": 0.0})
        self.state["count"] = torch.zeros(1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.state["count"] += 1
        self.state["steps"] = self.state.get("steps", 0) + 1
        for group in self.param_groups:
            group["sum"] += group["lr"] ** 2
            share = group["lr"] ** 2 / group["sum"]
            size = group["lr"] * (share + 1 / float(self.state["count"] + self.state["steps"]))
            for parameter in (p for p in group["params"] if p.grad is not None):
                parameter.mul_(1 - size * group["weight_decay"]).sub_(parameter.grad, alpha=size)
        return loss


class Bounded(Optimizer):
    """A list with the lr that each group began with, as AdaBound's."""

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.base_lrs = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for group, base_lr in zip(self.param_groups, self.base_lrs, strict=False):
            most = 0.1 * group["lr"] / base_lr
            for parameter in (p for p in group["params"] if p.grad is not None):
                parameter.sub_((group["lr"] * parameter.grad).clamp(-most, most))
        return loss
