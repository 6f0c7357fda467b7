"""Scores candidates one by one: the reference that every other evaluator must equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from deopt_lightning.evaluators.probe import Metrics, Probe, Score
from deopt_lightning.snapshot import Snapshot
from deopt_lightning.workers import Workers, shared_array

FloatArray = NDArray[np.float64]


@dataclass
class Winner:
    """The best candidate of a generation with what its probe made of the model.

    Of candidates with equal perf it is the last by number, their order in the generation.
    """

    vector: FloatArray
    perf: float
    number: int
    snapshot: Snapshot
    metrics: Metrics


class _Asked(NamedTuple):
    """Candidates, in memory that all processes share.

    Attributes:
        first: (1,) The number of the first of them in the generation.
        vectors: (count or more, 2N) What they are.
    """

    first: FloatArray
    vectors: FloatArray


@dataclass
class SequentialEvaluator:
    """Scores each candidate by a probe: restore, write its values, train a little, validate.

    In a ``with`` block, at whose end worker processes end.

    Attributes:
        probe: Trains and validates.
        start: The state that every probe starts from, random generators included.
        write: Writes a candidate's lr and weight decay into the parameter groups.
        take_snapshot: Takes a snapshot of the present state; used if ``keep_winner``.
        keep_winner: Keep the best candidate's trained state; costs one more copy in memory.
        workers: Number of processes that share the candidates out among them, see ``Workers``; each
            candidate is still scored as it would be here. 0 once they have stood still.
        on_scored: Called after each candidate, to show progress.
        winner: The best candidate so far, if it is kept.
        trainings: Number of probes trained so far.
        validations: Number of validation passes so far.
    """

    probe: Probe
    start: Snapshot
    write: Callable[[FloatArray], None]
    take_snapshot: Callable[[], Snapshot]
    keep_winner: bool = False
    workers: int = 0
    on_scored: Callable[[], None] = lambda: None
    winner: Winner | None = field(default=None)
    trainings: int = 0
    validations: int = 0
    _asked: _Asked | None = field(default=None, init=False)
    _processes: Workers | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes, and forgets them: they refer back here, and so keep all copies."""
        if self._processes is not None:
            self._processes.close()
        self._processes = self._asked = None

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Scores (count, 2N) candidates; the present model state is lost, ``start`` is not."""
        processes = self._ask(vectors)
        perf = np.empty(len(vectors))
        for index, (result, winner) in processes.run(len(vectors)):
            perf[index] = result.perf
            self.trainings += 1
            self.validations += result.validated
            if winner is not None and self._leads(winner.perf, winner.number):
                self.winner = winner
            del winner  # so that the next one finds its memory free
            self.on_scored()
        if processes.stood_still:
            self.workers = 0
        return perf

    def _ask(self, vectors: FloatArray) -> Workers:
        """Tells all processes what to score; new ones where there is no room for it."""
        count = len(vectors)
        if self._processes is None or self._asked is None or count > len(self._asked.vectors):
            self.__exit__()
            known = self.start.originals() if self.workers > 1 else ()
            self._asked = _Asked(shared_array((1,)), shared_array(vectors.shape))
            self._processes = Workers(self._score, self.workers, known)
        self._asked.first[0] = self.trainings
        self._asked.vectors[:count] = vectors
        return self._processes

    def _score(self, index: int) -> tuple[Score, Winner | None]:
        """Scores a candidate in this process; with its state if it is the best here so far."""
        assert self._asked is not None
        vector, number = self._asked.vectors[index], int(self._asked.first[0]) + index
        self.start.restore()
        self.write(vector)
        score = self.probe.score()
        if not (self.keep_winner and np.isfinite(score.perf) and self._leads(score.perf, number)):
            return score, None
        self.winner = None  # free its memory before the next copy is made
        snapshot = self.take_snapshot()
        self.winner = Winner(vector.copy(), score.perf, number, snapshot, score.metrics)
        return score, self.winner

    def _leads(self, perf: float, number: int) -> bool:
        best = self.winner
        return best is None or (perf, number) >= (best.perf, best.number)
