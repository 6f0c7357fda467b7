"""What a run leaves behind: a table on the console and result.json in its output folder."""

import json
import platform
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import lightning as L
import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.optim import Optimizer

from recsys_models.costs import Row
from recsys_models.tuning import Outcome

Metrics = dict[str, float]
Schedule = list[dict[str, int | dict[str, float]]]

MOST_POINTS = 30  # rows that the console shows of a sweep


@dataclass(frozen=True)
class Result:
    """One run in plain data; the fields are those of result.json.

    Attributes:
        model: name of the model in its configuration group.
        data: name of the data set.
        tuner: name of the tuner in its configuration group, such as "none" or "deopt".
        seed: the run's seed.
        epochs: epochs of the training that the chosen weights are from.
        train_steps: optimizer steps of these epochs.
        probe_steps: optimizer steps the tuner took beside them: in probes, or for other settings.
        evaluations: validation passes during training, those of the tuner included.
        schedule: one ``{"epoch": 0, "lr": {layer: value}, "weight_decay": {layer: value}}`` per
            epoch.
        val: metrics on validation, at the chosen epoch.
        test: metrics on test, at the chosen epoch.
        reference_val: metrics of MostPop and EASE on validation.
        reference: metrics of MostPop and EASE on test.
        train_seconds: wall-clock time of training alone, with its validation passes and probes,
            summed over all settings of a sweep.
        train_cpu_seconds: processor time of the same, which other programs on the machine do not
            lengthen; None in results of older versions.
        seconds: wall-clock time of the whole run, data and references included.
        points: of a sweep, what it trained: ``{"lr": ..., "weight_decay": ..., "val": best
            monitored value or null, "steps": ..., "evaluations": ..., "seconds": ...,
            "cpu_seconds": ...}``.
        curve: after every validation pass of training, what was spent and reached until then:
            ``[optimizer steps, validation passes, seconds of training, best monitored value,
            processor seconds of training]``.
        versions: of the interpreter and the main libraries.
        pairs: tells the training pairs from others; None of data without, and in older versions.
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
    train_cpu_seconds: float | None = None
    seconds: float = 0.0
    points: list[dict[str, float | None]] = field(default_factory=list)
    curve: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    pairs: str | None = None


def layers_of(model: L.LightningModule) -> dict[str, list[str]]:
    """The model's layers with their parameters' names; one layer where it names none."""
    groups = getattr(model, "layer_groups", None)
    if groups is not None:
        return dict(groups())
    return {"all": [name for name, p in model.named_parameters() if p.requires_grad]}


def constant_schedule(model: L.LightningModule, optimizer: Optimizer, epochs: int) -> Schedule:
    """The schedule of a run without a tuner: what the optimizer holds, in every epoch."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    of_layer = {
        layer: groups[id(parameters[names[0]])] for layer, names in layers_of(model).items()
    }
    values = {
        key: {layer: float(group.get(key, 0.0)) for layer, group in of_layer.items()}
        for key in ("lr", "weight_decay")
    }
    return [{"epoch": epoch, **values} for epoch in range(epochs)]


def write_json(result: Result, path: Path) -> None:
    """Write a result as strict JSON, which has no NaN; a run that is killed leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(asdict(result), indent=2, allow_nan=False) + "\n")
    unfinished.replace(path)


def read_json(path: Path) -> Result:
    """Read what `write_json` has written, also in an older version."""
    return from_json(read_plain(path))


def read_plain(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it, or remove it.") from error


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (BadZipFile, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it, or make it anew.") from error


def from_json(plain: dict[str, Any]) -> Result:
    """A result from plain data, such as that of result.json."""
    return Result(**plain | {"curve": [Row(*row) for row in plain.get("curve", [])]})


def print_points(outcomes: list[Outcome], chosen: Outcome) -> None:
    """Print what a sweep trained, in its order, and which setting was best on validation."""
    table = Table(title=f"{len(outcomes)} trainings; best on validation: {_name(chosen)}")
    for name in ("lr", "weight decay", "validation", "steps", "seconds"):
        table.add_column(name, justify="right")
    for point in outcomes[:MOST_POINTS]:
        value = "diverged" if point.val is None else f"{point.val:.4f}"
        cells = (f"{point.setting.lr:.3g}", f"{point.setting.weight_decay:.3g}", value)
        table.add_row(*cells, str(point.steps), f"{point.seconds:.1f}")
    if len(outcomes) > MOST_POINTS:
        table.caption = f"and {len(outcomes) - MOST_POINTS} more in result.json"
    Console().print(table)


def print_table(result: Result) -> None:
    """Print validation and test metrics of the model and its references, a line for each."""
    table = Table(title=f"{result.data}, seed {result.seed}, tuner {result.tuner}")
    for name in ("", result.model, *result.reference):
        table.add_column(name, justify="right" if name else "left")
    stages = {
        "val": [result.val, *(result.reference_val[name] for name in result.reference)],
        "test": [result.test, *result.reference.values()],
    }
    for stage, columns in stages.items():
        for metric in dict.fromkeys(metric for of in columns for metric in of):
            # An own module may log other metrics than the references have.
            cells = [f"{of[metric]:.4f}" if metric in of else "" for of in columns]
            table.add_row(f"{stage} {metric}", *cells)
        table.add_section()
    Console().print(table)


def _name(outcome: Outcome) -> str:
    return f"lr {outcome.setting.lr:.3g}, weight decay {outcome.setting.weight_decay:.3g}"


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "torchmetrics": torchmetrics.__version__,
    }
