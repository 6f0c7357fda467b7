"""Other callbacks' hooks that change what a step trains with; members hear nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.parameter import is_lazy

from deopt_lightning.averaging import averages_of
from deopt_lightning.replay import arrays_of
from deopt_lightning.snapshot import same_values

CALLS = 3
"""So many calls of each hook are looked at."""

_OURS_AND_LIGHTNINGS = ("deopt_lightning.", "lightning.", "pytorch_lightning.")
_WATCHED = {  # and what they may change
    "on_train_batch_start": ("weights", "batch"),
    "on_after_backward": ("weights", "gradients"),
    "on_before_optimizer_step": ("weights", "gradients"),
    "on_train_batch_end": ("weights",),
    "on_validation_start": ("weights",),
    "on_validation_epoch_start": ("weights",),
}


def watch(trainer: pl.Trainer) -> Callable[[], None]:
    """Refuses what changes weights, gradients or batches, as soon as it does so.

    Lightning's own callbacks are known, and averages take part in members' steps.

    Args:
        trainer: A Trainer in `on_train_start`.

    Returns:
        What ends it, where a run is over before as many calls.
    """
    averages, looks = averages_of(trainer), ExitStack()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name in _WATCHED if callback not in averages else ():
            hook = getattr(callback, name)
            module = getattr(getattr(hook, "__func__", hook), "__module__", None) or ""
            if not f"{module}.".startswith(_OURS_AND_LIGHTNINGS):
                looks.callback(_look_at(callback, name, hook))
    return looks.close


def _look_at(callback: Any, name: str, hook: Callable[..., Any]) -> Callable[[], None]:
    """Puts a look at what has changed around the first calls of a hook; returns what ends it."""
    own = {name: vars(callback)[name]} if name in vars(callback) else {}
    calls = 0

    def looked_at(
        trainer: pl.Trainer, module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> Any:
        nonlocal calls
        calls += 1
        before = _state(name, trainer, module, args)
        result = hook(trainer, module, *args, **kwargs)
        after = _state(name, trainer, module, args)
        if calls == CALLS:
            end()
        for what in before:
            if not _are_equal(before[what], after[what]):
                raise MisconfigurationException(
                    "DEOptCallback trains members that hear nothing of other callbacks, and "
                    f"{type(callback).__name__}.{name} changes the {what} of the Trainer's model "
                    f"alone. Let the module's own {name} do it, which is called for members, too; "
                    "let EMAWeightAveraging average weights; or set carry='weights', whose "
                    "candidates all go without it."
                )
        return result

    def end() -> None:
        if vars(callback).get(name) is looked_at:
            del vars(callback)[name]
            vars(callback).update(own)

    vars(callback)[name] = looked_at
    return end


def _state(
    name: str, trainer: pl.Trainer, module: torch.nn.Module, args: tuple[Any, ...]
) -> dict[str, list[Tensor | None]]:
    """What a hook may change: sums of weights or gradients, copies of a batch's tensors.

    Parameters that train outside of the optimizers, such as those of a probe that a callback has
    put into the module, are left aside.
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    parameters = [
        p for p in module.parameters() if id(p) in trained or not (p.requires_grad or is_lazy(p))
    ]
    batch = [array for array in arrays_of(args[:1]) if isinstance(array, Tensor)]
    found: dict[str, Callable[[], list[Tensor | None]]] = {
        "weights": lambda: [_sum(p) for p in parameters],
        "gradients": lambda: [None if p.grad is None else _sum(p.grad) for p in parameters],
        "batch": lambda: [t.detach().clone() for t in batch if t.layout == torch.strided],
    }
    return {what: found[what]() for what in _WATCHED[name]}


def _sum(tensor: Tensor) -> Tensor:
    values = tensor.detach()
    values = values.coalesce().values() if values.is_sparse else values
    return values.sum(dtype=torch.float64) if values.is_floating_point() else values.sum()


def _are_equal(left: list[Tensor | None], right: list[Tensor | None]) -> bool:
    return len(left) == len(right) and all(
        a is b or (a is not None and b is not None and same_values(a, b))
        for a, b in zip(left, right, strict=True)
    )
