"""Candidates shared out among ranks: each is trained by one of them and validated by all.

In data-parallel training a step averages the gradients of all ranks' batches, and the ranks talk at
every step. Here a rank trains a candidate alone, on the batches of all ranks, so that it comes to
the same weights up to rounding; meanwhile the other ranks train other candidates. Validation is
data-parallel, one candidate after the other, as it always is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from deopt_lightning.direct_steps import DirectSteps
from deopt_lightning.evaluators.probe import Probe, Score
from deopt_lightning.evaluators.sequential import FloatArray, SequentialEvaluator, Winner
from deopt_lightning.plain_values import overwrite
from deopt_lightning.random_state import set_torch_rng_state, torch_rng_state
from deopt_lightning.rank_exchange import broadcast_into, gather_ranks, spread_snapshot
from deopt_lightning.snapshot import Snapshot

RngState = list[Tensor]


class AloneSteps(DirectSteps):
    """Steps of one rank that are, up to rounding, those that all ranks take together.

    Each goes over the batches of all ranks, in their order, each with the random generators that
    its rank has. Of a step's batches, the module's hooks see rank 0's.

    Args:
        trainer: A Trainer that `RankSharing` has nothing against.
        by_rank: Each rank's batches.
        random: State of each rank's random generators, from which each call starts.

    Attributes:
        random: What the last call has made of these states.
    """

    def __init__(
        self, trainer: pl.Trainer, by_rank: Sequence[Sequence[Any]], random: Sequence[RngState]
    ) -> None:
        super().__init__(trainer, by_rank[0])
        self._by_rank = by_rank
        self._start = random
        self.random = list(random)

    def __call__(self) -> None:
        """Trains on all batches from the present weights."""
        self.random = list(self._start)
        super().__call__()

    def gradient(self, batch: Any, index: int, window: int, *, clear: bool) -> Tensor | None:
        """Adds all ranks' shares of the gradient; returns their mean loss, if any."""
        strategy, count = self.trainer.strategy, len(self._by_rank)
        losses = []
        for rank, batches in enumerate(self._by_rank):
            part = batch if rank == 0 else strategy.batch_to_device(batches[index])
            set_torch_rng_state(self.random[rank], strategy.root_device)
            losses.append(super().gradient(part, index, window * count, clear=clear and rank == 0))
            self.random[rank] = torch_rng_state(strategy.root_device)
        found = [loss for loss in losses if loss is not None]
        return torch.stack(found).mean() if found else None


@dataclass(frozen=True)
class RankProbes:
    """A generation's probes, each trained by one rank and validated by all.

    Attributes:
        probe: Trains alone, and validates with all ranks.
        steps: How it trains.
        start: State of this rank that each validation starts from, but for the weights.
        take_snapshot: Takes a snapshot of the present state.
    """

    probe: Probe
    steps: AloneSteps
    start: Snapshot
    take_snapshot: Callable[[], Snapshot]

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer."""
        return self.probe.loops.trainer

    def scores(
        self,
        owners: Mapping[int, int],
        restore: Callable[[int], None],
        write: Callable[[int], None],
        validate: bool = True,
    ) -> Iterator[tuple[int, Score, Snapshot | None]]:
        """Trains and validates candidates; the present model state is lost.

        Args:
            owners: For each candidate's number the rank that trains it.
            restore: Restores the state that a candidate starts from; called on its rank.
            write: Writes a candidate's lr and weight decay; called on all ranks.
            validate: Whether to validate.

        Yields:
            A candidate's number, its score, and on its rank alone the state that it has reached.

        Raises:
            RuntimeError: On all ranks, if training failed on one of them.
        """
        rank = self.trainer.global_rank
        for turn in _turns(owners, self.trainer.world_size):
            snapshot, report, error = None, _Report(), None
            if (mine := turn[rank]) is not None:
                try:
                    restore(mine)
                    write(mine)
                    finite = self.probe.trains_finite()
                    snapshot = self.take_snapshot()
                    report = _Report(finite=finite, random=self.steps.random)
                except Exception as failure:
                    error, report = failure, _Report(error=f"{type(failure).__name__}: {failure}")
            reports = gather_ranks(report)
            _raise_first(reports, error)
            for owner, index in enumerate(turn):
                if index is None:
                    continue
                kept = snapshot if owner == rank else None
                score = Score(float("nan"), {}, trained=True, validated=False)
                if reports[owner].finite and validate:
                    self.start.restore()
                    write(index)
                    self._load(kept, owner, reports[owner].random[rank])
                    score = replace(self.probe.validate(), trained=True)
                yield index, score, kept

    def _load(self, snapshot: Snapshot | None, owner: int, random: RngState) -> None:
        """Gives this rank the weights that a candidate has on its own, and random generators."""
        module, device = self.trainer.lightning_module, self.trainer.strategy.root_device
        if snapshot is not None:
            with torch.no_grad():
                for tensor, saved in snapshot.tensors:
                    overwrite(tensor, saved)
        broadcast_into(module.state_dict(keep_vars=True).values(), owner, device)
        set_torch_rng_state(random, device)


@dataclass
class DistributedEvaluator(SequentialEvaluator):
    """Scores candidates that ranks train one by one; ``probe`` and ``workers`` are not used.

    Attributes:
        ranks: Trains and validates.
    """

    ranks: RankProbes = field(kw_only=True)

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Scores (count, 2N) candidates; the present model state is lost, ``start`` is not."""
        first, size = self.trainings, self.ranks.trainer.world_size
        owners = {index: index % size for index in range(len(vectors))}
        perf = np.empty(len(vectors))
        top = (self.winner.perf, self.winner.number) if self.winner else (-np.inf, -1)
        best: tuple[int, Score, Snapshot | None] | None = None
        scores = self.ranks.scores(
            owners,
            restore=lambda index: self.start.restore(),
            write=lambda index: self.write(vectors[index]),
        )
        for index, score, snapshot in scores:
            perf[index] = score.perf
            self.trainings += 1
            self.validations += score.validated
            key = (score.perf, first + index)
            if self.keep_winner and np.isfinite(score.perf) and key >= top:
                top, best = key, (index, score, snapshot)
            self.on_scored()
        if best is not None:
            index, score, snapshot = best
            self.winner = None  # free its memory before the next copy is made
            everywhere = spread_snapshot(snapshot, owners[index], self.start)
            self.winner = Winner(vectors[index].copy(), *top, everywhere, score.metrics)
        return perf


@dataclass(frozen=True)
class _Report:
    """What a rank has to say of the candidate that it trained.

    Attributes:
        finite: Whether all weights are finite.
        random: State of each rank's random generators after training.
        error: What went wrong.
    """

    finite: bool = False
    random: Sequence[RngState] = ()
    error: str | None = None


def _turns(owners: Mapping[int, int], ranks: int) -> list[tuple[int | None, ...]]:
    """What each rank trains at a time: for each turn a candidate, or nothing, for each rank."""
    queues = [[index for index, owner in owners.items() if owner == r] for r in range(ranks)]
    return list(zip_longest(*queues))


def _raise_first(reports: Sequence[_Report], own: Exception | None) -> None:
    """Raises on all ranks where one of them failed, so that none waits for it."""
    if own is not None:
        raise own
    for rank, report in enumerate(reports):
        if report.error is not None:
            raise RuntimeError(f"DEOptCallback: process {rank} failed: {report.error}")
