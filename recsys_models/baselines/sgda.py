"""SGDA: learns a penalty per group and factor beside SGD (Rendle, WSDM 2012)."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recsys_models.baselines.optimizer_steps import SGD
from recsys_models.baselines.penalty import Shares, owner_of
from recsys_models.baselines.penalty_tuner import PenaltyTuner, copy_tensors
from recsys_models.data.batches import TrainBatch


class SGDA(PenaltyTuner):
    """Alternates steps of the weights on training pairs and of lambda on validation pairs.

    A lambda belongs to a group (users, items, item biases) and a factor (a column of its table).
    In epoch 0 the weights learn alone; later, after each of their steps: (1) assume one more, with
    the gradient that a row had when a batch last looked it up; (2) step lambda by SGD, at the
    learning rate a of the weights, along the gradient of the validation loss after it::

        lambda <- max(0, lambda - a dL_V(theta')/dlambda)
        theta' = theta - a (g + 2 lambda theta c/P)

    The paper takes one case at a time. Here g and the share c/P of a row are those of the batch
    that last looked it up; batches of one pair with one negative give the paper's form. Both are 0
    for a row not looked up yet, which no real step has penalised either; the paper's assumed step
    penalises it. Memory: one copy of the model, for g.

    Args:
        batch_size: see `PenaltyTuner`.
        seed: see `PenaltyTuner`.
    """

    def __init__(self, batch_size: int = 1024, seed: int = 0) -> None:
        super().__init__("group+dimension", batch_size, seed)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: TrainBatch,
        batch_idx: int,
    ) -> None:
        """Step lambda, except in the first epoch."""
        if trainer.current_epoch:
            self._learn(self._last_gradients, self._last_shares)

    def _build(self) -> None:
        if self._assumed.rule is not SGD:
            kind = type(self._optimizer).__name__
            raise MisconfigurationException(
                f"SGDA steps by SGD; got {kind}. Use optimizer=sgd, or tuner=lambda_opt."
            )
        tables = self.penalty.tables
        self._last_gradients = {name: torch.zeros_like(t.detach()) for name, t in tables.items()}
        self._last_shares = {owner_of(n): t.detach().new_zeros(len(t)) for n, t in tables.items()}

    def _own_state(self) -> dict[str, Any]:
        return {"last_gradients": self._last_gradients, "last_shares": self._last_shares}

    def _resume_own(self, state: dict[str, Any]) -> None:
        copy_tensors(state["last_gradients"], self._last_gradients)
        copy_tensors(state["last_shares"], self._last_shares)

    def _use_gradients(self, shares: Shares) -> None:
        for owner, share in shares.items():
            rows = share.nonzero().squeeze(1)
            self._last_shares[owner][rows] = share[rows]
            for name, table in self.penalty.tables.items():
                if owner_of(name) == owner and table.grad is not None:
                    self._last_gradients[name][rows] = table.grad[rows]

    def _step_lambdas(self) -> None:
        rate = self._optimizer.param_groups[0]["lr"]
        for weights in self.penalty.lambdas.values():
            assert weights.grad is not None
            weights.sub_(rate * weights.grad)
