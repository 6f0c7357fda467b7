"""DE-Opt in a Hydra project: one file in its group of callbacks.

    python examples/hydra_app/app.py                              # without
    python examples/hydra_app/app.py callbacks=deopt              # with
    python examples/hydra_app/app.py -m callbacks=none,deopt seed=0,1

The value of the monitor is returned, for a sweeper to compare.
"""

import hydra
import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset


class Regressor(L.LightningModule):
    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 1))
        self.lr = lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return mse_loss(self.layers(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", mse_loss(self.layers(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def loaders() -> tuple[DataLoader, DataLoader]:
    """3,000 noisy values of a smooth function of ten numbers."""
    x = torch.randn(3000, 10)
    y = (x[:, :1] * x[:, 1:2]).sin() + x[:, 2:3] + 0.1 * torch.randn(3000, 1)
    train, val = TensorDataset(x[:2000], y[:2000]), TensorDataset(x[2000:], y[2000:])
    return DataLoader(train, batch_size=50, shuffle=True), DataLoader(val, batch_size=1000)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    L.seed_everything(cfg.seed)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    trainer = instantiate(cfg.trainer, callbacks=callbacks)
    trainer.fit(instantiate(cfg.model), *loaders())
    value = trainer.callback_metrics[cfg.monitor].item()
    print(f"{cfg.monitor} {value:.4f}")
    return value


if __name__ == "__main__":
    main()
