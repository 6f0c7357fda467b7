"""What the run's own hooks have made of the module when an epoch's first batch comes.

A member trains the epoch once more, without the hooks at its start: a loss's weight that grows from
epoch to epoch, a part that is kept in ``eval`` mode, a hidden state that is cleared are as the
Trainer's module had them then, and only what training learns is the member's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from operator import or_
from typing import Any

from torch import Tensor, nn

from deopt_lightning.member_state import with_learned
from deopt_lightning.snapshot import Buffers, Snapshot, same_buffers, same_values


@dataclass(frozen=True)
class FirstBatch:
    """The module as the first batch found it.

    Attributes:
        rest: All but what training learns.
        written: Copies of tensors that hooks have written since the last epoch and that no
            optimizer trains, such as a buffer that is annealed, by the id of the tensor.
        buffers: The buffers of modules in which hooks have put others since the last epoch.
        added: These others, each with a copy.
        options: For each optimizer and group, the options that hooks have written since then.
        missed: Names of parameters that hooks have written and that an optimizer trains, so that
            each member has its own.
    """

    rest: Snapshot
    written: dict[int, Tensor]
    buffers: dict[nn.Module, Buffers]
    added: list[tuple[Tensor, Tensor]]
    options: list[list[dict[str, Any]]]
    missed: tuple[str, ...]

    @classmethod
    def take(cls, present: Snapshot, before: Snapshot | None) -> FirstBatch:
        """Notes how the epoch's first batch finds the module.

        Args:
            present: The state now, of whose tensors no copies are needed.
            before: What the last epoch had left; None where that is not known here.
        """
        groups = [group for o, _, _ in present.optimizers for group in o.param_groups]
        trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
        left = {id(tensor): copy for tensor, copy in before.tensors} if before else {}
        changed = {
            id(tensor): tensor
            for tensor, _ in present.tensors
            if (copy := left.get(id(tensor))) is not None and not same_values(tensor, copy)
        }
        earlier = dict(before.buffers) if before else {}
        replaced = {
            owner: buffers
            for owner, buffers in present.buffers
            if not same_buffers(buffers, earlier.get(owner, buffers))
        }
        named = present.modules[0].named_parameters()
        bare: Any = [(optimizer, {}, groups) for optimizer, _, groups in present.optimizers]
        groups_left = [own for _, _, own in before.optimizers] if before else []
        options = [
            list(map(_written, groups, own or [{}] * len(groups)))
            for (_, _, groups), own in zip_longest(present.optimizers, groups_left)
        ]
        return cls(
            replace(present, tensors=[], optimizers=bare, stateful=[], gradients=[]),
            {key: t.detach().clone() for key, t in changed.items() if key not in trained},
            replaced,
            [(t, t.detach().clone()) for t, _ in present.tensors if left and id(t) not in left],
            options,
            tuple(name for name, p in named if id(p) in changed and id(p) in trained),
        )

    @property
    def warning(self) -> str | None:
        """What to say of parameters that are not as hooks have made them; None without any."""
        if not self.missed:
            return None
        more = f" and {len(self.missed) - 3} more" if len(self.missed) > 3 else ""
        return (
            f"DEOptCallback: {', '.join(self.missed[:3])}{more} changed between two epochs without "
            "a step of the optimizer, as by a hook at an epoch's start or end. Members' own "
            "weights did not, since such hooks are called for the Trainer's model alone. Let the "
            "module's on_train_batch_start do it, which is called for members, too."
        )

    def with_learned(self, member: Snapshot) -> Snapshot:
        """A state with what the member has learned."""
        tensors = [(tensor, self.written.get(id(tensor), copy)) for tensor, copy in member.tensors]
        buffers = [(owner, self.buffers.get(owner, own)) for owner, own in member.buffers]
        found = with_learned(self.rest, member)
        optimizers = [
            (optimizer, state, list(map(or_, groups, written)))
            for (optimizer, state, groups), written in zip(
                found.optimizers, self.options, strict=True
            )
        ]
        return replace(
            found,
            optimizers=optimizers,
            tensors=[*tensors, *self.added],
            buffers=buffers,
            gradients=member.gradients,
        )


def _written(present: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A group's options that are others than before."""
    return {
        key: value
        for key, value in present.items()
        if key not in before or not _same_option(value, before[key])
    }


def _same_option(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return same_values(left, right)
    return bool(left is right or left == right)
