"""What it takes to write a training step as a function of tensors, compiled or for many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import Parameter
from torch.optim import Optimizer

from deopt_lightning.compatibility import overrides
from deopt_lightning.random_state import torch_rng_state
from deopt_lightning.snapshot import Snapshot
from deopt_lightning.trainer_seam import step_hooks
from deopt_lightning.update_rules import Rule, rule_of

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Trained:
    """A parameter that the optimizer trains.

    Attributes:
        name: Its name in the module.
        parameter: The parameter itself.
        group: Its parameter group.
        rule: How it is updated.
    """

    name: str
    parameter: Parameter
    group: dict[str, Any]
    rule: Rule

    @property
    def eps(self) -> float:
        """Adam's epsilon."""
        return float(self.group.get("eps", 0.0))

    def state(self, optimizer: Optimizer) -> list[Tensor]:
        """The optimizer's own tensors for it."""
        entries = optimizer.state[self.parameter]
        return [entries[name] for name in self.rule.state_names]


def trained(module: nn.Module, optimizer: Optimizer) -> list[Trained]:
    """All parameters that an optimizer of known rules trains."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = []
    for group in optimizer.param_groups:
        rule = rule_of(optimizer, group)
        assert rule is not None
        found += [Trained(names[id(p)], p, group, rule) for p in group["params"] if p.requires_grad]
    return found


def loss_of(module: nn.Module, names: Sequence[str]) -> Callable[[list[Tensor], Any], Tensor]:
    """The module's training loss as a function of the named parameters and a batch."""
    bare = _Loss(module)
    inner = [f"module.{name}" for name in names]

    def loss(weights: list[Tensor], batch: Any) -> Tensor:
        value: Tensor = functional_call(bare, dict(zip(inner, weights, strict=True)), (batch,))
        return value

    return loss


class _Loss(nn.Module):
    """A module whose call is another's training loss, as `functional_call` wants it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        loss: Tensor = self.module.training_loss(batch)  # type: ignore[operator]
        return loss


def why_no_function(trainer: pl.Trainer) -> str | None:
    """Why direct steps of a Trainer cannot be written as a function of tensors; None if they can.

    Args:
        trainer: A Trainer that can take direct steps, in `on_train_epoch_end`.
    """
    module, (optimizer,) = trainer.lightning_module, trainer.optimizers
    if type(trainer.precision_plugin).__name__ != "Precision":
        return f"precision={trainer.precision!r} chooses types step by step"
    if trainer.gradient_clip_val or overrides(module, "configure_gradient_clipping"):
        return "gradients are clipped"
    if trainer.accumulate_grad_batches > 1:
        return "gradients are accumulated"
    if any(not hook.__module__.startswith("deopt_lightning.") for hook in step_hooks(optimizer)):
        return "the optimizer has step hooks"
    if not all(rule_of(optimizer, group) for group in optimizer.param_groups):
        return f"{type(optimizer).__name__} is not among SGD, Adam and AdamW in their usual forms"
    parameters = trained(module, optimizer)
    if len({(part.parameter.dtype, part.parameter.device) for part in parameters}) != 1:
        return "the parameters are of several types or on several devices"
    for part in parameters:
        if not set(part.rule.state_names) <= set(optimizer.state[part.parameter]):
            return f"{part.name} has had no gradient yet"
    return None


def shape_of(batch: Any) -> Any:
    """What two batches must have in common for one compiled graph to serve both."""
    if isinstance(batch, torch.Tensor):
        layout = batch.shape, batch.stride(), batch.dtype, batch.device
        return type(batch), layout, batch.requires_grad
    if isinstance(batch, tuple | list):
        return type(batch), [shape_of(part) for part in batch]
    if isinstance(batch, dict):
        return type(batch), [(key, shape_of(part)) for key, part in batch.items()]
    return batch if isinstance(batch, _PLAIN) else type(batch)


def tensors_of(batch: Any) -> list[Tensor] | None:
    """A batch's tensors in an order that `shape_of` fixes; None if it may have others, unseen."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, dict):
        batch = list(batch.values())
    if not isinstance(batch, tuple | list):
        return [] if isinstance(batch, _PLAIN) else None
    found: list[Tensor] = []
    for part in map(tensors_of, batch):
        if part is None:
            return None
        found += part
    return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Lets torch use so many threads."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def moved_alike(before: Sequence[Tensor], one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two ways of training moved each tensor by the same, up to rounding.

    The norm of the difference may be a thousandth of the movement's, and a millionth of the
    tensor's own.
    """
    for start, left, right in zip(before, one, other, strict=True):
        if not left.is_floating_point():
            if not torch.equal(left, right):
                return False
            continue
        apart, moved = (left - right).norm(), (left - start).norm()
        if not apart <= 1e-3 * moved + 1e-6 * start.norm():
            return False
    return True


def state_of(trainer: pl.Trainer) -> list[Tensor]:
    """Copies of all that steps change: weights, buffers, optimizer state, torch's random state."""
    module, (optimizer,) = trainer.lightning_module, trainer.optimizers
    entries = [entry for state in optimizer.state.values() for entry in state.values()]
    random = torch_rng_state(trainer.strategy.root_device)
    tensors = [*module.parameters(), *module.buffers(), *entries, *random]
    return [tensor.detach().clone() for tensor in tensors if isinstance(tensor, Tensor)]


def seconds_of(train: Callable[[], None], trainer: pl.Trainer, start: Snapshot) -> float:
    """How long training takes from a state, which is restored: the best of three times."""
    passes = []
    for _ in range(3):
        start.restore()
        started = time.perf_counter()
        train()
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        passes.append(time.perf_counter() - started)
    start.restore()
    return min(passes)


def first_line(error: Exception) -> str:
    """What an error says first; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
