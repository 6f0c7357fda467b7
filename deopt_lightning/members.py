"""Generations of members that keep weights of their own, one of whom is the Trainer's model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.rank_zero import WarningCache, rank_zero_info

from deopt_lightning import averaging, trainer_seam
from deopt_lightning.best_state import BestState
from deopt_lightning.epoch_start import EpochStart, scheduled_options
from deopt_lightning.evaluators.probe import Metrics, Probe, Score
from deopt_lightning.first_batch import FirstBatch
from deopt_lightning.generation import (
    Outcome,
    ProbeMaker,
    adopt_weights,
    optimizer_steps,
    take_snapshot,
    warn_all_diverged,
)
from deopt_lightning.held_state import HeldState, distinct
from deopt_lightning.history import finite, spread
from deopt_lightning.layer_control import LayerControl
from deopt_lightning.member_state import from_plain, with_learned
from deopt_lightning.rank_sharing import share_out
from deopt_lightning.replay import Batches, keep_or_redraw
from deopt_lightning.snapshot import Snapshot
from deopt_lightning.stacked_steps import trained_together
from deopt_lightning.steady_state import SteadyStateDE
from deopt_lightning.workers import Workers


class MemberSearch:
    """Trains a population side by side: each member its own weights with its own vector.

    The Trainer's own epoch is the leader's. At its end the others train the same epoch quietly,
    from their own weights, and all are compared; the search replaces the worst, and may let the own
    setting's member go on as one more; the best leads the next epoch. All members branch off from
    the Trainer's weights at the start of the epoch at whose end the first generation is due. If all
    of them collapse, the search begins anew around the best vector so far, from the state that it
    had reached.

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
        self._members: list[HeldState] = []
        self._best = BestState()
        self._epoch_start: EpochStart | None = None
        self._first_batch: FirstBatch | None = None
        self._resumed: dict[str, Any] | None = None
        self._warnings = WarningCache()

    def train_start(self, trainer: pl.Trainer) -> None:
        """Rebuilds the members of a resumed run, once the Trainer has restored its model."""
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return
        present = self._take(trainer)
        members = [from_plain(plain, present) for plain in resumed["members"]]
        self._members = [HeldState(snapshot) for snapshot in members]
        if "best" in resumed:  # older versions have none
            self._best.load_state_dict(resumed["best"], present)
        if resumed["epoch_start"] is not None:
            self._epoch_start = EpochStart.from_plain(resumed["epoch_start"], trainer)

    def epoch_starts(self, trainer: pl.Trainer, rng: dict[str, Any]) -> None:
        """Notes how the epoch begins; the first time, with what weights.

        Args:
            trainer: A Trainer in `on_train_epoch_start`.
            rng: State of the global random generators from which the epoch's order is drawn.
        """
        if not self._members:
            self._members = [HeldState(self._take(trainer))] * self.search.population_size
        self._epoch_start = EpochStart.take(trainer, rng)
        self._first_batch = None
        trainer_seam.record_batches(trainer)

    def first_batch_comes(self, trainer: pl.Trainer) -> None:
        """Notes what hooks have made of the module; after they have run, before the first step."""
        if self._epoch_start is not None:
            before = self._members[self._leader].snapshot
            # On the meta device a copy of a weight takes neither time nor memory.
            self._first_batch = FirstBatch.take(take_snapshot(trainer, "meta"), before)
            self._epoch_start = replace(self._epoch_start, options=scheduled_options(trainer))
            if self._first_batch.warning:
                self._warnings.warn(self._first_batch.warning)

    def epoch_ends(self, trainer: pl.Trainer, due: bool, logged: Metrics | None) -> Outcome | None:
        """Lets the other members train the epoch; if a generation is due, compares them all.

        After an error, Trainer, model, members and search are as they were.

        Args:
            trainer: A Trainer in `on_train_epoch_end`.
            due: Whether a generation is due.
            logged: What validation has logged of the present weights; None without one.
        """
        if self._epoch_start is None or trainer_seam.batches_trained(trainer) == 0:
            return None
        started = time.perf_counter()
        averaging.end_epoch(trainer)
        # Those of the last generation: of all members but two, three beside them, and the best;
        # and the new ones.
        self._maker.place_copies(trainer, 2 * (self.search.population_size + 3))
        end = self._take(trainer)
        others = [m for m in range(len(self._members)) if m != self._leader]
        results: dict[int, _Result] = {}
        with end.restored_on_exit():
            batches = self._batches(trainer)
            end.random.restore()
            probing = self._maker.probing(trainer, batches, end, len(others), one_start=False)
            with probing as (probe, advance):
                probe.loops.epoch_loop.begins_at = self._epoch_start.progress
                end.restore()
                results[self._leader] = _Result(
                    HeldState(end), _score_of_leader(probe, logged, due)
                )
                for member, result in self._train(trainer, probe, others, end, due):
                    results[member] = result
                    advance()
        ordered = [results[member] for member in range(len(self._members))]
        self._members = [result.state for result in ordered]
        scores = [result.score for result in ordered]
        steps = optimizer_steps(trainer, len(batches)) * sum(score.trained for score in scores)
        cost = {"probe_steps": steps, "evaluations": sum(score.validated for score in scores)}
        if not due:
            return Outcome(None, None, {}, **cost)
        generation, perf = self._compare(trainer, ordered, end)
        cost["evaluations"] += generation["back_to"] is not None
        if self.search.generation == 1:
            self._say_size(trainer)
        best = self._maker.monitor.signed(perf)
        return Outcome(
            values=self.search.space.decode(self.search.vectors[self._leader]),
            record={**generation, **cost, "seconds": time.perf_counter() - started},
            logged={
                **({"best": best} if np.isfinite(best) else {}),
                "leader": float(generation["leader"]),
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
            "members": [state.to_plain() for state in self._members],
            "best": self._best.state_dict(),
            "epoch_start": start and start.to_plain(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; the members follow in `train_start`."""
        self.search.load_state_dict(state["search"])
        self._leader = state["leader"]
        self._resumed = state

    def release(self) -> None:
        """Frees the members; the leader goes on alone."""
        self._members, self._best = [], BestState()
        self._epoch_start = self._first_batch = None

    @property
    def nbytes(self) -> int:
        """Size of all states that are held in this process; equal ones are held once."""
        return sum(snapshot.nbytes for snapshot in distinct(self._held))

    @property
    def _held(self) -> list[HeldState]:
        """The members' states and the best."""
        return [*self._members, *([self._best.state] if self._best.state else [])]

    def _say_size(self, trainer: pl.Trainer) -> None:
        rank_zero_info(
            f"DEOptCallback: the {len(self._members)} members' states take "
            f"{self.nbytes / 1e6:.1f} MB here after epoch {trainer.current_epoch}, in "
            f"{len(distinct(self._held))} copies; up to twice as much while a generation runs."
        )

    def _take(self, trainer: pl.Trainer) -> Snapshot:
        return take_snapshot(trainer, self._maker.snapshot_device)

    def _batches(self, trainer: pl.Trainer) -> Batches:
        """Those that the Trainer has trained on.

        Where they are too many, or a run goes on amid an epoch, drawn anew from the random state
        that the epoch began with.
        """
        assert self._epoch_start is not None
        random, count = self._epoch_start.random, trainer_seam.batches_trained(trainer)

        def draw() -> Iterator[Any]:
            random.restore()
            yield from trainer_seam.draw_batches(trainer, count, trainer.current_epoch)

        return keep_or_redraw(trainer, draw, count, trainer_seam.recorded_batches(trainer))

    def _train(
        self, trainer: pl.Trainer, probe: Probe, members: list[int], end: Snapshot, due: bool
    ) -> Iterator[tuple[int, _Result]]:
        """Trains members on the probe's batches and, on request, validates them; in any order."""
        batches, take = probe.loops.batches, partial(self._take, trainer)
        write = partial(self._write, trainer)
        ranks = self._maker.sharing.begin(probe, batches, end, take)
        if ranks is not None:
            homes = [state.home for state in self._members]
            owners = share_out(members, homes, trainer.world_size)

            for member, score, snapshot in ranks.scores(owners, self._restore, write, due):
                yield member, _Result(HeldState(snapshot, owners[member]), score)
            return

        def prepare(index: int) -> None:
            self._restore(members[index])
            end.random.restore()
            write(members[index])

        if self._maker.vectorised:
            probe = trained_together(probe, len(members), prepare)

        def train(index: int) -> _Result:
            prepare(index)
            score = probe.score(validate=due)
            probe.loops.end_epoch()
            end.drop_gradients()  # as the Trainer does before it validates
            return _Result(HeldState(take()), score)

        workers = self._maker.workers
        known = end.originals() if workers > 1 else ()
        with Workers(train, workers, known) as processes:
            for index, result in processes.run(len(members)):
                yield members[index], result
            if processes.stood_still:
                self._maker.workers = 0

    def _restore(self, member: int) -> None:
        """Makes the module what it is as a member's epoch begins; only where its state is held."""
        snapshot = self._members[member].snapshot
        assert snapshot is not None
        if self._first_batch is not None:  # None where a run goes on amid an epoch
            snapshot = self._first_batch.with_learned(snapshot)
        snapshot.restore()

    def _write(self, trainer: pl.Trainer, member: int) -> None:
        """Writes a member's values, and what schedulers had written as the epoch began."""
        assert self._epoch_start is not None
        self._epoch_start.write_schedule(trainer)
        self._control.write(self.search.space.decode(self.search.vectors[member]))

    def _compare(
        self, trainer: pl.Trainer, results: list[_Result], end: Snapshot
    ) -> tuple[dict[str, Any], float]:
        """Ends a generation: replaces the worst and lets the best lead, or goes back.

        Returns:
            The record of it, and the leader's perf.
        """
        search, perf = self.search, np.array([result.score.perf for result in results])
        finite_perf = np.where(np.isfinite(perf), perf, -np.inf)
        best = int(np.argmax(finite_perf))
        record = {
            "epoch": trainer.current_epoch,
            "names": list(search.space.names),
            "members": search.space.decode(search.vectors).tolist(),
            "perf": finite(perf),
        }
        if self._best.has_collapsed(finite_perf[best]):
            self._go_back(trainer, end)
            back = {"back_to": self._best.epoch, "leader": self._leader}
            none = dict.fromkeys(("parents", "scale_factors", "omegas"))
            return {**record, **none, **back}, self._best.perf
        vector, leader = search.vectors[best], self._leader
        parents = search.tell(perf, keep=None if self._adopts else leader)
        if finite_perf[best] > -np.inf:
            state = HeldState(snapshot := results[best].state.everywhere(end))
            results[best] = replace(results[best], state=state)
            if self._adopts:
                self._best.note(perf, state, vector, trainer.current_epoch)
                if best != leader:
                    adopt_weights(trainer, snapshot, results[best].score.metrics)
                    leader = best
        else:
            warn_all_diverged(trainer)
        self._members = [results[parent].state for parent in parents]
        # The last that goes on from the leader's state is the leader, unless that is a trial.
        in_population = leader < search.population_size
        self._leader = leader if in_population else int(np.flatnonzero(parents == leader)[-1])
        factors, omegas = map(finite, search.drawn.T)
        made = {"parents": parents.tolist(), "scale_factors": factors, "omegas": omegas}
        return {**record, **made, "back_to": None, "leader": leader}, float(perf[leader])

    def _go_back(self, trainer: pl.Trainer, end: Snapshot) -> None:
        """Lets all members go on from the best weights, with new vectors around their own."""
        best = self._best
        assert best.state is not None
        assert best.state.snapshot is not None
        best.warn(trainer.current_epoch)
        self.search.begin_anew(best.vector)
        snapshot = with_learned(end, best.state.snapshot)
        self._members = [HeldState(snapshot)] * self.search.population_size
        self._leader = 0
        snapshot.restore_weights()
        with self._maker.validating(trainer) as probe:
            metrics = probe.validate().metrics
        adopt_weights(trainer, snapshot, metrics)


@dataclass(frozen=True)
class _Result:
    """A member at the end of an epoch."""

    state: HeldState
    score: Score


def _score_of_leader(probe: Probe, logged: Metrics | None, due: bool) -> Score:
    """Read from what the Trainer has validated, else validated now."""
    if not due:
        return Score(float("nan"), {}, trained=False, validated=False)
    if logged is None:
        return probe.validate()
    perf = probe.monitor.perf(logged, probe.loops)
    return Score(perf, logged, trained=False, validated=False)
