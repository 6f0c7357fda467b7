"""What DEOptCallback refuses, and why: arguments in `__init__`, Trainers at the start of a fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from deopt_lightning.averaging import stochastic_averages_of
from deopt_lightning.differential_evolution import check_choice, check_settings
from deopt_lightning.layers import check_patterns
from deopt_lightning.trainer_seam import has_validation_data

_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")
_WEIGHT_CHANGING = ("BaseFinetuning", "ModelPruning")
_WHOLE = {  # numbers, and the least that each may be
    "population_size": -math.inf,  # see check_settings
    "seed": 0,
    "every_n_epochs": 1,
    "warmup_epochs": 0,
    "optimizer_index": 0,
    "max_generations": 1,
    "workers": 0,
}
_FLAGS = ("adopt", "direct_steps", "compile_steps", "share_over_ranks")
_OTHERS = (
    *("monitor", "mode", "carry", "probe_steps", "limit_probe_val_batches", "layers", "strategy"),
    *("lr_bounds", "weight_decay_bounds", "local_search", "repair", "evaluator", "snapshot_device"),
)
_USUAL_WORDS = {  # in names of metrics, and the mode that goes with them
    "max": "acc accuracy auc auroc bleu dice f1 iou map mrr ndcg precision psnr r2 recall ssim",
    "min": "cer err error fid loss mae mape mse nll perplexity ppl rmse wer",
}


def checked_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of DEOptCallback, with NumPy's numbers and strings as Python's own.

    Raises:
        ValueError: Naming an argument that cannot work, its value, and what to give instead.
    """
    arguments = {name: _plain(given[name]) for name in (*_WHOLE, *_FLAGS, *_OTHERS)}
    for name, least in _WHOLE.items():
        _check_whole(name, arguments[name], least)
    for name in _FLAGS:
        check_choice(name, arguments[name], (True, False))
    check_choice("mode", arguments["mode"], ("min", "max"))
    carry = arguments["carry"]
    check_choice("carry", carry, ("hyperparameters", "weights", "population", "chain"))
    check_choice("evaluator", arguments["evaluator"], ("auto", "sequential", "vectorised"))
    check_choice("snapshot_device", arguments["snapshot_device"], ("auto", "cpu", None))
    if carry == "chain" and not arguments["adopt"]:
        raise ValueError(
            "adopt=False cannot be set with carry='chain', whose trials are scored by the epochs "
            "that the Trainer itself trains with them; got False. Carry weights, hyperparameters "
            "or population for a dry run."
        )
    if not (isinstance(arguments["monitor"], str) and arguments["monitor"]):
        raise ValueError(f"monitor must name a validation metric; got {arguments['monitor']!r}.")
    _warn_of_mode(arguments["monitor"], arguments["mode"])
    search = ("population_size", "strategy", "local_search", "repair")
    check_settings(**{name: arguments[name] for name in search})
    if arguments["probe_steps"] is not None:
        _check_probe_steps(arguments["probe_steps"], carry)
    if arguments["limit_probe_val_batches"] is not None:
        _check_limit(arguments["limit_probe_val_batches"], carry)
    _check_bounds("lr_bounds", arguments["lr_bounds"], positive=True)
    _check_bounds("weight_decay_bounds", arguments["weight_decay_bounds"], positive=False)
    if arguments["layers"] is not None:
        check_patterns(arguments["layers"])
    return arguments


def check_resumed(state: Mapping[str, Any], layers: list[str], carry: str) -> None:
    """Refuses a checkpoint that another kind of search has written.

    Raises:
        ValueError: Naming what differs.
    """
    if state["layers"] != layers:
        raise ValueError(
            f"The checkpoint was written with the layers {state['layers']}, this run has "
            f"{layers}. Resume with the same model and `layers`."
        )
    if state["carry"] != carry:
        raise ValueError(
            f"The checkpoint was written with carry={state['carry']!r}, this run has "
            f"carry={carry!r}. Resume with the same."
        )


def check_epochs(trainer: pl.Trainer, arguments: Mapping[str, Any]) -> None:
    """Refuses schedules that members cannot follow, and warns where too few epochs are to come.

    Args:
        trainer: A Trainer in `on_train_start`, which knows its data.
        arguments: Those of DEOptCallback, by name.

    Raises:
        MisconfigurationException: Naming the option and the way out.
    """
    batches, steps = trainer.num_training_batches, trainer.max_steps
    is_population = arguments["carry"] == "population"
    for config in trainer.lr_scheduler_configs if is_population else ():
        if config.reduce_on_plateau and config.interval == "step" and config.frequency < batches:
            raise MisconfigurationException(
                "DEOptCallback cannot let members follow ReduceLROnPlateau with interval='step' "
                f"and frequency={config.frequency}, which looks at the Trainer's own steps. Set "
                "interval='epoch', or carry='weights'."
            )
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    warmup, every = arguments["warmup_epochs"], arguments["every_n_epochs"]
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    if epochs < max(math.ceil(warmup / every), 1) * every:
        rank_zero_warn(
            "DEOptCallback searches nothing in this run: it ends before the first generation "
            f"(max_epochs={epochs}, warmup_epochs={warmup}, every_n_epochs={every}). Lower the "
            "latter two, or train for more epochs."
        )
    elif epochs == 1 or (steps != -1 and batches >= steps * trainer.accumulate_grad_batches):
        rank_zero_warn(
            "DEOptCallback changes lr and weight decay at the ends of epochs, and this run may be "
            f"over in its first (max_epochs={trainer.max_epochs}, max_steps={steps}, {batches} "
            "batches in an epoch). Set limit_train_batches, for example to 100, for shorter epochs "
            "and max_epochs for more of them."
        )


def _warn_of_mode(monitor: str, mode: str) -> None:
    """Says that a mode is unusual for a metric of that name; a run would unlearn."""
    words = set(re.split(r"[^a-z0-9]+", monitor.lower()))
    usual = [name for name, known in _USUAL_WORDS.items() if not words.isdisjoint(known.split())]
    if len(usual) == 1 and usual != [mode]:
        rank_zero_warn(
            f"DEOptCallback(monitor={monitor!r}, mode={mode!r}) learns towards the "
            f"{'largest' if mode == 'max' else 'smallest'} {monitor}. Pass mode={usual[0]!r} if "
            "the opposite is better."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_whole(name: str, value: object, least: float) -> None:
    if value is None and name in ("optimizer_index", "max_generations"):
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number; got {value!r}.")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")


def _check_limit(limit: int | float, carry: str) -> None:
    if carry in ("population", "chain"):
        raise ValueError(
            f"limit_probe_val_batches={limit} is for probes, but with carry={carry!r} candidates "
            "are judged as the run's own epochs are. Set the Trainer's limit_val_batches, or carry "
            "weights or hyperparameters."
        )
    most = math.inf if isinstance(limit, int) else 1
    if not _is_number(limit) or not (0 < limit <= most):
        raise ValueError(
            "limit_probe_val_batches must be a number of batches (int, at least 1) or a share of "
            f"them (float, above 0 and at most 1); got {limit!r}."
        )


def _check_probe_steps(probe_steps: int | float, carry: str) -> None:
    if carry in ("population", "chain"):
        trained = "members all" if carry == "population" else "trials"
        raise ValueError(
            f"probe_steps cannot be set with carry={carry!r}, whose {trained} train whole epochs; "
            f"got {probe_steps!r}. Leave it out, or carry weights or hyperparameters."
        )
    if not _is_number(probe_steps) or not probe_steps > 0 or math.isinf(probe_steps):
        raise ValueError(
            "probe_steps must be a positive int (optimizer steps) or a positive float (fraction "
            f"of an epoch); got {probe_steps!r}."
        )


def _check_bounds(name: str, bounds: Sequence[float] | None, *, positive: bool) -> None:
    if bounds is None:
        return
    is_pair = isinstance(bounds, Sequence) and len(bounds) == 2
    if not is_pair or not all(map(_is_number, bounds)):
        raise ValueError(
            f"{name} must be a pair (low, high) of numbers; got {bounds!r}. YAML takes 1e-3 for "
            "text; write 1.0e-3 there."
        )
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite; got {bounds!r}.")
    if low > high:
        raise ValueError(f"{name} are reversed: low {low:g} is above high {high:g}. Swap them.")
    if low < 0 or (positive and low == 0):
        needed = "positive" if positive else "at least 0"
        raise ValueError(f"{name} must be {needed}; got {bounds!r}.")


def check_trainer(
    trainer: pl.Trainer, module: pl.LightningModule, carry: str, optimizer_index: int | None
) -> None:
    """Refuses a Trainer or a module in which a generation cannot run, or would run wrongly.

    Raises:
        MisconfigurationException: Naming the option and the way out.
    """
    for problem in _problems(trainer, module, carry, optimizer_index):
        raise MisconfigurationException(f"DEOptCallback {problem}")


def _problems(
    trainer: pl.Trainer, module: pl.LightningModule, carry: str, optimizer_index: int | None
) -> list[str]:
    count = len(trainer.optimizers)
    checks: list[tuple[bool, str]] = [
        (
            optimizer_index is not None and optimizer_index >= count,
            f"has optimizer_index={optimizer_index}, but the module has {count} optimizers, "
            "counted from 0. Give a smaller one, or leave it out to control all.",
        ),
        (
            carry == "population" and bool(stochastic_averages_of(trainer)),
            "with carry='population' would let StochasticWeightAveraging average the weights of "
            "different members. Carry weights or hyperparameters, or use WeightAveraging.",
        ),
        (
            not overrides(module, "validation_step"),
            f"scores candidates by validation, but {type(module).__name__} has no "
            "validation_step. Add one that logs the monitor.",
        ),
        (
            trainer.barebones,
            "reads what validation logs, and Trainer(barebones=True) logs nothing. Leave it out.",
        ),
        (
            trainer.limit_val_batches == 0 or not has_validation_data(trainer),
            "scores candidates by validation, but there is no validation data. Pass a validation "
            "dataloader, and do not set limit_val_batches=0.",
        ),
        (
            is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True),
            "replays batches, which a training_step(dataloader_iter) fetches itself. Take "
            "(batch, batch_idx) instead.",
        ),
        (
            _class_name(trainer.strategy, _SHARDED) is not None,
            f"does not support {_class_name(trainer.strategy, _SHARDED)}, whose sharded state it "
            "cannot copy. Use strategy='ddp' or a single device.",
        ),
    ]
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    searches = sum(_class_name(callback, ["DEOptCallback"]) is not None for callback in callbacks)
    checks.append(
        (
            searches > 1,
            f"is in the Trainer {searches} times, and all would split and write the same "
            "optimizers. Keep one.",
        )
    )
    for callback in callbacks:
        name = _class_name(callback, _WEIGHT_CHANGING)
        checks.append(
            (
                name is not None,
                f"does not work beside {type(callback).__name__} ({name}): probes run without "
                "it and would score other weights. Remove one of the two.",
            )
        )
    return [message for wrong, message in checks if wrong]


def overrides(owner: object, method: str) -> bool:
    """Whether a module or datamodule has a method of its own, whatever Lightning's import name."""
    bases = ("LightningModule", "LightningDataModule")
    base = next(ancestor for ancestor in type(owner).__mro__ if ancestor.__name__ in bases)
    own = getattr(type(owner), method, None) is not getattr(base, method, None)
    return own or method in vars(owner)


def _class_name(value: Any, names: Sequence[str]) -> str | None:
    """The first of the names among a value's classes, by name to fit both import names."""
    ancestors = [ancestor.__name__ for ancestor in type(value).__mro__]
    return next((name for name in names if name in ancestors), None)
