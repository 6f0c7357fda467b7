"""Generations of members that keep weights of their own, one of whom is the Trainer's model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np

from deopt_lightning import trainer_seam
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
from deopt_lightning.rank_exchange import broadcast_plain, is_rank_zero, spread_snapshot
from deopt_lightning.rank_sharing import share_out
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
    """

    random: RandomState
    progress: dict[str, Any]
    options: list[dict[str, Any]]


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
        self._members: list[Snapshot | None] = []
        self._homes: list[int | None] = []  # the only rank that has a member; None: all have it
        self._epoch_start: EpochStart | None = None
        self._resumed: dict[str, Any] | None = None

    def train_start(self, trainer: pl.Trainer) -> None:
        """Rebuilds the members of a resumed run, once the Trainer has restored its model."""
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return
        present = take_snapshot(trainer)
        self._keep([from_plain(plain, present) for plain in resumed["members"]])
        if resumed["epoch_start"] is not None:
            random, progress, options = resumed["epoch_start"]
            random_state = RandomState.take(trainer_seam.loader_generators(trainer), random)
            self._epoch_start = EpochStart(random_state, progress, options)

    def epoch_starts(self, trainer: pl.Trainer, rng: dict[str, Any]) -> None:
        """Notes how the epoch begins; the first time, with what weights.

        Args:
            trainer: A Trainer in `on_train_epoch_start`.
            rng: State of the global random generators from which the epoch's order is drawn.
        """
        if not self._members:
            self._keep([take_snapshot(trainer)] * self.search.population_size)
        self._epoch_start = EpochStart(
            RandomState.take(trainer_seam.loader_generators(trainer), rng),
            trainer_seam.step_counts(trainer),
            [
                {key: copy(group[key]) for key in SCHEDULED_OPTIONS if key in group}
                for group in _groups(trainer)
            ],
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
                for member, result in self._train(trainer, probe, others, end, due):
                    results[member] = result
                    advance()
        ordered = [results[member] for member in range(len(self._members))]
        self._members = [result.snapshot for result in ordered]
        self._homes = [result.home for result in ordered]
        scores = [result.score for result in ordered]
        steps = optimizer_steps(trainer, len(batches)) * sum(score.trained for score in scores)
        cost = {"probe_steps": steps, "evaluations": sum(score.validated for score in scores)}
        if not due:
            return Outcome(None, None, {}, **cost)
        generation = self._compare(trainer, ordered, end)
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
            "members": [
                _gather(snapshot, home)
                for snapshot, home in zip(self._members, self._homes, strict=True)
            ],
            "epoch_start": start and [start.random.rng, start.progress, start.options],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; the members follow in `train_start`."""
        self.search.load_state_dict(state["search"])
        self._leader = state["leader"]
        self._resumed = state

    def release(self) -> None:
        """Frees the members; the leader goes on alone."""
        self._keep([])
        self._epoch_start = None

    def _keep(self, members: list[Snapshot]) -> None:
        """Has members that every process has."""
        self._members, self._homes = [*members], [None] * len(members)

    def _batches(self, trainer: pl.Trainer) -> list[object]:
        """As many batches as the epoch has had, drawn from the random state it began with."""
        assert self._epoch_start is not None
        self._epoch_start.random.restore()
        count = trainer_seam.batches_trained(trainer)
        return trainer_seam.fetch_batches(trainer, count, trainer.current_epoch)

    def _train(
        self, trainer: pl.Trainer, probe: Probe, members: list[int], end: Snapshot, due: bool
    ) -> Iterator[tuple[int, _Result]]:
        """Trains members on the probe's batches and, on request, validates them; in any order."""
        batches, take = probe.loops.batches, partial(take_snapshot, trainer)
        write = partial(self._write, trainer)
        ranks = self._maker.sharing.begin(probe, batches, end, take)
        if ranks is not None:
            owners = share_out(members, self._homes, trainer.world_size)
            for member, score, snapshot in ranks.scores(owners, self._restore, write, due):
                yield member, _Result(snapshot, score, owners[member])
            return

        def train(index: int) -> _Result:
            self._restore(members[index])
            end.random.restore()
            write(members[index])
            score = probe.score(validate=due)
            return _Result(take(), score)

        workers = self._maker.workers
        known = end.originals() if workers > 1 else ()
        for index, result in run_shared_out(train, len(members), workers, known):
            yield members[index], result

    def _restore(self, member: int) -> None:
        """Puts a member where it began the epoch."""
        snapshot = self._members[member]
        assert snapshot is not None
        snapshot.restore()

    def _write(self, trainer: pl.Trainer, member: int) -> None:
        """Writes a member's values, and what schedulers had written as the epoch began."""
        assert self._epoch_start is not None
        for group, options in zip(_groups(trainer), self._epoch_start.options, strict=True):
            for key, value in options.items():
                set_option(group, key, value)
        self._control.write(self.search.space.decode(self.search.vectors[member]))

    def _compare(
        self, trainer: pl.Trainer, results: list[_Result], end: Snapshot
    ) -> dict[str, Any]:
        """Replaces the worst, lets the best lead, and returns the record of it."""
        search, perf = self.search, np.array([result.score.perf for result in results])
        members = search.space.decode(search.vectors).tolist()
        parents = search.tell(perf, keep=None if self._adopts else self._leader)
        if np.isfinite(perf).any():
            best = int(np.argmax(np.where(np.isfinite(perf), perf, -np.inf)))
            results[best], state = _everywhere(results[best], end)
            if self._adopts and best != self._leader:
                adopt_weights(trainer, state, results[best].score.metrics)
                self._leader = best
        else:
            warn_all_diverged(trainer)
        self._members = [results[parent].snapshot for parent in parents]
        self._homes = [results[parent].home for parent in parents]
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
    """A member at the end of an epoch.

    Attributes:
        snapshot: Its state; None if another process has it.
        score: Its score.
        home: The only rank that has its state; None if all have.
    """

    snapshot: Snapshot | None
    score: Score
    home: int | None = None


def _everywhere(result: _Result, present: Snapshot) -> tuple[_Result, Snapshot]:
    """A member that every process has, and its state."""
    snapshot = result.snapshot
    if result.home is not None:
        snapshot = spread_snapshot(snapshot, result.home, present)
    assert snapshot is not None
    return _Result(snapshot, result.score), snapshot


def _gather(snapshot: Snapshot | None, home: int | None) -> dict[str, Any] | None:
    """A member's plain form where checkpoints are written; every process must call it."""
    plain = to_plain(snapshot) if snapshot is not None else None
    if home is not None:
        plain = broadcast_plain(snapshot, home)
    return plain if is_rank_zero() else None


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
