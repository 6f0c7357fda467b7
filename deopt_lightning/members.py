"""Generations of members that keep weights of their own, one of whom is the Trainer's model."""

from __future__ import annotations

import time
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np

from deopt_lightning import averaging, trainer_seam
from deopt_lightning.evaluators.probe import Metrics, Probe, Score
from deopt_lightning.generation import (
    Outcome,
    ProbeMaker,
    adopt_weights,
    optimizer_steps,
    take_snapshot,
    warn_all_diverged,
)
from deopt_lightning.history import finite, spread
from deopt_lightning.layer_control import LayerControl
from deopt_lightning.member_state import from_plain, to_plain
from deopt_lightning.param_groups import set_option
from deopt_lightning.random_state import RandomState
from deopt_lightning.snapshot import SCHEDULED_OPTIONS, Snapshot
from deopt_lightning.steady_state import SteadyStateDE
from deopt_lightning.workers import run_shared_out


@dataclass(frozen=True)
class EpochStart:
    """What the other members need in order to train the epoch that the Trainer has trained.

    Attributes:
        random: The random generators, so that they draw the same batches.
        progress: Counts of optimizer steps.
        options: What LR schedulers had written into each parameter group.
        schedulers: States of the LR schedulers.
    """

    random: RandomState
    progress: list[dict[str, Any]]
    options: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]


class MemberSearch:
    """Trains a population side by side: each member its own weights with its own vector.

    The Trainer's own epoch is the leader's. At its end the others train the same epoch quietly,
    from their own weights, and all are compared; the search replaces the worst, and the best leads
    the next epoch. All members branch off from the Trainer's weights at the start of the epoch at
    whose end the first generation is due.

    Args:
        search: The search; its first vector is the user's own and leads the first epoch.
        control: Writes values into the optimizer.
        maker: Makes the quiet training of members.
        adopt: False leaves the first member in the lead and the Trainer's run as it is.
    """

    def __init__(
        self, search: SteadyStateDE, control: LayerControl, maker: ProbeMaker, *, adopt: bool
    ) -> None:
        self.search = search
        self._control = control
        self._maker = maker
        self._adopts = adopt
        self._leader = 0
        self._members: list[Snapshot] = []
        self._epoch_start: EpochStart | None = None
        self._resumed: dict[str, Any] | None = None

    def train_start(self, trainer: pl.Trainer) -> None:
        """Rebuilds the members of a resumed run, once the Trainer has restored its model."""
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return
        present = take_snapshot(trainer)
        self._members = [from_plain(plain, present) for plain in resumed["members"]]
        if resumed["epoch_start"] is not None:
            random, *others = resumed["epoch_start"]
            random_state = RandomState.take(trainer_seam.loader_generators(trainer), random)
            self._epoch_start = EpochStart(random_state, *others)

    def epoch_starts(self, trainer: pl.Trainer, rng: dict[str, Any]) -> None:
        """Notes how the epoch begins; the first time, with what weights.

        Args:
            trainer: A Trainer in `on_train_epoch_start`.
            rng: State of the global random generators from which the epoch's order is drawn.
        """
        if not self._members:
            self._members = [take_snapshot(trainer)] * self.search.population_size
        self._epoch_start = EpochStart(
            RandomState.take(trainer_seam.loader_generators(trainer), rng),
            trainer_seam.step_counts(trainer),
            [
                {key: copy(group[key]) for key in SCHEDULED_OPTIONS if key in group}
                for group in _groups(trainer)
            ],
            [deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        )

    def epoch_ends(self, trainer: pl.Trainer, due: bool, validated: bool) -> Outcome | None:
        """Lets the other members train the epoch; if a generation is due, compares them all.

        After an error, Trainer, model, members and search are as they were.

        Args:
            trainer: A Trainer in `on_train_epoch_end`.
            due: Whether a generation is due.
            validated: Whether the Trainer has validated the weights that it now has.
        """
        if self._epoch_start is None:
            return None
        started = time.perf_counter()
        logged = dict(trainer.callback_metrics) if validated else None
        averaging.end_epoch(trainer)
        end = take_snapshot(trainer)
        others = [m for m in range(len(self._members)) if m != self._leader]
        results: dict[int, _Result] = {}
        with end.restored_on_exit():
            batches = self._batches(trainer)
            end.random.restore()
            with self._maker.probing(trainer, batches, end, len(others)) as (probe, advance):
                probe.loops.progress = self._epoch_start.progress
                end.restore()
                results[self._leader] = _Result(end, _score_of_leader(probe, logged, due))

                def train(index: int) -> _Result:
                    self._go_back(trainer, others[index], end)
                    score = probe.score(validate=due)
                    probe.loops.end_epoch()
                    return _Result(take_snapshot(trainer), score)

                workers = self._maker.workers
                known = end.originals() if workers > 1 else ()
                for index, result in run_shared_out(train, len(others), workers, known):
                    results[others[index]] = result
                    advance()
        ordered = [results[member] for member in range(len(self._members))]
        self._members = [result.snapshot for result in ordered]
        scores = [result.score for result in ordered]
        steps = optimizer_steps(trainer, len(batches)) * sum(score.trained for score in scores)
        cost = {"probe_steps": steps, "evaluations": sum(score.validated for score in scores)}
        if not due:
            return Outcome(None, None, {}, **cost)
        generation = self._compare(trainer, ordered)
        best = self._maker.monitor.signed(scores[self._leader].perf)
        return Outcome(
            values=self.search.space.decode(self.search.vectors[self._leader]),
            record={**generation, **cost, "seconds": time.perf_counter() - started},
            logged={
                **({"best": best} if np.isfinite(best) else {}),
                "leader": float(self._leader),
                "spread": spread(self.search.vectors, self.search.space),
            },
            **cost,
        )

    def state_dict(self) -> dict[str, Any]:
        """Search and members, in types that a safe `torch.load` accepts."""
        if self._resumed is not None:
            return self._resumed
        start = self._epoch_start
        return {
            "search": self.search.state_dict(),
            "leader": self._leader,
            "members": [to_plain(snapshot) for snapshot in self._members],
            "epoch_start": start
            and [start.random.rng, start.progress, start.options, start.schedulers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; the members follow in `train_start`."""
        self.search.load_state_dict(state["search"])
        self._leader = state["leader"]
        self._resumed = state

    def release(self) -> None:
        """Frees the members; the leader goes on alone."""
        self._members, self._epoch_start = [], None

    def _batches(self, trainer: pl.Trainer) -> list[object]:
        """As many batches as the epoch has had, drawn from the random state it began with."""
        assert self._epoch_start is not None
        self._epoch_start.random.restore()
        count = trainer_seam.batches_trained(trainer)
        return trainer_seam.fetch_batches(trainer, count, trainer.current_epoch)

    def _go_back(self, trainer: pl.Trainer, member: int, end: Snapshot) -> None:
        """Puts a member where it began the epoch, with its values and everyone's random state."""
        assert self._epoch_start is not None
        self._members[member].restore()
        end.random.restore()
        for group, options in zip(_groups(trainer), self._epoch_start.options, strict=True):
            for key, value in options.items():
                set_option(group, key, value)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for scheduler, state in zip(schedulers, self._epoch_start.schedulers, strict=True):
            scheduler.load_state_dict(deepcopy(state))
        self._control.write(self.search.space.decode(self.search.vectors[member]))

    def _compare(self, trainer: pl.Trainer, results: list[_Result]) -> dict[str, Any]:
        """Replaces the worst, lets the best lead, and returns the record of it."""
        search, perf = self.search, np.array([result.score.perf for result in results])
        members = search.space.decode(search.vectors).tolist()
        parents = search.tell(perf, keep=None if self._adopts else self._leader)
        self._members = [results[parent].snapshot for parent in parents]
        if not np.isfinite(perf).any():
            warn_all_diverged(trainer)
        elif self._adopts:
            best = int(np.argmax(np.where(np.isfinite(perf), perf, -np.inf)))
            if best != self._leader:
                adopt_weights(trainer, results[best].snapshot, results[best].score.metrics)
                self._leader = best
        return {
            "epoch": trainer.current_epoch,
            "names": list(search.space.names),
            "members": members,
            "perf": finite(perf),
            "parents": parents.tolist(),
            "leader": self._leader,
        }


@dataclass(frozen=True)
class _Result:
    """A member at the end of an epoch."""

    snapshot: Snapshot
    score: Score


def _score_of_leader(probe: Probe, logged: Metrics | None, due: bool) -> Score:
    """Read from what the Trainer has validated, else validated now."""
    if not due:
        return Score(float("nan"), {}, trained=False, validated=False)
    if logged is None:
        return probe.validate()
    perf = probe.monitor.perf(logged, probe.loops)
    return Score(perf, logged, trained=False, validated=False)


def _groups(trainer: pl.Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
