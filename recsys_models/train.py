"""Hydra entry: assembles an experiment from conf/, trains, and reports validation and test.

Run ``recsys-train`` or ``python -m recsys_models.train``, with overrides such as
``data=filmtrust data.path=ratings.txt tuner=deopt``.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from recsys_models.baselines import EASE, MostPop
from recsys_models.data.datamodule import RecsysDataModule
from recsys_models.metrics import evaluate
from recsys_models.models import RecommenderModule
from recsys_models.report import (
    Metrics,
    Result,
    Schedule,
    ValidationCounter,
    constant_schedule,
    print_table,
    write_json,
)

USER_ERRORS = (
    FloatingPointError,  # the model diverged
    MisconfigurationException,
    OSError,  # a data file is missing or cannot be fetched
    ValueError,
)


def main() -> None:
    """Console entry: compose the configuration from the command line and run it."""
    hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")(_task)()


def run(cfg: DictConfig) -> float:
    """Run one experiment: train, choose the epoch on validation, then read the test set once.

    Args:
        cfg: the composed configuration.

    Returns:
        The monitored validation value of the chosen epoch, for a sweep to compare.
    """
    started = time.perf_counter()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    data, model = _data_and_model(cfg)
    tuner: L.Callback | None = instantiate(cfg.tuner.callback)
    counter = ValidationCounter()
    trainer = _trainer(cfg, tuner, counter)

    before_fit = time.perf_counter()
    trainer.fit(model, datamodule=data)
    train_seconds = time.perf_counter() - before_fit
    trained = _describe(cfg, trainer, model, tuner, counter)

    _load_best_weights(trainer, model)
    val = trainer.validate(model, datamodule=data, verbose=False)[0]
    test, references = _read_test_set(trainer, model, data)
    if trainer.is_global_zero:
        result = replace(
            trained,
            val=_without_stage(val),
            test=test,
            reference_val=references["val"],
            reference=references["test"],
            train_seconds=train_seconds,
            seconds=time.perf_counter() - started,
        )
        write_json(result, Path(cfg.output_dir) / "result.json")
        print_table(result)
    return float(val[cfg.monitor])


def config_dir() -> str:
    """Absolute path of the configuration: in the wheel beside this file, in a checkout above it."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(
        f"the configuration folder conf/ is missing; looked in {here} and {here.parent}. "
        "Reinstall the package, or run from a complete checkout."
    )


def _choice(group: str, otherwise: str) -> str:
    """The name by which the command line chose from a group; outside Hydra's main, another."""
    if not HydraConfig.initialized():
        return otherwise
    return str(HydraConfig.get().runtime.choices[group])


def _task(cfg: DictConfig) -> float:
    _quieten()
    try:
        return run(cfg)
    except (*USER_ERRORS, InstantiationException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # Hydra wraps what a constructor raises; our own messages need no wrapping.
        wrapped = isinstance(error, InstantiationException)
        message = error.__cause__ if wrapped and isinstance(error.__cause__, USER_ERRORS) else error
        print(f"error: {message}\n(HYDRA_FULL_ERROR=1 shows where.)", file=sys.stderr)
        sys.exit(1)


def _quieten() -> None:
    """Leave out what repeats on every run and asks nothing of the reader."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)


def _data_and_model(cfg: DictConfig) -> tuple[RecsysDataModule, RecommenderModule]:
    data: RecsysDataModule = instantiate(cfg.data)
    data.prepare_data()
    data.setup()
    sizes = {"num_users": data.num_users, "num_items": data.num_items}
    model: RecommenderModule = instantiate(cfg.model, **sizes)
    names = [f"val/{name}" for name in model.val_metrics.names]
    if cfg.monitor not in names:
        raise ValueError(
            f"monitor must be a metric that validation logs; got {cfg.monitor!r}. "
            f"Choose one of {', '.join(names)}, or add its K with +model.top_k=[...]."
        )
    return data, model


def _trainer(cfg: DictConfig, tuner: L.Callback | None, counter: L.Callback) -> L.Trainer:
    callbacks = [instantiate(entry) for entry in cfg.callbacks.values()]
    extra = {} if sys.stdout.isatty() else {"enable_progress_bar": False}
    return cast(
        L.Trainer,
        instantiate(
            cfg.trainer,
            callbacks=[c for c in (tuner, counter, *callbacks) if c is not None],
            logger=instantiate(cfg.logger) if cfg.get("logger") else False,
            **extra,
        ),
    )


def _load_best_weights(trainer: L.Trainer, model: RecommenderModule) -> None:
    checkpoint = trainer.checkpoint_callback
    # A fast_dev_run saves nothing: the last weights stand for the best.
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
        saved = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["state_dict"])


def _describe(
    cfg: DictConfig,
    trainer: L.Trainer,
    model: RecommenderModule,
    tuner: L.Callback | None,
    counter: ValidationCounter,
) -> Result:
    # Tuners are known by what they offer, not by class: this package imports none of them.
    schedule: Schedule | None = getattr(tuner, "schedule", None)
    if schedule is None:
        schedule = constant_schedule(model, trainer.optimizers[0], trainer.current_epoch)
    return Result(
        model=_choice("model", type(model).__name__),
        data=cfg.data.dataset,
        tuner=_choice("tuner", "none" if tuner is None else type(tuner).__name__),
        seed=cfg.seed,
        epochs=trainer.current_epoch,
        train_steps=trainer.global_step,
        probe_steps=getattr(tuner, "probe_steps_taken", 0),
        evaluations=counter.passes + getattr(tuner, "evaluations", 0),
        schedule=schedule,
    )


def _read_test_set(
    trainer: L.Trainer, model: RecommenderModule, data: RecsysDataModule
) -> tuple[Metrics, dict[str, dict[str, Metrics]]]:
    """Test metrics of the model, and of the references per stage.

    The only place that asks for the test set: once, after everything has been chosen.
    """
    validation = data.val_dataloader()
    device = trainer.strategy.root_device
    ease = EASE.select(data.train, validation, device=device)
    rows = {"MostPop": MostPop(data.train).score_users, "EASE": ease.score_users}
    test = data.test_dataloader()
    metrics = _without_stage(trainer.test(model, dataloaders=test, verbose=False)[0])
    references = {
        stage: {name: evaluate(score, batches, model.top_k, device) for name, score in rows.items()}
        for stage, batches in (("val", validation), ("test", test))
    }
    return metrics, references


def _without_stage(metrics: Mapping[str, float]) -> Metrics:
    return {name.partition("/")[2]: value for name, value in metrics.items()}


if __name__ == "__main__":
    main()
