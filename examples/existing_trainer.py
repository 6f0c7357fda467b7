"""DE-Opt in a program that you already have: one more callback, nothing else.

    python examples/existing_trainer.py

A small classifier with Adam, on generated data with some wrong labels. Afterwards it prints with
which learning rate and weight decay each layer was trained in each epoch.
"""

import argparse

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from deopt_lightning import DEOptCallback


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(20, 64)
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return cross_entropy(self(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def loaders() -> tuple[DataLoader, DataLoader]:
    """4,000 points in 20 dimensions: is the product of the first two positive? 10 % say wrong."""
    x = torch.randn(4000, 20)
    y = (x[:, 0] * x[:, 1] > 0) ^ (torch.rand(4000) < 0.1)
    data = TensorDataset(x, y.long())
    train, val = torch.utils.data.random_split(data, [3000, 1000])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=1000)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=10)
    arguments = parser.parse_args()

    L.seed_everything(0)
    callback = DEOptCallback(monitor="val_loss")
    trainer = L.Trainer(
        max_epochs=arguments.max_epochs,
        callbacks=[callback],  # the one line
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Classifier(), *loaders())

    for epoch in callback.schedule:
        layers = [
            f"{layer}: lr {lr:.1e}, weight decay {epoch['weight_decay'][layer]:.1e}"
            for layer, lr in epoch["lr"].items()
        ]
        print(f"epoch {epoch['epoch']}   " + "   ".join(layers))
    print(f"validation accuracy {trainer.callback_metrics['val_acc']:.3f}")


if __name__ == "__main__":
    main()
