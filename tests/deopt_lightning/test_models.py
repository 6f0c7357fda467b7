"""The callback learns in models that were not written for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos import LightningTransformer
from lightning.pytorch.demos.boring_classes import (
    BoringDataModule,
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from deopt_lightning import DEOptCallback
from tests.tiny import same_state


def random_tensors(*shapes: tuple[int, ...], classes: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(24, *shape, generator=generator) for shape in shapes]
    labels = [torch.randint(classes, (24,), generator=generator)] if classes else []
    return TensorDataset(*tensors, *labels)


class Boring(BoringModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch))


class BoringByHand(ManualOptimBoringModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch))


class Regression(DemoModel):
    """The first argument is the batch, and no more."""

    def training_step(self, batch: Any) -> Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self(batch[0]).square().mean())


class Sentences(Dataset):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        words = (torch.arange(7) * (index + 1)) % 20
        return words[:-1], words[1:]


class Transformer(LightningTransformer):
    def __init__(self) -> None:
        super().__init__(vocab_size=20)

    def prepare_data(self) -> None:
        """Nothing to download."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        inputs, target = batch
        output = self(inputs, target)
        self.log("val_loss", nn.functional.nll_loss(output, target.view(-1)))


class Supervised(L.LightningModule):
    """Any network with a loss of its output and the batch's last tensor."""

    def __init__(self, net: nn.Module, loss: Any) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[-1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.net(batch[0]), batch[-1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def image_classifier() -> L.LightningModule:
    convolution = nn.Conv2d(1, 4, 3, stride=3)
    net = nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    return Supervised(net, nn.functional.cross_entropy)


def autoencoder() -> L.LightningModule:
    net = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6))
    return Supervised(net, nn.functional.mse_loss)


class TiedEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.output = nn.Linear(8, 20, bias=False)
        self.output.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.output(torch.tanh(self.mix(self.embed(words)))).flatten(0, 1)


def tied() -> L.LightningModule:
    return Supervised(
        TiedEmbeddings(), lambda out, y: nn.functional.cross_entropy(out, y.flatten())
    )


def frozen() -> L.LightningModule:
    module = autoencoder()
    module.net[0].requires_grad_(False)
    return module


class GAN(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

    def losses(self, real: Tensor) -> tuple[Tensor, Tensor]:
        fake = self.generator(torch.randn(len(real), 2))
        judge = nn.functional.binary_cross_entropy_with_logits
        verdict, seen = self.discriminator(fake), self.discriminator(fake.detach())
        yes, no = torch.ones_like(verdict), torch.zeros_like(verdict)
        return judge(verdict, yes), judge(self.discriminator(real), yes) + judge(seen, no)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for index, optimizer in enumerate(self.optimizers()):
            self.toggle_optimizer(optimizer)
            loss = self.losses(batch[0])[index]
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", sum(self.losses(batch[0])))

    def configure_optimizers(self) -> Any:
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), lr=1e-2, betas=(0.5, 0.9)) for part in parts]


VECTORS = random_tensors((6,))
Case = tuple[Any, Dataset, dict[str, Any]]  # how to build a model, its data, Trainer options
MODELS: dict[str, Case] = {
    "boring": (Boring, random_tensors((32,)).tensors[0], {}),
    "boring by hand": (BoringByHand, random_tensors((32,)).tensors[0], {}),
    "one argument": (Regression, random_tensors((32,)), {}),
    "transformer": (Transformer, Sentences(), {}),
    "image classifier": (image_classifier, random_tensors((1, 9, 9), classes=5), {}),
    "autoencoder": (autoencoder, VECTORS, {}),
    "tied embeddings": (tied, Sentences(), {}),
    "frozen layers": (frozen, VECTORS, {}),
    "float64": (autoencoder, VECTORS, {"precision": "64-true"}),
    "GAN": (GAN, VECTORS, {}),
}


def train(
    folder: Path, case: Case, *callbacks: L.Callback, trainer_class: Any = L.Trainer
) -> L.LightningModule:
    build, data, options = case
    L.seed_everything(5, verbose=False)
    model = build()
    trainer = trainer_class(
        max_epochs=2,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **{"logger": False} | options,
    )
    loader = DataLoader(data, batch_size=6, shuffle=True)
    trainer.fit(model, loader, DataLoader(data, batch_size=6))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_any_model_learns_and_a_dry_run_leaves_no_trace(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"population_size": 4, "probe_steps": 2, "local_search": None}
    dry, search = (DEOptCallback("val_loss", adopt=adopt, **options) for adopt in (False, True))
    plain = train(tmp_path, MODELS[name])
    untouched = train(tmp_path, MODELS[name], dry)
    learned = train(tmp_path, MODELS[name], search)
    assert same_state(plain.state_dict(), untouched.state_dict())
    assert not same_state(plain.state_dict(), learned.state_dict())
    assert len(dry.history) == len(search.history) == 2
    assert None not in search.history[0]["target_perf"]
    trainable = sum(p.requires_grad for p in learned.parameters())
    assert 1 <= len(search.schedule[0]["lr"]) <= trainable


def test_tied_and_frozen_parameters_are_in_their_layers_once(tmp_path: Path) -> None:
    for name, layers in {"tied embeddings": ["embed", "mix"], "frozen layers": ["2"]}.items():
        search = DEOptCallback("val_loss", population_size=4, probe_steps=1)
        train(tmp_path, MODELS[name], search)
        assert list(search.schedule[0]["lr"]) == [f"net.{layer}" for layer in layers]


def test_float64_stays_float64(tmp_path: Path) -> None:
    search = DEOptCallback("val_loss", population_size=4, probe_steps=1)
    model = train(tmp_path, MODELS["float64"], search)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_datamodule_is_enough(tmp_path: Path) -> None:
    search = DEOptCallback("val_loss", population_size=4, probe_steps=2)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[search],
        default_root_dir=tmp_path,
    )
    trainer.fit(Boring(), datamodule=BoringDataModule())
    assert len(search.history) == 1


def test_trainers_of_the_other_import_name(tmp_path: Path) -> None:
    """`pytorch_lightning` has classes of its own, which know nothing of `lightning`'s."""
    pytorch_lightning = pytest.importorskip("pytorch_lightning", minversion="2.6")

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 6)

        training_step = Supervised.training_step
        validation_step = Supervised.validation_step
        configure_optimizers = Supervised.configure_optimizers
        loss = staticmethod(nn.functional.mse_loss)

        def training_loss(self, batch: Any) -> Tensor:
            return self.loss(self.net(batch[0]), batch[-1])

    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    case: Case = (Module, VECTORS, {"logger": logger})
    averages = getattr(pytorch_lightning.callbacks, "EMAWeightAveraging", None)
    options: dict[str, Any] = {"population_size": 4, "probe_steps": 2}
    dry = DEOptCallback("val_loss", adopt=False, **options)
    search = DEOptCallback("val_loss", **options)
    kwargs = {"trainer_class": pytorch_lightning.Trainer}
    plain = train(tmp_path, case, **kwargs)
    untouched = train(tmp_path, case, dry, **kwargs)
    learned = train(tmp_path, case, search, *([averages()] if averages else []), **kwargs)
    assert same_state(plain.state_dict(), untouched.state_dict())
    assert not same_state(plain.state_dict(), learned.state_dict())
    assert len(search.history) == 2
    (log,) = tmp_path.rglob("metrics.csv")
    assert "deopt/lr/net" in log.read_text()
