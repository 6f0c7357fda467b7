"""Many members trained at once: their weights stacked, each step one call of vmap for all.

For a module whose training loss is a pure function of parameters and batch. On a GPU, where small
models wait for the launch of each operation, all members then cost little more than one. On a CPU
it does not pay (0.25 to 1.06 of the speed of one after the other), since stacked tables leave the
caches. Memory: one more copy of weights, gradients and optimizer state for each member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.func import grad_and_value, vmap

from deopt_lightning.evaluators.probe import Probe
from deopt_lightning.lr_schedule import effective_lr
from deopt_lightning.pure_steps import Trained, loss_of, trained, why_no_function
from deopt_lightning.random_state import set_torch_rng_state, torch_rng_state
from deopt_lightning.step_counts import begin_steps
from deopt_lightning.update_rules import NUMBERS

Options = dict[str, Any]


class StackedSteps:
    """Direct steps of several members at once, equal to each one's own but for rounding.

    Args:
        trainer: A Trainer that `why_not_stacked` has nothing against.
        batches: What all members train on.
    """

    def __init__(self, trainer: pl.Trainer, batches: Sequence[Any]) -> None:
        self._trainer = trainer
        self._batches = batches
        (self._optimizer,) = trainer.optimizers
        self._module = trainer.lightning_module
        self._parts = trained(self._module, self._optimizer)
        # Where the optimizer keeps its step counts; members may not have stepped yet.
        self._steps = [self._optimizer.state[part.parameter].get("step") for part in self._parts]

    def train(self, count: int, prepare: Callable[[int], None]) -> None:
        """Trains members 0 to count - 1.

        Args:
            count: How many.
            prepare: Puts the module, the optimizer and the random generators where the member of
                that index starts; all have the same generators' state.
        """
        steps = begin_steps(self._trainer)
        with torch.no_grad():
            members = []
            others: list[dict[str, Tensor]] = []
            for index in range(count):
                members.append(self._member(prepare, index))
                others.append(self._others(*others[:1]))
            weights = [torch.stack(column) for column in zip(*(m[0] for m in members), strict=True)]
            states = [
                [torch.stack(tensors) for tensors in zip(*of_members, strict=True)]
                for of_members in zip(*(m[1] for m in members), strict=True)
            ]
            numbers = self._numbers([m[2] for m in members], [m[3] for m in members])
            own = [n for n, first in others[0].items() if any(o[n] is not first for o in others)]
            fixed = [torch.stack([other[name] for other in others]) for name in own]
            loss = loss_of(self._module, [part.name for part in self._parts] + own)
            gradient = vmap(
                grad_and_value(lambda weights, fixed, batch: loss([*weights, *fixed], batch)),
                in_dims=(0, 0, None),
                randomness="same",
            )
            for row, kept in zip(numbers, self._batches, strict=True):
                batch = self._trainer.strategy.batch_to_device(kept)
                gradients, _ = gradient(weights, fixed, batch)
                self._update(weights, gradients, states, row)
                steps.completed += 1
        self._weights, self._states = weights, states
        self._taken = [m[3] for m in members]
        self._random = torch_rng_state(weights[0].device)

    def load(self, index: int) -> None:
        """Writes what a member was trained to into module, optimizer and random generators."""
        with torch.no_grad():
            rows = zip(self._parts, self._weights, self._states, self._steps, strict=True)
            for place, (part, weights, tensors, step) in enumerate(rows):
                part.parameter.copy_(weights[index])
                entries = self._optimizer.state[part.parameter]
                for name, tensor in zip(part.rule.state_names, tensors, strict=True):
                    _write(entries, name, tensor[index])
                if step is not None:
                    taken = self._taken[index][place] + len(self._batches)
                    _write(entries, "step", torch.full_like(step, taken))
        set_torch_rng_state(self._random, self._weights[0].device)

    def _member(
        self, prepare: Callable[[int], None], index: int
    ) -> tuple[list[Tensor], list[list[Tensor]], list[Options], list[float]]:
        """A member's weights, optimizer state, options of each parameter and steps so far."""
        prepare(index)
        weights, states, options, taken = [], [], [], []
        for part in self._parts:
            entries = self._optimizer.state.get(part.parameter, {})
            weights.append(part.parameter.detach().clone())
            states.append(
                [
                    entries[name].clone() if name in entries else torch.zeros_like(weights[-1])
                    for name in part.rule.state_names
                ]
            )
            options.append({**part.group, "lr": effective_lr(part.group), "params": None})
            taken.append(float(entries.get("step", 0)))
        return weights, states, options, taken

    def _others(self, first: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Frozen weights and buffers; those of the first member, where they are equal.

        Args:
            first: The first member's.
        """
        names = {part.name for part in self._parts}
        live = chain(self._module.named_parameters(), self._module.named_buffers())
        return {
            name: first[name] if first and torch.equal(first[name], tensor) else tensor.clone()
            for name, tensor in live
            if name not in names
        }

    def _numbers(
        self, options: Sequence[Sequence[Options]], taken: Sequence[Sequence[float]]
    ) -> Tensor:
        """All numbers of all steps at once: (steps, members, parameters, NUMBERS)."""
        first = self._parts[0].parameter
        rows = [
            [
                [
                    part.rule.numbers(group, group["lr"], before + step)
                    for part, group, before in zip(self._parts, groups, counts, strict=True)
                ]
                for groups, counts in zip(options, taken, strict=True)
            ]
            for step in range(1, len(self._batches) + 1)
        ]
        return torch.tensor(rows, dtype=first.dtype, device=first.device)

    def _update(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        numbers: Tensor,
    ) -> None:
        for i, part in enumerate(self._parts):
            shape = (-1, *[1] * part.parameter.ndim)
            row = [numbers[:, i, k].reshape(shape) for k in range(NUMBERS)]
            part.rule.update(weights[i], gradients[i], states[i], row, part.eps)


def trained_together(probe: Probe, count: int, prepare: Callable[[int], None]) -> Probe:
    """A probe whose n-th training only loads what member n - 1 has been trained to, now.

    Args:
        probe: Holds the batches, and validates.
        count: How many members.
        prepare: See `StackedSteps.train`.
    """
    steps = StackedSteps(probe.loops.trainer, probe.loops.batches)
    steps.train(count, prepare)
    members: Iterator[int] = iter(range(count))
    return replace(probe, train=lambda: steps.load(next(members)))


def why_not_stacked(trainer: pl.Trainer) -> str | None:
    """Why members of a Trainer that can take direct steps cannot be stacked; None if they can."""
    module = trainer.lightning_module
    for hook in ("on_train_batch_start", "on_train_batch_end"):
        if is_overridden(hook, module):
            return f"{hook} is overridden"
    if (reason := why_no_function(trainer)) is not None:
        return reason
    parts: list[Trained] = trained(module, trainer.optimizers[0])
    if any(part.rule.momentum and part.group["dampening"] for part in parts):
        return "momentum is dampened, which its first step is not"
    return None


def _write(entries: dict[str, Any], name: str, value: Tensor) -> None:
    """Writes into a tensor of the optimizer's state, or makes it."""
    if name in entries:
        entries[name].copy_(value)
    else:
        entries[name] = value.clone()
