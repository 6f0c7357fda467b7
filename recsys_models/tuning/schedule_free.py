"""The manners that a schedule-free optimizer asks for."""

from typing import Any

import lightning as L


class ScheduleFreeMode(L.Callback):
    """Switches schedule-free optimizers between the weights they train and those they average.

    Such an optimizer has a ``train`` and an ``eval`` method and keeps the model at the weights of
    its mode. Validation and the checkpoint after it see the averaged ones.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go to the weights that training moves."""
        self._switch(trainer, "train")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go to the averaged weights, and stay there until the next training batch."""
        self._switch(trainer, "eval")

    def _switch(self, trainer: L.Trainer, mode: str) -> None:
        for optimizer in trainer.optimizers:
            getattr(optimizer, mode)()
