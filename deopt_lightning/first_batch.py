"""What the run's own hooks have made of the module when an epoch's first batch comes.

A member trains the epoch once more, without the hooks at its start: a loss's weight that grows from
epoch to epoch, a part that is kept in ``eval`` mode, a hidden state that is cleared are as the
Trainer's module had them then, and only what training learns is the member's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deopt_lightning.member_state import with_learned
from deopt_lightning.snapshot import Snapshot


@dataclass(frozen=True)
class FirstBatch:
    """The module as the first batch found it.

    Attributes:
        rest: All but what training learns.
        written: Copies of tensors that hooks have written since the last epoch and that no
            optimizer trains, such as a buffer that is annealed, by the id of the tensor.
    """

    rest: Snapshot
    written: dict[int, Tensor]

    @classmethod
    def take(cls, present: Snapshot, before: Snapshot | None) -> FirstBatch:
        """Notes how the epoch's first batch finds the module.

        Args:
            present: The state now, of whose tensors no copies are needed.
            before: What the last epoch had left; None where that is not known here.
        """
        trained = {
            id(p) for o, _, _ in present.optimizers for g in o.param_groups for p in g["params"]
        }
        left = {id(tensor): copy for tensor, copy in before.tensors} if before else {}
        written = {
            id(tensor): tensor.detach().clone()
            for tensor, _ in present.tensors
            if id(tensor) not in trained
            and id(tensor) in left
            and not torch.equal(tensor, left[id(tensor)].to(tensor.device))
        }
        bare: Any = [(optimizer, {}, groups) for optimizer, _, groups in present.optimizers]
        return cls(
            replace(present, tensors=[], optimizers=bare, stateful=[], gradients=[]), written
        )

    def with_learned(self, member: Snapshot) -> Snapshot:
        """A state with what the member has learned."""
        tensors = [(tensor, self.written.get(id(tensor), copy)) for tensor, copy in member.tensors]
        both = with_learned(self.rest, member)
        return replace(both, tensors=tensors, gradients=member.gradients)
