"""Hydra entry: assembles an experiment from conf/, trains, and reports validation and test.

Run ``recsys-train`` or ``python -m recsys_models.train``, with overrides such as
``data=filmtrust data.path=ratings.txt tuner=deopt``.
"""

import math
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from numpy.typing import NDArray
from omegaconf import DictConfig

from recsys_models.baselines import EASE, MOST_ITEMS, MostPop
from recsys_models.checkpoints import read_checkpoint
from recsys_models.costs import Clock, best_so_far, total
from recsys_models.data import RecsysDataModule
from recsys_models.experiment import Experiment, drop_losers
from recsys_models.locks import alone_in
from recsys_models.metrics import evaluate
from recsys_models.metrics.per_user import per_user
from recsys_models.models import RecommenderModule
from recsys_models.report import (
    Metrics,
    Result,
    Schedule,
    constant_schedule,
    layers_of,
    print_points,
    print_table,
    write_json,
)
from recsys_models.training import Training, check_numbers, load_weights, quieten
from recsys_models.tuning import Outcome, Setting, Sweep, choose

USER_ERRORS = (
    FloatingPointError,  # the model diverged
    MisconfigurationException,
    OSError,  # a data file is missing or cannot be fetched
    ValueError,
)


def main() -> None:
    """Console entry: compose the configuration from the command line and run it."""
    heed_interrupts()
    hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")(_task)()


def run(cfg: DictConfig) -> float:
    """Run one experiment: train, choose on validation, then read the test set once.

    A tuner that is a sweep trains several settings, of which the best on validation is chosen; any
    other trains once. The chosen epoch is the best on validation.

    Args:
        cfg: the composed configuration.

    Returns:
        The monitored validation value of the chosen epoch, for a sweep to compare.
    """
    clock = Clock()
    check_numbers(cfg)
    experiment = Experiment(cfg)
    if isinstance(experiment.data, RecsysDataModule):
        experiment.data.check_held_out()  # now, not when all is trained
    sweep: Sweep | None = instantiate(cfg.tuner.get("sweep"))
    if sweep is None:
        training = Training(cfg, experiment.data, goes_on=cfg.ckpt_path is not None)
        try:
            training.fit(cfg.ckpt_path)
        except Exception:
            if cfg.ckpt_path is not None and Path(cfg.ckpt_path).is_file():
                read_checkpoint(Path(cfg.ckpt_path))  # which says so where it is damaged
            raise
        weights, trained = training.best_weights, _describe_one(training)
    else:
        _check_no_checkpoint(cfg)
        outcomes = sweep.run(experiment)
        chosen = choose(outcomes, cfg.mode)
        training = Training(experiment.at(chosen.setting, experiment.folder), experiment.data)
        weights, trained = chosen.weights, _describe_sweep(training, sweep, outcomes, chosen)

    load_weights(training.model, weights)
    trainer, data = training.trainer, training.data
    val = trainer.validate(training.model, datamodule=data, verbose=False)[0]
    test, references, by_user = _read_test_set(training)
    if trainer.is_global_zero:
        result = replace(
            trained,
            val=_without_stage(val),
            test=test,
            reference_val=references["val"],
            reference=references["test"],
            seconds=clock.seconds,
            pairs=experiment.pairs,
        )
        folder = experiment.folder
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "per_user.npz", **by_user)  # type: ignore[arg-type]
        write_json(result, folder / "result.json")  # last: a run that has one is finished
        training.drop_last()
        if sweep is not None:
            print_points(outcomes, chosen)
            drop_losers(outcomes, cfg.mode)
        print_table(result)
        print("\n".join(f"written: {path}" for path in (weights, folder / "result.json") if path))
    return float(val[cfg.monitor])


def heed_interrupts() -> None:
    """Let Ctrl-C end a wait for other processes; once polars is imported it waits for their end."""
    if sys.platform != "win32":
        signal.siginterrupt(signal.SIGINT, True)


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


def _check_no_checkpoint(cfg: DictConfig) -> None:
    if cfg.ckpt_path is not None:
        raise ValueError(
            f"ckpt_path is for one training; got {cfg.ckpt_path!r} and a sweep. A sweep goes on by "
            "itself: start it again with hydra.run.dir set to its folder."
        )


def _choice(group: str, otherwise: str) -> str:
    """The name by which the command line chose from a group; outside Hydra's main, another."""
    if not HydraConfig.initialized():
        return otherwise
    return str(HydraConfig.get().runtime.choices[group])


def _task(cfg: DictConfig) -> float:
    quieten()
    # The first process of a distributed run speaks for all of them.
    first = getattr(rank_zero_only, "rank", 0) == 0
    own = alone_in(Path(cfg.output_dir)) if first else nullcontext()
    try:
        with own:
            return run(cfg)
    except (*USER_ERRORS, InstantiationException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # Hydra wraps what a constructor or an import raises; these messages need no wrapping.
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        found = cause if isinstance(cause, (*USER_ERRORS, ImportError)) else error
        message = " ".join(str(found).splitlines())
        print(f"error: {message}\n(HYDRA_FULL_ERROR=1 shows where.)", file=sys.stderr)
        if HydraConfig.get().mode is RunMode.MULTIRUN:  # an exit would take the other jobs along
            raise RuntimeError(message) from None
        sys.exit(1)


def _describe(
    training: Training, kind: str, outcome: Outcome, points: list[Outcome], schedule: Schedule
) -> Result:
    """What an outcome gave; the costs are those of all points."""
    cfg = training.cfg
    steps = sum(point.steps for point in points)
    return Result(
        model=_choice("model", type(training.model).__name__),
        data=_choice("data", cfg.data.get("dataset", type(training.data).__name__)),
        tuner=_choice("tuner", kind),
        seed=cfg.seed,
        epochs=len(outcome.lineage),
        train_steps=outcome.total_steps,
        probe_steps=steps - outcome.total_steps,
        evaluations=sum(point.evaluations for point in points),
        schedule=schedule,
        train_seconds=sum(point.seconds for point in points),
        train_cpu_seconds=total(point.cpu_seconds for point in points),
        curve=best_so_far([point.curve for point in points], cfg.mode),
    )


def _describe_one(training: Training) -> Result:
    outcome = training.outcome(Setting(0.0, 0.0), "")
    # Tuners are known by what they offer, not by class: this package imports none of them.
    schedule: Schedule | None = getattr(training.tuner, "schedule", None)
    if schedule is None:
        optimizer = training.trainer.optimizers[0]
        schedule = constant_schedule(training.model, optimizer, training.trainer.current_epoch)
    kind = "none" if training.tuner is None else type(training.tuner).__name__
    return _describe(training, kind, outcome, [outcome], schedule)


def _describe_sweep(
    training: Training, sweep: Sweep, outcomes: list[Outcome], chosen: Outcome
) -> Result:
    layers = layers_of(training.model)
    schedule: Schedule = [
        {
            "epoch": epoch,
            "lr": dict.fromkeys(layers, setting.lr),
            "weight_decay": dict.fromkeys(layers, setting.weight_decay),
        }
        for epoch, setting in enumerate(chosen.lineage)
    ]
    points = [
        {
            **point.setting.as_dict(),
            "val": point.val,
            "steps": point.steps,
            "evaluations": point.evaluations,
            "seconds": point.seconds,
            "cpu_seconds": point.cpu_seconds,
        }
        for point in outcomes
    ]
    trained = _describe(training, type(sweep).__name__, chosen, outcomes, schedule)
    return replace(trained, points=points)


def _read_test_set(
    training: Training,
) -> tuple[Metrics, dict[str, dict[str, Metrics]], dict[str, NDArray[np.float64]]]:
    """Test metrics of the model, of the references per stage, and of the model per user.

    The latter two are of recommenders' data only.

    The only place that asks for the test set: once, after everything has been chosen.
    """
    trainer, model, data = training.trainer, training.model, training.data
    data.setup("test")
    test = data.test_dataloader()
    metrics = _without_stage(trainer.test(model, dataloaders=test, verbose=False)[0])
    if not isinstance(data, RecsysDataModule):
        return metrics, {"val": {}, "test": {}}, {}
    validation = data.val_dataloader()
    device = trainer.strategy.root_device
    rows = {"MostPop": MostPop(data.train).score_users}
    if data.num_items <= MOST_ITEMS:
        rows["EASE"] = EASE.select(data.train, validation, device=device).score_users
    else:
        rank_zero_warn(
            f"EASE is left out of the table: its time grows with the cube of {data.num_items} "
            f"items, its memory with their square. It is shown for up to {MOST_ITEMS} items."
        )
    top_k = getattr(model, "top_k", (10,))
    references = {
        stage: {name: evaluate(score, batches, top_k, device) for name, score in rows.items()}
        for stage, batches in (("val", validation), ("test", test))
    }
    by_user = {}
    if isinstance(model, RecommenderModule) and trainer.world_size == 1:
        model.eval()
        by_user = per_user(model.scorer(), test, top_k, model.device)
    return metrics, references, by_user


def _without_stage(metrics: Mapping[str, float]) -> Metrics:
    """Metrics by their plain names, without those of an own module that are no finite numbers."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            rank_zero_warn(f"{name} is {value} at the chosen epoch, and left out of the result.")
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return {name.partition("/")[2]: value for name, value in finite.items()}


if __name__ == "__main__":
    main()
