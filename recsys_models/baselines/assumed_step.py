"""The step that a model's optimizer would take next, and how validation loss moves with lambda."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from recsys_models.baselines.optimizer_steps import (
    ADAM,
    ADAMOD,
    AMSGRAD,
    SGD,
    Hyper,
    Rule,
    State,
)
from recsys_models.baselines.penalty import Penalty, Shares, owner_of, slope
from recsys_models.data.batches import TrainBatch
from recsys_models.models import BPRMF


class AssumedStep:
    """Looks one optimizer step ahead, as a function of lambda, and changes nothing.

    With theta'(lambda) the weights after a step on the gradient G = g + 2 lambda theta c/P, g that
    of the loss without the penalty, the chain rule is exact and elementwise, because neither g nor
    the optimizer's state depends on lambda::

        dL_V(theta')/dlambda = sum of  dL_V/dtheta' * dtheta'/dG * 2 theta c/P

    over the entries that share the lambda. Only rows in the validation batch are computed, since
    dL_V/dtheta' is zero in all others.

    Args:
        model: a BPR-MF, whose loss depends on the rows of a batch and on nothing else.
        optimizer: its optimizer; see `rule_of`.
        penalty: the penalty on its tables.
    """

    def __init__(self, model: BPRMF, optimizer: Optimizer, penalty: Penalty) -> None:
        self._loss = _TrainingLoss(model)
        self._optimizer = optimizer
        self._penalty = penalty
        self.rule = rule_of(optimizer)

    def hypergradients(
        self, gradients: Mapping[str, Tensor], shares: Shares, batch: TrainBatch
    ) -> dict[str, Tensor]:
        """The gradient of the validation loss after the step, by lambda.

        Costs one forward and one backward pass on the validation batch.

        Args:
            gradients: g of each table, of the loss without the penalty.
            shares: c/P of each row in the batch that g comes from.
            batch: validation positives with negatives.
        """
        rows, local = _compact(batch)
        ahead, pulls = {}, {}
        with torch.no_grad():
            for name, table in self._penalty.tables.items():
                mine = rows[owner_of(name)]
                theta = table[mine]
                by_lambda = slope(theta, shares[owner_of(name)][mine])
                grad = gradients[name][mine] + by_lambda * self._penalty.of(name, mine)
                state, hyper = self._state(table, mine)
                ahead[name], _ = self.rule.step(theta, grad, state, hyper)
                pulls[name] = by_lambda * self.rule.slope(grad, state, hyper)
        with torch.enable_grad():
            leaves = {f"model.{n}": theta.requires_grad_() for n, theta in ahead.items()}
            loss = functional_call(self._loss, leaves, (local,))
        by_theta = dict(zip(ahead, torch.autograd.grad(loss, list(ahead.values())), strict=True))
        return self._penalty.collect(
            (name, rows[owner_of(name)], by_theta[name] * pull) for name, pull in pulls.items()
        )

    def _state(self, table: Tensor, rows: Tensor) -> tuple[State, Hyper]:
        """The optimizer's state for some rows of a table, and its settings."""
        (group,) = (g for g in self._optimizer.param_groups if any(p is table for p in g["params"]))
        state = {key: self._optimizer.state[table][key][rows] for key in self.rule.moments}
        if state:  # AdaMod counts steps per group, the others per table
            count = self._optimizer.state[table].get("step", group.get("step"))
            state["step"] = torch.as_tensor(count)
        betas = tuple(group.get("betas", ()))
        return state, Hyper(float(group["lr"]), betas, group.get("eps", 0.0))


class _TrainingLoss(nn.Module):
    """A model's training loss as a forward pass, which is what `functional_call` calls."""

    def __init__(self, model: BPRMF) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainBatch) -> Tensor:
        return self.model.training_loss(batch)


def rule_of(optimizer: Optimizer) -> Rule:
    """The rule by which an optimizer steps, if it is one whose next step we can assume."""
    kind = type(optimizer)
    group = optimizer.param_groups[0]
    rule = {
        "torch.optim.sgd.SGD": SGD,
        "torch.optim.adam.Adam": AMSGRAD if group.get("amsgrad") else ADAM,
        # known by name, so that only those who use AdaMod wait for that package's import
        "pytorch_optimizer.optimizer.adamod.AdaMod": ADAMOD,
    }.get(f"{kind.__module__}.{kind.__name__}")
    if rule is None:
        raise MisconfigurationException(
            "the next step can be assumed for SGD, Adam, AMSGrad (all from torch.optim) and "
            f"pytorch_optimizer's AdaMod; got {kind.__name__}. "
            "Choose optimizer=sgd, adam, amsgrad or adamod."
        )
    for group in optimizer.param_groups:
        _check_group(kind.__name__, group)
    return rule


def _check_group(kind: str, group: Mapping[str, Any]) -> None:
    for option in ("weight_decay", "momentum", "maximize", "adam_debias"):
        if group.get(option):
            why = (
                "the penalty is learned and must be the only one"
                if option == "weight_decay"
                else "the assumed step is without it"
            )
            raise MisconfigurationException(
                f"{why}, but {kind} has {option}={group[option]}. Leave {option} out."
            )


def _compact(batch: TrainBatch) -> tuple[dict[str, Tensor], TrainBatch]:
    """The distinct users and items of a batch, and the batch in positions among these."""
    users, local_users = torch.unique(batch.users, return_inverse=True)
    both = torch.cat([batch.items.unsqueeze(1), batch.negatives], dim=1)
    items, local = torch.unique(both, return_inverse=True)
    return {"user": users, "item": items}, TrainBatch(local_users, local[:, 0], local[:, 1:])
