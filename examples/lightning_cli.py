r"""DE-Opt from the command line: this program knows nothing of it.

    python examples/lightning_cli.py fit --trainer.max_epochs 10 \
        --trainer.callbacks+=deopt_lightning.DEOptCallback --trainer.callbacks.monitor=val_loss

Needs jsonargparse: ``pip install "jsonargparse[signatures]"``. All arguments of the callback:
``fit --trainer.callbacks.help deopt_lightning.DEOptCallback``. Add ``--print_config`` to see the
same as a YAML file, which ``--config`` reads.
"""

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset


class Autoencoder(L.LightningModule):
    """Compresses 30 numbers to a few and back.

    Args:
        code_size: how many numbers are left in the middle.
        lr: learning rate of Adam.
    """

    def __init__(self, code_size: int = 3, lr: float = 1e-3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, code_size))
        self.decoder = nn.Sequential(nn.Linear(code_size, 32), nn.ReLU(), nn.Linear(32, 30))
        self.lr = lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        return mse_loss(self.decoder(self.encoder(x)), x)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (x,) = batch
        self.log("val_loss", mse_loss(self.decoder(self.encoder(x)), x), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Curves(L.LightningDataModule):
    """Noisy sine curves of random height, frequency and phase, at 30 places."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        height, frequency, phase = torch.rand(3, 3000, 1) + 0.5
        x = height * torch.sin(frequency * torch.linspace(0, 6, 30) + 6 * phase)
        x += 0.1 * torch.randn(3000, 30)
        self.train, self.val = TensorDataset(x[:2500]), TensorDataset(x[2500:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=500)


if __name__ == "__main__":
    LightningCLI(Autoencoder, Curves, seed_everything_default=0)
