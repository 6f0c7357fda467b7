"""One optimizer step as one compiled graph: loss, gradients and update of a pure training loss.

Weights, optimizer state, lr, weight decay, step count and batch are inputs of the graph, so it is
compiled once and serves every candidate. It updates the module's own parameters and the optimizer's
own state, in place. Compiling takes some five seconds, or two where torch finds it in its cache on
disk.

Before it calls a graph, torch checks whether all that the graph is for is still so, down to the
module's attributes, which takes as long as a small graph. Where no hook of the user's is called
between steps, that is done at the first one only, or at the first one of several candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.optim import Optimizer

from deopt_lightning.compatibility import overrides
from deopt_lightning.lr_schedule import effective_lr
from deopt_lightning.pure_steps import (
    Trained,
    loss_of,
    shape_of,
    tensors_of,
    threads,
    trained,
)
from deopt_lightning.update_rules import NUMBERS

Graph = Callable[..., Sequence[Any]]
Step = Callable[[list[Tensor], list[list[Tensor]], Tensor, Any], Tensor]


class CompiledStep:
    """Loss, gradients and update for batches of one shape.

    On a CPU it runs with one thread: torch's compiled look-ups are slower with several.

    Args:
        module: A module with a pure ``training_loss(batch)``.
        optimizer: Its optimizer; `why_no_function` has nothing against the two.
        batch: A batch of the shape that the graph is made for, at the first call.
    """

    def __init__(self, module: pl.LightningModule, optimizer: Optimizer, batch: Any) -> None:
        self._optimizer = optimizer
        self._shape = shape_of(batch)
        self._parts = trained(module, optimizer)
        self._weights = [part.parameter.detach() for part in self._parts]
        self._step: Step = torch.compile(
            _in_one(module, self._parts),
            fullgraph=True,
            dynamic=False,
            backend=self._compile,
        )
        self._stance = "default"
        self._states: list[dict[str, Any]] = []
        self._inputs: list[Tensor] = []
        self._taken: list[float] | None = None
        self._called: tuple[Graph, Sequence[Any], Sequence[Any]] | None = None
        self._again: Callable[[list[Tensor]], Tensor] | None = None
        hooks = ("on_train_batch_start", "on_train_batch_end")
        hooked = any(overrides(module, hook) for hook in hooks)
        self._alone = not hooked and tensors_of(batch) is not None

    def begin(self, *, unchanged: bool = False) -> None:
        """Begins with a state that may be another now.

        Args:
            unchanged: Nothing else has changed since the last step, such as the module's
                attributes. Otherwise nothing is taken for granted.
        """
        self._taken = None
        if not unchanged:
            self._again = None

    def freeze(self) -> None:
        """Compiles nothing more: a call that would need it does nothing."""
        self._stance = "fail_on_recompile"

    def fits(self, batch: Any) -> bool:
        """Whether the graph is for batches of this shape."""
        return bool(shape_of(batch) == self._shape)

    def __call__(self, batch: Any) -> Tensor | None:
        """Takes a step.

        Returns:
            The loss; None, and nothing is done, for a batch of another shape, before the
            optimizer's first step, or where something else has changed that the graph is for.
        """
        loss = self._loss_of_step(batch) if self.fits(batch) else None
        if loss is None:
            self.begin()  # who steps in its place counts, too
        return loss

    def _loss_of_step(self, batch: Any) -> Tensor | None:
        if self._taken is None or not self._alone:
            try:
                self._read_state()
            except KeyError:  # the optimizer makes its state in its first step
                return None
        assert self._taken is not None
        first = self._weights[0]
        numbers = torch.tensor(self._numbers(self._taken), dtype=first.dtype, device=first.device)
        cores = 1 if first.device.type == "cpu" else torch.get_num_threads()
        inputs = [*self._inputs, numbers, *(tensors_of(batch) or ())]
        with torch.no_grad(), threads(cores):
            if self._again is not None and _all_distinct(inputs):
                loss = self._again(inputs)
            else:
                checked = self._checked(numbers, batch)
                if checked is None:
                    return None
                loss = checked
                if self._alone:
                    self._again = self._unchecked(inputs, loss)
        for state in self._states:
            if "step" in state:
                state["step"] += 1
        self._taken = [taken + 1 for taken in self._taken]
        return loss

    def _read_state(self) -> None:
        """Looks the optimizer's state up, and in it, unless that is known, the count of steps."""
        self._states = [self._optimizer.state[part.parameter] for part in self._parts]
        tensors = [part.state(self._optimizer) for part in self._parts]
        self._inputs = [*self._weights, *chain(*tensors)]
        if self._taken is None:
            self._taken = [float(state.get("step", 0)) for state in self._states]

    def _checked(self, numbers: Tensor, batch: Any) -> Tensor | None:
        """Takes a step if the graph still holds."""
        states = [part.state(self._optimizer) for part in self._parts]
        try:
            with torch.compiler.set_stance(self._stance):
                return self._step(self._weights, states, numbers, batch)
        except RuntimeError:
            if self._stance == "default":
                raise
            return None

    def _compile(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Graph:
        """What torch's own compiler makes of a graph; how it is called is noted."""
        from torch._inductor.compile_fx import compile_fx  # private: where it is gone, only this is

        options = {
            "fallback_random": True,  # dropout draws what it draws in eager steps
            "size_asserts": False,  # the shapes of inputs are looked at before
        }
        graph: Graph = compile_fx(module, inputs, config_patches=options)  # type: ignore[assignment]

        def call(*tensors: Any) -> Sequence[Any]:
            outputs = graph(*tensors)
            if self._alone:
                self._called = graph, tensors, outputs
            return outputs

        return call

    def _unchecked(
        self, inputs: list[Tensor], loss: Tensor
    ) -> Callable[[list[Tensor]], Tensor] | None:
        """The graph that was called last as a function of such inputs; None if it cannot be one."""
        called, self._called = self._called, None
        if called is None or called[2][0] is not loss or not _all_distinct(inputs):
            return None
        graph, given, _ = called
        if not all(isinstance(tensor, Tensor) for tensor in given):
            return None
        places = {id(tensor): place for place, tensor in enumerate(inputs)}
        # What is none of the inputs belongs to the module, such as a buffer.
        order = [places.get(id(tensor), tensor) for tensor in given]

        def again(inputs: list[Tensor]) -> Tensor:
            given = [inputs[of] if isinstance(of, int) else of for of in order]
            result: Tensor = graph(*given)[0]
            return result

        return again

    def _numbers(self, taken: Sequence[float]) -> list[list[float]]:
        """One row for each parameter; those of a group mostly share one."""
        rows: dict[tuple[int, float], list[float]] = {}
        for part, before in zip(self._parts, taken, strict=True):
            key = id(part.group), before
            if key not in rows:
                rows[key] = part.rule.numbers(part.group, effective_lr(part.group), before + 1)
        return [
            rows[id(part.group), before] for part, before in zip(self._parts, taken, strict=True)
        ]


def _all_distinct(tensors: Sequence[Tensor]) -> bool:
    return len(set(map(id, tensors))) == len(tensors)


def _in_one(module: nn.Module, parts: Sequence[Trained]) -> Step:
    """The step as a function that torch can trace."""
    loss = loss_of(module, [part.name for part in parts])
    rules = [(part.rule, part.eps) for part in parts]

    def step(
        weights: list[Tensor], states: list[list[Tensor]], numbers: Tensor, batch: Any
    ) -> Tensor:
        gradients, value = grad_and_value(loss)(weights, batch)
        for i, (rule, eps) in enumerate(rules):
            row = [numbers[i, k] for k in range(NUMBERS)]
            rule.update(weights[i], gradients[i], states[i], row, eps)
        result: Tensor = value
        return result

    step.__code__ = step.__code__.replace()  # torch limits the graphs that it makes of one code
    return step
