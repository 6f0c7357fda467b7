"""Regression on a table: the price of a diamond from its size, colour, clarity and cut."""

import lightning as L
import polars as pl
import torch
from task import Task
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

NUMBERS = ("carat", "depth", "table", "x", "y", "z")
CLASSES = ("cut", "color", "clarity")


class Diamonds(L.LightningDataModule):
    """ggplot2's data set of 53,940 diamonds; few of them are trained on, so that decay matters.

    Args:
        path: diamonds.csv, as ggplot2 and plotnine bring it.
        seed: of the split.
        num_train: diamonds to train on, by which all numbers are standardised.
        num_val: diamonds for validation; all others are tested on.
    """

    def __init__(
        self, path: str, seed: int = 0, num_train: int = 10_000, num_val: int = 5_000
    ) -> None:
        super().__init__()
        table = pl.read_csv(path)
        shuffled = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(table), generator=shuffled)
        numbers = torch.tensor(table.select(NUMBERS).to_numpy(), dtype=torch.float32)[order]
        classes = torch.tensor(table.select(CLASSES).to_dummies().to_numpy())[order].float()
        prices = torch.tensor(table["price"].to_numpy()).log().float()[order]
        features = torch.cat([self._standard(numbers, num_train), classes], dim=1)
        everything = TensorDataset(features, self._standard(prices, num_train))
        ends = (0, num_train, num_train + num_val, len(table))
        self.parts = [
            TensorDataset(*everything[begin:end])
            for begin, end in zip(ends, ends[1:], strict=False)
        ]

    @staticmethod
    def _standard(values, num_train):
        known = values[:num_train]
        return (values - known.mean(dim=0)) / known.std(dim=0)

    def train_dataloader(self) -> DataLoader:
        """Batches in an order of their own in each epoch."""
        return DataLoader(self.parts[0], batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """All in one batch."""
        return DataLoader(self.parts[1], batch_size=len(self.parts[1]))

    def test_dataloader(self) -> DataLoader:
        """All in one batch."""
        return DataLoader(self.parts[2], batch_size=len(self.parts[2]))


class PriceNetwork(Task):
    """Three hidden layers; the mean squared error of the standardised logarithm of the price.

    Args:
        optimizer: makes an optimizer of parameters.
        width: of the hidden layers.
    """

    def __init__(self, optimizer, width: int = 128) -> None:
        super().__init__(optimizer)
        hidden = [nn.LazyLinear(width), nn.ReLU()]
        for _ in range(2):
            hidden += [nn.Linear(width, width), nn.ReLU()]
        self.net = nn.Sequential(*hidden, nn.Linear(width, 1))
        self.net(torch.zeros(1, len(NUMBERS) + 20))

    def training_loss(self, batch):
        """The mean squared error."""
        features, prices = batch
        return mse_loss(self.net(features).squeeze(1), prices)

    def judge(self, batch, stage):
        """Logs the share of the variance that is explained."""
        self.log(f"{stage}/r2", 1 - self.training_loss(batch) / batch[1].var(correction=0))
