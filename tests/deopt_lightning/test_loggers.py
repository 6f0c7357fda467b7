"""The values of each epoch reach every logger; those not installed are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from deopt_lightning import DEOptCallback
from tests.tiny import fit

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
