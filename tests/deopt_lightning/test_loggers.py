"""The values of each epoch reach every logger; those not installed are skipped."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from deopt_lightning import DEOptCallback
from tests.tiny import TinyModel, fit

NAMES = {
    *("deopt/accepted", "deopt/best", "deopt/spread"),
    *(f"deopt/{kind}/{layer}" for kind in ("lr", "weight_decay") for layer in ("first", "last")),
}


def search() -> DEOptCallback:
    return DEOptCallback("val_loss", population_size=4, probe_steps=1)


def test_tensorboard_gets_a_point_for_each_epoch(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(tmp_path, [search()], logger=TensorBoardLogger(tmp_path, name="", version=""))
    log = events.EventAccumulator(str(tmp_path))
    log.Reload()
    assert set(log.Tags()["scalars"]) >= NAMES
    assert len(log.Scalars("deopt/lr/first")) == 3


def test_mlflow_gets_a_point_for_each_epoch(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    fit(tmp_path, [search()], logger=logger)
    client = mlflow.MlflowClient(logger._tracking_uri)
    assert set(client.get_run(logger.run_id).data.metrics) >= NAMES
    assert len(client.get_metric_history(logger.run_id, "deopt/lr/first")) == 3


def test_several_loggers_at_once(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name=name, version="") for name in ("a", "b")]
    fit(tmp_path, [search()], logger=loggers)
    header, again = ((tmp_path / name / "metrics.csv").read_text() for name in ("a", "b"))
    assert header == again
    assert set(header.splitlines()[0].split(",")) >= NAMES


class StagedLogger(CSVLogger):
    """A logger with a context of its own."""

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        yield {"stage": name}


class AsksItsLogger(TinyModel):
    """Writes files where its logger does, and tells loggers apart, as user code may."""

    found: set[Any]  # of the class, since a search restores a module's own

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        (logger,) = [one for one in self.loggers if isinstance(one, CSVLogger)]
        experiment: Any = logger.experiment
        folders = self.trainer.log_dir, logger.log_dir, logger.root_dir, experiment.log_dir
        self.found.add((*folders, logger.name, experiment.NAME_METRICS_FILE))
        with self.logger.stage("validation") as stage:
            stage["folder"] = folders[0]
        experiment.log_metrics({"by_experiment": 1.0}, step=self.global_step)
        logger.log_metrics({"by_logger": 1.0}, step=self.global_step)


@pytest.mark.parametrize("options", [{"carry": "population"}, {"probe_steps": 1}])
def test_candidates_find_the_logger_and_write_nothing(
    options: dict[str, Any], tmp_path: Path
) -> None:
    AsksItsLogger.found = set()
    callback = DEOptCallback("val_loss", population_size=4, **options)
    logger = StagedLogger(tmp_path, name="a", version="b")
    fit(tmp_path, [callback], model=AsksItsLogger, logger=logger, num_sanity_val_steps=0)
    assert callback.evaluations > 9
    assert len(AsksItsLogger.found) == 1
    by_hand = "by_experiment", "by_logger"
    rows = list(csv.DictReader((tmp_path / "a" / "b" / "metrics.csv").open()))
    assert [len([row for row in rows if row[name]]) for name in by_hand] == [3, 3]
