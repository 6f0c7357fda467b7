"""lambda-opt: learns a penalty as fine as one lambda per parameter (Chen et al., KDD 2019)."""

from typing import Any, Literal, get_args

import torch

from recsys_models.baselines.penalty import Shares
from recsys_models.baselines.penalty_tuner import PenaltyTuner

Granularity = Literal["global", "dimension", "user", "item", "user+item", "dimension+user+item"]
MAX_NORM = 100.0  # of the hypergradient, as in the authors' program


class LambdaOpt(PenaltyTuner):
    """Before each step, moves lambda to where that step would lower the validation loss.

    Per batch, from the second on: (1) assume the step on this batch as a function of lambda, by
    the rule of the model's own optimizer; (2) step lambda by AMSGrad along the gradient of the
    validation loss after it, and clamp at 0; (3) take the real step, on the same batch, with the
    new lambda. The optimizer may be SGD, Adam, AMSGrad or AdaMod.

    The work of (1) is for the rows of the validation batch; (2) passes over all lambdas. Memory:
    with their gradient and three moments five numbers per lambda, thus at the granularity
    "dimension+user+item" five times the model.

    With a lambda per parameter, a small validation set is memorised: its metrics then keep rising,
    say nothing of the test set, and are no criterion for the epoch.

    The authors' program differs in ways that are not followed: its assumed step penalises all rows
    in full, its real step those of the batch, and the two see different batches.

    Args:
        granularity: whose lambdas are learned. "dimension+user+item" has one per parameter,
            "dimension" one per column, shared by users and items. "user" gives each user one, and
            all items together one.
        lr: learning rate of lambda.
        batch_size: see `PenaltyTuner`.
        seed: see `PenaltyTuner`.
    """

    def __init__(
        self,
        granularity: Granularity = "dimension+user+item",
        lr: float = 1e-3,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        if granularity not in get_args(Granularity):
            raise ValueError(
                f"granularity must be one of {', '.join(get_args(Granularity))}; "
                f"got {granularity!r}."
            )
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0; got {lr}. The usual value is 1e-3.")
        super().__init__(granularity, batch_size, seed)
        self.lr = lr

    def _build(self) -> None:
        weights = list(self.penalty.lambdas.values())
        self._lambda_optimizer = torch.optim.Adam(weights, lr=self.lr, amsgrad=True, fused=True)
        self._steps = 0

    def _own_state(self) -> dict[str, Any]:
        return {"optimizer": self._lambda_optimizer.state_dict(), "steps": self._steps}

    def _resume_own(self, state: dict[str, Any]) -> None:
        self._lambda_optimizer.load_state_dict(state["optimizer"])
        self._steps = state["steps"]

    def _use_gradients(self, shares: Shares) -> None:
        if self._steps:
            tables = self.penalty.tables.items()
            self._learn({n: t.grad for n, t in tables if t.grad is not None}, shares)
        self._steps += 1

    def _step_lambdas(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.penalty.lambdas.values(), MAX_NORM)
        self._lambda_optimizer.step()
