"""One step of SGD, Adam, AMSGrad and AdaMod as pure functions, each with its derivative.

A step takes theta, the gradient G of the whole loss (penalty included), the optimizer's state and
its settings, and returns theta' and the new state. A slope is the derivative d theta'/d G. All are
elementwise, so they hold for a whole table and for chosen rows of it alike.

In all formulas t counts steps from 1, a is the learning rate, b1, b2, b3 are the betas, and
``m = b1 m + (1 - b1) G``, ``v = b2 v + (1 - b2) G^2``.
"""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

State = Mapping[str, Tensor]


class Hyper(NamedTuple):
    """Settings of an optimizer.

    Attributes:
        lr: learning rate a.
        betas: b1, b2 (and b3 for AdaMod); unused by SGD.
        eps: e, added to the root of the second moment; unused by SGD.
    """

    lr: float
    betas: tuple[float, ...] = ()
    eps: float = 0.0


class Rule(NamedTuple):
    """What is to be known of an optimizer in order to look one step ahead.

    Attributes:
        step: (theta, grad, state, hyper) to theta' and the new state.
        slope: (grad, state, hyper) to d theta'/d grad; the state is that before the step.
        moments: names of the state's tensors that are shaped like theta. Beside them the state of
            all but SGD holds "step", the number of steps taken so far.
    """

    step: Callable[[Tensor, Tensor, State, Hyper], tuple[Tensor, State]]
    slope: Callable[[Tensor, State, Hyper], Tensor]
    moments: tuple[str, ...]


def sgd_step(theta: Tensor, grad: Tensor, state: State, hyper: Hyper) -> tuple[Tensor, State]:
    """SGD without momentum: theta' = theta - a G, as in ``torch.optim.SGD``."""
    return theta - hyper.lr * grad, state


def sgd_slope(grad: Tensor, state: State, hyper: Hyper) -> Tensor:
    """SGD: d theta'/dG = -a."""
    return torch.full_like(grad, -hyper.lr)


def adam_step(theta: Tensor, grad: Tensor, state: State, hyper: Hyper) -> tuple[Tensor, State]:
    """Adam: theta' = theta - a (m / (1 - b1^t)) / (s + e), s = sqrt(v / (1 - b2^t)).

    As in ``torch.optim.Adam``.
    """
    new = _moments(grad, state, hyper)
    return _adam_update(theta, new["exp_avg_sq"], new, hyper), new


def adam_slope(grad: Tensor, state: State, hyper: Hyper) -> Tensor:
    """Adam: see `_adam_slope`; v moves with G everywhere."""
    new = _moments(grad, state, hyper)
    return _adam_slope(grad, new["exp_avg_sq"], new, hyper)


def amsgrad_step(theta: Tensor, grad: Tensor, state: State, hyper: Hyper) -> tuple[Tensor, State]:
    """AMSGrad: Adam with the largest v so far, before its bias correction, in place of v.

    As in ``torch.optim.Adam(amsgrad=True)``.
    """
    new = _moments(grad, state, hyper)
    largest = torch.maximum(state["max_exp_avg_sq"], new["exp_avg_sq"])
    return _adam_update(theta, largest, new, hyper), new | {"max_exp_avg_sq": largest}


def amsgrad_slope(grad: Tensor, state: State, hyper: Hyper) -> Tensor:
    """AMSGrad: as Adam where v is the largest so far; elsewhere the root does not move with G."""
    new = _moments(grad, state, hyper)
    before, now = state["max_exp_avg_sq"], new["exp_avg_sq"]
    return _adam_slope(torch.where(now > before, grad, 0.0), torch.maximum(before, now), new, hyper)


def adamod_step(theta: Tensor, grad: Tensor, state: State, hyper: Hyper) -> tuple[Tensor, State]:
    """AdaMod: theta' = theta - min(eta, S) m, with a moving average S of Adam's rates eta.

    ``eta = a sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + e)`` and ``S = b3 S + (1 - b3) eta``, as in
    ``pytorch_optimizer.AdaMod`` and the authors' program. Their paper bounds another eta, without
    the bias corrections.
    """
    new = _moments(grad, state, hyper)
    eta = _adamod_scale(new, hyper) / (new["exp_avg_sq"].sqrt() + hyper.eps)
    average = state["exp_avg_lr"].lerp(eta, 1 - hyper.betas[2])
    rate = torch.minimum(eta, average)
    return theta - rate * new["exp_avg"], new | {"exp_avg_lr": average}


def adamod_slope(grad: Tensor, state: State, hyper: Hyper) -> Tensor:
    """AdaMod: d theta'/dG = -(1 - b1) min(eta, S) - m d min(eta, S)/dG.

    ``d eta/dG = -eta (1 - b2) G / (sqrt(v) (sqrt(v) + e))``, of which S moves by 1 - b3.
    """
    beta1, beta2, beta3 = hyper.betas
    new = _moments(grad, state, hyper)
    root = new["exp_avg_sq"].sqrt()
    eta = _adamod_scale(new, hyper) / (root + hyper.eps)
    average = state["exp_avg_lr"].lerp(eta, 1 - beta3)
    eta_slope = -eta * _where_positive((1 - beta2) * grad, root) / (root + hyper.eps)
    rate_slope = torch.where(eta < average, eta_slope, (1 - beta3) * eta_slope)
    return -(1 - beta1) * torch.minimum(eta, average) - new["exp_avg"] * rate_slope


SGD = Rule(sgd_step, sgd_slope, ())
ADAM = Rule(adam_step, adam_slope, ("exp_avg", "exp_avg_sq"))
AMSGRAD = Rule(amsgrad_step, amsgrad_slope, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
ADAMOD = Rule(adamod_step, adamod_slope, ("exp_avg", "exp_avg_sq", "exp_avg_lr"))


def _moments(grad: Tensor, state: State, hyper: Hyper) -> dict[str, Tensor]:
    """Step count, m and v after the step."""
    beta1, beta2 = hyper.betas[:2]
    return {
        "step": state["step"] + 1,
        "exp_avg": state["exp_avg"].lerp(grad, 1 - beta1),
        "exp_avg_sq": (state["exp_avg_sq"] * beta2).addcmul(grad, grad, value=1 - beta2),
    }


def _corrections(new: State, hyper: Hyper) -> tuple[float, float]:
    """The bias corrections 1 - b1^t and 1 - b2^t, in double precision."""
    t = int(new["step"])
    return 1 - hyper.betas[0] ** t, 1 - hyper.betas[1] ** t


def _adam_update(theta: Tensor, v: Tensor, new: State, hyper: Hyper) -> Tensor:
    """Adam's theta' for a given second moment."""
    first, second = _corrections(new, hyper)
    root = v.sqrt() / sqrt(second) + hyper.eps
    return theta.addcdiv(new["exp_avg"], root, value=-hyper.lr / first)


def _adam_slope(moving: Tensor, v: Tensor, new: State, hyper: Hyper) -> Tensor:
    """Adam's d theta'/dG; ``moving`` is G where v moves with it and 0 elsewhere.

    ``-a / (1 - b1^t) [(1 - b1) / (s + e) - m (1 - b2) G / ((1 - b2^t) s (s + e)^2)]``
    """
    beta1, beta2 = hyper.betas
    first, second = _corrections(new, hyper)
    s = v.sqrt() / sqrt(second)
    through_v = new["exp_avg"] * _where_positive((1 - beta2) * moving, s) / second
    return -hyper.lr / first * ((1 - beta1) - through_v / (s + hyper.eps)) / (s + hyper.eps)


def _where_positive(numerator: Tensor, root: Tensor) -> Tensor:
    """Numerator / root, and 0 for rows never touched: there m, v, G and so the root are 0."""
    return torch.where(root > 0, numerator / root, 0.0)


def _adamod_scale(new: State, hyper: Hyper) -> float:
    """The factor a sqrt(1 - b2^t) / (1 - b1^t) of AdaMod's rates."""
    first, second = _corrections(new, hyper)
    return hyper.lr * sqrt(second) / first
