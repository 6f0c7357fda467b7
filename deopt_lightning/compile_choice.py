"""Whether a run's direct steps are compiled: by what that saves against what it takes."""

from __future__ import annotations

import time
from itertools import islice
from typing import NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from deopt_lightning.compiled_steps import CompiledStep
from deopt_lightning.direct_steps import DirectSteps
from deopt_lightning.pure_steps import (
    first_line,
    moved_alike,
    seconds_of,
    shape_of,
    state_of,
    threads,
    why_no_function,
)
from deopt_lightning.snapshot import Snapshot

# What compiling a recommender takes, and saves of a step, on one core. This decides whether it is
# tried; whether it stays is decided by what it then saves.
LIKELY_SECONDS = 6.0
LIKELY_SAVING = 0.5
_TIMED_STEPS = 10
_CHECKED_STEPS = 2


class Choice(NamedTuple):
    """The compiled step, or None for eager ones, and the seconds that compiling took."""

    step: CompiledStep | None
    seconds: float = 0.0


def choose_steps(
    direct: DirectSteps,
    start: Snapshot,
    steps_left: float,
    *,
    processes: int,
    decided: bool | None = None,
) -> Choice:
    """Compiles direct steps if the rest of the run makes up for it, and tests what they do.

    Costs some tens of steps, and a compilation if that is likely to pay.

    Args:
        direct: Direct steps on a generation's batches, in `on_train_epoch_end`.
        start: The state to start from, which is restored.
        steps_left: How many steps the probes of the rest of the run will take.
        processes: How many processes share them out, each with one thread; 0 for none.
        decided: What the run that is resumed had decided, which then holds; None measures.
    """
    if decided is False:
        return Choice(None)
    if (reason := why_no_function(direct.trainer)) is not None:
        return _cannot(reason)
    first = shape_of(direct.batches[0])
    alike = list(islice((b for b in direct.batches if shape_of(b) == first), _TIMED_STEPS))
    steps = DirectSteps(direct.trainer, alike)
    with threads(1 if processes > 1 else torch.get_num_threads()):
        eager = _seconds_each(steps, start)
        left = steps_left / max(1, processes)
        if decided is None and left * eager * LIKELY_SAVING < LIKELY_SECONDS:
            rank_zero_info(
                f"DEOptCallback compiles no steps: {left:.0f} of {eager * 1e3:.2g} ms are too few."
            )
            return Choice(None)
        choice = _compile(steps, start)
        if choice.step is None or decided:
            return choice
        steps.compiled = choice.step
        compiled = _seconds_each(steps, start)
    rank_zero_info(
        f"DEOptCallback compiled the training step in {choice.seconds:.1f} s. It takes "
        f"{compiled * 1e3:.2g} ms; it took {eager * 1e3:.2g} ms."
    )
    return choice if compiled < eager else Choice(None, choice.seconds)


def _compile(steps: DirectSteps, start: Snapshot) -> Choice:
    """A step that has been compiled and does what eager steps do; none after a warning."""
    trainer = steps.trainer
    started = time.perf_counter()
    try:
        step = CompiledStep(trainer.lightning_module, trainer.optimizers[0], steps.batches[0])
        _train(DirectSteps(trainer, steps.batches[:1], step), start)
        step.freeze()
    except Exception as error:  # torch raises what its compilers raise
        return _cannot(_reason(error))
    finally:
        start.restore()
    choice = Choice(step, time.perf_counter() - started)
    few = steps.batches[:_CHECKED_STEPS]
    before = state_of(trainer)
    eager, compiled = (_train(DirectSteps(trainer, few, way), start) for way in (None, step))
    start.restore()
    if not moved_alike(before, eager, compiled):
        return _cannot("its results differ from those of eager steps")
    return choice


def _train(steps: DirectSteps, start: Snapshot) -> list[Tensor]:
    """Trains from the start; returns what that leads to."""
    start.restore()
    steps()
    return state_of(steps.trainer)


def _seconds_each(steps: DirectSteps, start: Snapshot) -> float:
    """The time of a step."""
    return seconds_of(steps, steps.trainer, start) / len(steps.batches)


def _cannot(reason: str) -> Choice:
    rank_zero_warn(
        f"DEOptCallback(compile_steps=True) takes eager steps: {reason}. The results are the same, "
        "but for rounding."
    )
    return Choice(None)


def _reason(error: Exception) -> str:
    if "CxxCompiler" in f"{type(error).__name__}{error}":
        return "torch finds no C++ compiler; install one, or name it in the variable CXX"
    return f"torch cannot compile training_loss ({first_line(error)})"
