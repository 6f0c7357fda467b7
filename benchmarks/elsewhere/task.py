"""What the networks here share: steps, and an optimizer of all parameters."""

import lightning as L


class Task(L.LightningModule):
    """A module whose subclasses have ``training_loss(batch)`` and say how it is judged.

    Args:
        optimizer: makes an optimizer of parameters.
    """

    def __init__(self, optimizer) -> None:
        super().__init__()
        self.make_optimizer = optimizer

    def judge(self, batch, stage):
        """Logs under ``stage/``, "val" or "test", what decides."""
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        """The loss alone."""
        return self.training_loss(batch)

    def validation_step(self, batch, batch_idx):
        """As `judge`."""
        self.judge(batch, "val")

    def test_step(self, batch, batch_idx):
        """As `judge`."""
        self.judge(batch, "test")

    def configure_optimizers(self):
        """One optimizer over all parameters."""
        return self.make_optimizer(self.parameters())
