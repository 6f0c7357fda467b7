r"""Own data and an own LightningModule in a comparison with sweeps, by configuration files alone.

The images are scikit-learn's (``pip install scikit-learn``): 1,797 handwritten digits of 8 x 8
pixels. From this folder ::

    PYTHONPATH=. recsys-compare --config-dir conf 'datasets=[digits]' 'models=[convnet]' \
        'seeds=[0]' 'tuners=[none,grid,deopt]' 'metrics=[accuracy,log_likelihood]' \
        "overrides=['monitor=val/log_likelihood']"
"""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(L.LightningDataModule):
    """Few images to train on, so that weight decay matters; split by the seed."""

    def __init__(self, seed: int = 0, num_train: int = 500, num_val: int = 400) -> None:
        super().__init__()
        images, labels = load_digits(return_X_y=True)
        pixels = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        parts = [num_train, num_val, len(labels) - num_train - num_val]
        shuffled = torch.Generator().manual_seed(seed)
        all_of_them = TensorDataset(pixels, torch.tensor(labels))
        self.parts = random_split(all_of_them, parts, shuffled)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=1000)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=1000)


class ConvNet(L.LightningModule):
    """Two convolutions and two linear layers; ``optimizer`` makes an optimizer of parameters."""

    def __init__(self, optimizer, width: int = 16) -> None:
        super().__init__()
        self.make_optimizer = optimizer
        convolutions = (
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
        )
        head = (nn.Linear(32 * width, 64), nn.ReLU(), nn.Linear(64, 10))
        self.net = nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *head)

    def training_loss(self, batch):
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def training_step(self, batch, batch_idx):
        return self.training_loss(batch)  # and nothing else, so that probes take faster steps

    def validation_step(self, batch, batch_idx):
        self.judge(batch, "val")

    def test_step(self, batch, batch_idx):
        self.judge(batch, "test")

    def judge(self, batch, stage):
        images, labels = batch
        scores = self.net(images)
        self.log(f"{stage}/accuracy", (scores.argmax(dim=1) == labels).float().mean())
        self.log(f"{stage}/log_likelihood", -cross_entropy(scores, labels))

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())
