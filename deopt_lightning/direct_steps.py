"""Probe steps without Lightning's loops, for modules whose training loss is a pure function.

Beside what a small model computes, a step in Lightning's loops is mostly the loops. A module that
has a method ::

    def training_loss(self, batch) -> Tensor

promises that this is the loss that ``training_step`` returns, and that working it out changes
nothing but gradients and torch's random generators. Then a step is that loss, its gradient and the
optimizer; of the module's hooks, ``on_train_batch_start``, ``on_train_batch_end`` and
``configure_gradient_clipping`` are called. LR schedules that go on at each step do so, where that
is asked for. The promise is tested once, see `equals_loops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from deopt_lightning.averaging import averages_of
from deopt_lightning.compatibility import overrides
from deopt_lightning.compiled_steps import CompiledStep
from deopt_lightning.quiet import muted
from deopt_lightning.random_state import rng_state
from deopt_lightning.replay import Redrawn, arrays_of, copy_batch
from deopt_lightning.snapshot import Snapshot, same_values
from deopt_lightning.step_counts import begin_steps
from deopt_lightning.trainer_seam import ProbeLoops

TRANSFER_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
_HOOKS = (  # those that Lightning's loops call in a training step and these steps do not
    *TRANSFER_HOOKS,
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
)
_CHECKED_STEPS = 2
Left = tuple[list[Tensor], dict[str, Any]]


class DirectSteps:
    """Trains on batches as Lightning's loops do, bit for bit, without them.

    Args:
        trainer: A Trainer that `why_not` has nothing against.
        batches: What to train on. They are not copied: a pure function leaves them as they are.
        compiled: Takes the steps that it can; their results are equal but for rounding.
        schedules: Whether LR schedules go on at each step; those by epoch never do.

    Attributes:
        undisturbed: Whether nothing that compiled steps depend on changes between two calls, but
            for weights, optimizer and random generators.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        batches: Sequence[Any],
        compiled: CompiledStep | None = None,
        *,
        schedules: bool = False,
    ) -> None:
        self.trainer = trainer
        self.batches = batches
        self.compiled = compiled
        self.schedules = schedules
        self.undisturbed = False
        self._began = False
        self._stepwise = [
            config
            for config in trainer.lr_scheduler_configs
            if schedules and config.interval == "step" and not config.reduce_on_plateau
        ]

    def __call__(self) -> None:
        """Trains on all batches from the present state."""
        trainer, module = self.trainer, self.trainer.lightning_module
        window, last = trainer.accumulate_grad_batches, len(self.batches) - 1
        (optimizer,) = trainer.optimizers
        optimizer.zero_grad()
        taken = begin_steps(trainer)
        on_cpu = trainer.strategy.root_device.type == "cpu"  # where loaders leave batches
        if self.compiled is not None:
            self.compiled.begin(unchanged=self.undisturbed and self._began)
            self._began = True
        with torch.enable_grad(), muted(module):
            for index, kept in enumerate(self.batches):
                batch = kept if on_cpu else trainer.strategy.batch_to_device(kept)
                if module.on_train_batch_start(batch, index) == -1:
                    break  # the epoch's end, as in Lightning's loops
                steps = (index + 1) % window == 0 or index == last
                loss: Any = self.compiled(batch) if self.compiled is not None else None
                if loss is None:
                    clear = index % window == 0
                    backward = self._backward(batch, index, window, clear=clear, clip=steps)
                    loss = optimizer.step(backward) if steps else backward()
                taken.completed += steps
                for config in self._stepwise if steps else ():
                    if (index + 1) % config.frequency == 0:
                        module.lr_scheduler_step(config.scheduler, None)
                module.on_train_batch_end({"loss": loss}, batch, index)

    def _backward(
        self, batch: Any, index: int, window: int, *, clear: bool, clip: bool
    ) -> Callable[[], Any]:
        """What an optimizer calls before it steps: loss and gradient."""
        trainer, module = self.trainer, self.trainer.lightning_module
        (optimizer,) = trainer.optimizers

        def backward() -> Tensor | None:
            loss = self.gradient(batch, index, window, clear=clear)
            if clip:
                value, kind = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                module.configure_gradient_clipping(optimizer, value, kind)
            return loss

        return backward

    def gradient(self, batch: Any, index: int, window: int, *, clear: bool) -> Tensor | None:
        """Adds a batch's share of the gradient; returns the loss, None where there is none.

        Args:
            batch: The batch, on the device.
            index: Its place in the epoch.
            window: Over how many batches a step accumulates gradients.
            clear: Whether earlier gradients are dropped.
        """
        trainer = self.trainer
        with trainer.precision_plugin.train_step_context():
            loss: Tensor | None = trainer.lightning_module.training_loss(batch)  # type: ignore[operator]
        if clear:
            trainer.optimizers[0].zero_grad()
        if loss is None:  # the module leaves the batch out
            return None
        (loss / window if window > 1 else loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def why_not(trainer: pl.Trainer, strategy: str = "SingleDeviceStrategy") -> str | None:
    """Why a Trainer's module cannot take direct steps; None if nothing speaks against it.

    Args:
        trainer: The Trainer, in its fit loop.
        strategy: Name of the strategy's class that the steps are made for.
    """
    module = trainer.lightning_module
    if not callable(getattr(module, "training_loss", None)):
        return f"{type(module).__name__} has no method training_loss(batch)"
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        return "training is not by one optimizer that Lightning calls"
    return why_not_alone(trainer, strategy) or why_overridden(trainer, _HOOKS)


def why_not_alone(trainer: pl.Trainer, strategy: str = "SingleDeviceStrategy") -> str | None:
    """Why what a Trainer's module computes is not all there is to it; None if it is.

    Args:
        trainer: The Trainer, in its fit loop.
        strategy: Name of the strategy's class that is expected.
    """
    precision = trainer.precision_plugin
    if type(trainer.strategy).__name__ != strategy:
        return f"{type(trainer.strategy).__name__} shares training out among processes"
    if averages_of(trainer):
        return "a callback averages weights after each step"
    name, scaler = type(precision).__name__, getattr(precision, "scaler", None)
    if name not in ("Precision", "MixedPrecision") or scaler is not None:
        return f"precision={precision.precision!r} does more than to choose a type"
    return None


def why_overridden(trainer: pl.Trainer, hooks: Sequence[str]) -> str | None:
    """The first of the hooks that module or datamodule override, as a reason; None without."""
    owners = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    found = [
        hook for hook in hooks for owner in owners if owner is not None and overrides(owner, hook)
    ]
    return f"{found[0]} is overridden" if found else None


def equals_loops(loops: ProbeLoops, direct: DirectSteps, start: Snapshot) -> bool:
    """Whether the first few steps leave the same both ways, and their batches as they are.

    A step may note something of its own beside, such as a sum of losses to log.

    Args:
        loops: Quiet loops with the batches of a generation.
        direct: Direct steps with the same batches.
        start: The state to start from, which is restored.
    """
    trainer, batches = direct.trainer, loops.batches
    count = _CHECKED_STEPS * trainer.accumulate_grad_batches
    redrawn = batches.first(count) if isinstance(batches, Redrawn) else None
    few = redrawn or batches[:count]
    own = redrawn or list(map(copy_batch, few))
    try:
        loops.batches = few
        start.restore()
        loops.train()
        expected = left_by(trainer)
        start.restore()
        try:
            DirectSteps(trainer, own, schedules=direct.schedules)()
        except Exception:  # of a method of that name that is made for something else
            return False
        return same_left(expected, left_by(trainer)) and _same_arrays(few, own)
    finally:
        loops.batches = batches
        start.restore()


def left_by(trainer: pl.Trainer) -> Left:
    """Weights, buffers and states of random generators, which steps and validation change."""
    module, random = trainer.lightning_module, rng_state()
    tensors = [*module.parameters(), *module.buffers(), random.pop("torch"), *random.pop("cuda")]
    return [tensor.detach().clone() for tensor in tensors], random


def same_left(one: Left, other: Left) -> bool:
    """Whether two ways have left the same."""
    (tensors, random), (others, random_then) = one, other
    alike = len(tensors) == len(others) and all(map(same_values, tensors, others))
    return alike and random == random_then


def _same_arrays(one: Any, other: Any) -> bool:
    pairs = zip(arrays_of(one), arrays_of(other), strict=True)
    return all(
        same_values(left, right)
        for left, right in pairs
        if isinstance(left, Tensor) and left.layout is torch.strided
    )
