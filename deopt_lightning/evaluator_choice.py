"""Whether candidates are trained one after the other or stacked: by what is faster here."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from deopt_lightning.direct_steps import DirectSteps, why_not
from deopt_lightning.pure_steps import first_line, moved_alike, seconds_of, state_of
from deopt_lightning.snapshot import Snapshot
from deopt_lightning.stacked_steps import StackedSteps, why_not_stacked

EvaluatorName = Literal["auto", "sequential", "vectorised"]
_CHECKED_STEPS = 2
_TIMED_STEPS = 10


def choose_vectorised(
    direct: DirectSteps,
    start: Snapshot,
    candidates: int,
    *,
    asked: EvaluatorName,
    possible: bool,
    decided: bool | None = None,
) -> bool:
    """Whether to train candidates stacked, tested against direct steps from the same state.

    Costs nothing on a CPU, unless it is asked for, and else some tens of steps.

    Args:
        direct: Direct steps on a generation's batches, in `on_train_epoch_end`.
        start: The state to start from, which is restored.
        candidates: How many candidates are trained at a time.
        asked: What the user asked for; "auto" takes stacks on an accelerator if they are faster.
        possible: Whether direct steps are possible.
        decided: What the run that is resumed had decided, which then holds; None decides now.
    """
    on_cpu = direct.trainer.strategy.root_device.type == "cpu"
    if asked == "sequential" or decided is False or (asked == "auto" and on_cpu):
        return False
    try:
        reason = _why_not(direct, start, possible)
    except Exception as error:  # vmap refuses, or memory is too small
        reason = f"vmap refuses training_loss ({first_line(error)})"
    finally:
        start.restore()
    if reason is not None:
        say = rank_zero_warn if asked == "vectorised" else rank_zero_info
        say(f"DEOptCallback trains candidates one after the other, not stacked: {reason}.")
        return False
    return asked == "vectorised" or decided or _is_faster(direct, start, candidates)


def _why_not(direct: DirectSteps, start: Snapshot, possible: bool) -> str | None:
    """Why candidates cannot be stacked; None if they can, and come to the same."""
    trainer, batches = direct.trainer, direct.batches[:_CHECKED_STEPS]
    if not possible:
        return why_not(trainer) or "direct steps are off or differ from training_step"
    if direct.schedules:
        return "an LR schedule goes on at each step"
    if (reason := why_not_stacked(trainer)) is not None:
        return reason
    before = state_of(trainer)
    steps = StackedSteps(trainer, batches)
    steps.train(2, lambda index: start.restore())
    start.restore()
    steps.load(1)
    stacked = state_of(trainer)
    start.restore()
    DirectSteps(trainer, batches)()
    alike = moved_alike(before, state_of(trainer), stacked)
    return None if alike else "the results differ from those of one after the other"


def _is_faster(direct: DirectSteps, start: Snapshot, candidates: int) -> bool:
    trainer, few = direct.trainer, direct.batches[:_TIMED_STEPS]
    steps, stack = DirectSteps(trainer, few), StackedSteps(trainer, few)
    one = seconds_of(steps, trainer, start)
    try:
        together = seconds_of(
            lambda: stack.train(candidates, lambda index: start.restore()), trainer, start
        )
    except RuntimeError:  # the device's memory is too small for so many
        return False
    faster = together < candidates * one
    rank_zero_info(
        f"DEOptCallback trains {candidates} candidates {'stacked' if faster else 'in turn'}: "
        f"{len(few)} steps of all took {together * 1e3:.3g} ms stacked, "
        f"{candidates * one * 1e3:.3g} ms in turn."
    )
    return faster
