"""A language model of bytes: source code of Python's own library, which is there wherever it is."""

import sysconfig
from pathlib import Path

import lightning as L
import torch
from task import Task
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

SYMBOLS = 128  # all other bytes become the last one


class SourceText(L.LightningDataModule):
    """Windows of consecutive bytes; the files are shuffled by the seed, then cut in three.

    Args:
        seed: of the files' order.
        window: bytes that are predicted at a time.
        num_train: bytes to train on.
        num_val: bytes for validation.
        num_test: bytes for the test.
    """

    def __init__(
        self,
        seed: int = 0,
        window: int = 32,
        num_train: int = 100_000,
        num_val: int = 30_000,
        num_test: int = 100_000,
    ) -> None:
        super().__init__()
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
        text = b"".join(files[place].read_bytes() for place in order.tolist())
        symbols = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().clamp(max=SYMBOLS - 1)
        parts = symbols[: num_train + num_val + num_test].split((num_train, num_val, num_test))
        self.parts = [TensorDataset(part.unfold(0, window + 1, window)) for part in parts]

    def train_dataloader(self) -> DataLoader:
        """Windows in an order of their own in each epoch."""
        return DataLoader(self.parts[0], batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """All windows."""
        return DataLoader(self.parts[1], batch_size=512)

    def test_dataloader(self) -> DataLoader:
        """All windows."""
        return DataLoader(self.parts[2], batch_size=512)


class LanguageModel(Task):
    """Predicts each byte from those before it in its window, by pre-norm transformer layers.

    Args:
        optimizer: makes an optimizer of parameters.
        width: of the vectors.
        layers: how many.
        window: as the data have it.
    """

    def __init__(self, optimizer, width: int = 64, layers: int = 2, window: int = 32) -> None:
        super().__init__(optimizer)
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.positions = nn.Embedding(window, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, SYMBOLS))
        mask = nn.Transformer.generate_square_subsequent_mask(window)
        self.register_buffer("mask", mask, persistent=False)

    def training_loss(self, batch):
        """Nats per byte."""
        (windows,) = batch
        vectors = self.symbols(windows[:, :-1]) + self.positions.weight
        scores = self.head(self.encoder(vectors, mask=self.mask, is_causal=True))
        return cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())

    def judge(self, batch, stage):
        """Logs the mean over all bytes."""
        loss = self.training_loss(batch)
        self.log(f"{stage}/log_likelihood", -loss, batch_size=len(batch[0]))
