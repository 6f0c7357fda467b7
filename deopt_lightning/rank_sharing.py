"""Whether and how the ranks of a distributed run share a generation's candidates out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from deopt_lightning.direct_steps import DirectSteps, equals_loops, why_not
from deopt_lightning.evaluators.distributed import AloneSteps, RankProbes
from deopt_lightning.evaluators.probe import Probe
from deopt_lightning.random_state import torch_rng_state
from deopt_lightning.rank_exchange import gather_ranks
from deopt_lightning.replay import Batches, Redrawn
from deopt_lightning.snapshot import Snapshot
from deopt_lightning.trainer_seam import has_communication_hook


class RankSharing:
    """Decides once in a run whether its ranks can share candidates out, and says why not.

    Args:
        asked: Whether the user wants it.
        direct: Whether the user lets candidates train by direct steps.
    """

    def __init__(self, asked: bool, *, direct: bool) -> None:
        self._wanted = asked
        self._direct = direct
        self._checked = False

    def begin(
        self,
        probe: Probe,
        batches: Batches,
        start: Snapshot,
        take_snapshot: Callable[[], Snapshot],
    ) -> RankProbes | None:
        """Prepares a generation; None if its candidates are to be trained data-parallel.

        Args:
            probe: A probe of this rank.
            batches: This rank's batches.
            start: The present state, which is restored.
            take_snapshot: Takes a snapshot of the present state.
        """
        trainer = probe.loops.trainer
        if not self._wanted or trainer.world_size == 1:
            return None
        if not self._checked:
            self._checked = True
            if (reason := self._why_not(probe, batches, start)) is not None:
                self._wanted = False
                rank_zero_warn(
                    "DEOptCallback(share_over_ranks=True) trains its candidates data-parallel: "
                    f"{reason}. The results are the same."
                )
                return None
        if isinstance(batches, Redrawn):  # this epoch's alone
            return None
        start.restore()
        random = gather_ranks(torch_rng_state(trainer.strategy.root_device))
        by_rank = gather_ranks(move_data_to_device(batches, "cpu"))
        steps = AloneSteps(trainer, by_rank, random)
        return RankProbes(replace(probe, train=steps), steps, start, take_snapshot)

    def _why_not(self, probe: Probe, batches: Batches, start: Snapshot) -> str | None:
        trainer, loops = probe.loops.trainer, probe.loops
        module = trainer.lightning_module
        name = type(module).__name__
        if not self._direct:
            return "direct_steps=False"
        if (reason := why_not(trainer, "DDPStrategy")) is not None:
            return reason
        if isinstance(batches, Redrawn):
            return "a generation's batches are too many to be kept"
        if loops.schedules:
            return "an LR schedule goes on at each step"
        if has_communication_hook(trainer):
            return "a communication hook changes gradients"
        if any(isinstance(part, torch.nn.SyncBatchNorm) for part in module.modules()):
            return f"{name} has a batch norm that is synchronised among processes"
        steps = DirectSteps(trainer, batches)
        with trainer.strategy.model.no_sync():  # type: ignore[union-attr, operator]
            equal = equals_loops(loops, steps, start)
        if not loops.all_ranks(equal):
            return f"{name}.training_loss(batch) does not train as training_step does"
        if not loops.all_ranks(not _changes_buffers(steps, start)):
            return f"training changes buffers of {name}, such as running means"
        return None


def share_out(members: Sequence[int], homes: Sequence[int | None], ranks: int) -> dict[int, int]:
    """Which rank trains which member: its home, or where there is least to do.

    Args:
        members: Who is to train.
        homes: For every member the only rank that has its state; None if all have.
        ranks: Number of ranks.
    """
    owners = {member: home for member in members if (home := homes[member]) is not None}
    load = [list(owners.values()).count(rank) for rank in range(ranks)]
    for member in members:
        if member not in owners:
            owners[member] = load.index(min(load))
            load[owners[member]] += 1
    return owners


def _changes_buffers(steps: DirectSteps, start: Snapshot) -> bool:
    """Whether a training step writes to buffers; restores the state to start from."""
    module = steps.trainer.lightning_module
    before = [buffer.clone() for buffer in module.buffers()]
    DirectSteps(steps.trainer, steps.batches[:1])()
    changed = not all(map(torch.equal, before, module.buffers()))
    start.restore()
    return changed
