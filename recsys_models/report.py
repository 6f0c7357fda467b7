"""What a run leaves behind: a table on the console and result.json in its output folder."""

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lightning as L
import torch
import torchmetrics
from rich.console import Console
from rich.table import Table
from torch.optim import Optimizer

from recsys_models.models import RecommenderModule

Metrics = dict[str, float]
Schedule = list[dict[str, int | dict[str, float]]]


@dataclass(frozen=True)
class Result:
    """One run in plain data; the fields are those of result.json.

    Attributes:
        model: name of the model in its configuration group.
        data: name of the data set.
        tuner: name of the tuner in its configuration group, such as "none" or "deopt".
        seed: the run's seed.
        epochs: epochs trained.
        train_steps: optimizer steps of these epochs.
        probe_steps: optimizer steps the tuner took beside them.
        evaluations: validation passes during training, those of the tuner's probes included.
        schedule: one ``{"epoch": 0, "lr": {layer: value}, "weight_decay": {layer: value}}`` per
            epoch.
        val: metrics on validation, at the chosen epoch.
        test: metrics on test, at the chosen epoch.
        reference_val: metrics of MostPop and EASE on validation.
        reference: metrics of MostPop and EASE on test.
        train_seconds: wall-clock time of training alone, with its validation passes and probes.
        seconds: wall-clock time of the whole run, data and references included.
        versions: of the interpreter and the main libraries.
    """

    model: str
    data: str
    tuner: str
    seed: int
    epochs: int
    train_steps: int
    probe_steps: int
    evaluations: int
    schedule: Schedule
    val: Metrics = field(default_factory=dict)
    test: Metrics = field(default_factory=dict)
    reference_val: dict[str, Metrics] = field(default_factory=dict)
    reference: dict[str, Metrics] = field(default_factory=dict)
    train_seconds: float = 0.0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=lambda: _versions())


class ValidationCounter(L.Callback):
    """Counts the validation passes of training itself; a tuner counts those of its probes."""

    def __init__(self) -> None:
        self.passes = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count a pass, unless it is a sanity check or comes after training."""
        self.passes += trainer.state.fn == "fit" and not trainer.sanity_checking


def constant_schedule(model: RecommenderModule, optimizer: Optimizer, epochs: int) -> Schedule:
    """The schedule of a run without a tuner: what the optimizer holds, in every epoch."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    of_layer = {
        layer: groups[id(parameters[names[0]])] for layer, names in model.layer_groups().items()
    }
    values = {
        key: {layer: float(group.get(key, 0.0)) for layer, group in of_layer.items()}
        for key in ("lr", "weight_decay")
    }
    return [{"epoch": epoch, **values} for epoch in range(epochs)]


def write_json(result: Result, path: Path) -> None:
    """Write a result as strict JSON, which has no NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=2, allow_nan=False) + "\n")


def print_table(result: Result) -> None:
    """Print validation and test metrics of the model and its references."""
    table = Table(title=f"{result.data}, seed {result.seed}, tuner {result.tuner}")
    table.add_column("")
    for stage in ("val", "test"):
        for name in result.val:
            table.add_column(f"{stage}\n{name}", justify="right")
    table.add_row(result.model, *_cells(result.val, result.test))
    for name in result.reference:
        table.add_row(name, *_cells(result.reference_val[name], result.reference[name]))
    Console().print(table)


def _cells(val: Metrics, test: Metrics) -> list[str]:
    return [f"{metrics[name]:.4f}" for metrics in (val, test) for name in val]


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "torchmetrics": torchmetrics.__version__,
    }
