"""Generations of short probes: all candidates start from one state, the Trainer's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np

from deopt_lightning import trainer_seam
from deopt_lightning.batch_counts import probe_batch_count
from deopt_lightning.differential_evolution import DifferentialEvolution
from deopt_lightning.evaluators.distributed import DistributedEvaluator
from deopt_lightning.evaluators.probe import Metrics
from deopt_lightning.evaluators.sequential import SequentialEvaluator, Winner
from deopt_lightning.evaluators.vectorised import VectorisedEvaluator
from deopt_lightning.generation import (
    FloatArray,
    Outcome,
    ProbeMaker,
    adopt_weights,
    optimizer_steps,
    take_snapshot,
    warn_all_diverged,
)
from deopt_lightning.history import generation_record, spread
from deopt_lightning.layer_control import LayerControl
from deopt_lightning.population import Generation
from deopt_lightning.random_state import seed_all
from deopt_lightning.replay import Batches, keep_or_redraw

UNUSED_EPOCHS = 1_000_000  # samplers' epochs from here on are no real ones


class ProbeSearch:
    """Scores targets and trials (Eq. 6 to 10) by probes from the weights of the epoch's end.

    Args:
        search: The search.
        control: Writes values into the optimizer.
        maker: Makes probes.
        probe_steps: Length of a probe: optimizer steps (int) or a fraction of an epoch (float).
        seed: With the epoch, seeds the choice of the probes' batches.
        carry_weights: Whether training goes on from the weights of the best candidate's probe.
        adopt: Whether anything found is to be put into effect.
    """

    def __init__(
        self,
        search: DifferentialEvolution,
        control: LayerControl,
        maker: ProbeMaker,
        *,
        probe_steps: int | float,
        seed: int,
        carry_weights: bool,
        adopt: bool,
    ) -> None:
        self.search = search
        self._control = control
        self._maker = maker
        self._probe_steps = probe_steps
        self._seed = seed
        self._keep_winner = carry_weights and adopt
        self._adopts = adopt

    def epoch_starts(self, trainer: pl.Trainer, rng: dict[str, Any]) -> None:
        """Nothing: a generation needs no more than the epoch's end."""

    def first_batch_comes(self, trainer: pl.Trainer) -> None:
        """Nothing: no epoch is trained once more."""

    def train_start(self, trainer: pl.Trainer) -> None:
        """Nothing: a search is all there is to resume."""

    def epoch_ends(self, trainer: pl.Trainer, due: bool, logged: Metrics | None) -> Outcome | None:
        """Lets the search ask until its generation is complete, if one is due.

        After an error, Trainer, model and search are back at the start of the generation.
        """
        if not due:
            return None
        started = time.perf_counter()
        search, before = self.search, self.search.state_dict()
        self._maker.place_copies(trainer, 2)  # the start, and the best candidate's end
        take = partial(take_snapshot, trainer, self._maker.snapshot_device)
        start = take()
        try:
            with start.restored_on_exit():
                batches = self._batches(trainer)
                expected = 2 * search.population_size
                probing = self._maker.probing(trainer, batches, start, expected, one_start=True)
                with probing as (probe, advance):
                    ranks = self._maker.sharing.begin(probe, batches, start, take)
                    alone = VectorisedEvaluator if self._maker.vectorised else SequentialEvaluator
                    kind = partial(DistributedEvaluator, ranks=ranks) if ranks else alone
                    evaluate = kind(
                        probe=probe,
                        start=start,
                        write=lambda vector: self._control.write(search.space.decode(vector)),
                        take_snapshot=take,
                        keep_winner=self._keep_winner,
                        workers=self._maker.workers,
                        on_scored=advance,
                    )
                    with evaluate:
                        while len(candidates := search.ask()):
                            search.tell(evaluate(candidates))
                self._maker.workers = evaluate.workers
        except BaseException:
            search.load_state_dict(before)
            raise
        assert search.last_generation is not None
        steps = optimizer_steps(trainer, len(batches)) * evaluate.trainings
        values = self._adopt(trainer, evaluate.winner) if self._adopts else None
        again = self._judge_adopted(trainer) if evaluate.winner is not None else 0
        return Outcome(
            values=values,
            record={
                "epoch": trainer.current_epoch,
                **generation_record(search.space, search.last_generation),
                "probe_steps": steps,
                "evaluations": evaluate.validations + again,
                "seconds": time.perf_counter() - started,
            },
            logged=self._logged(search.last_generation),
            probe_steps=steps,
            evaluations=evaluate.validations + again,
        )

    def state_dict(self) -> dict[str, Any]:
        """State of the search."""
        return self.search.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self.search.load_state_dict(state)

    def release(self) -> None:
        """Nothing: no generation leaves anything in memory."""

    def _batches(self, trainer: pl.Trainer) -> Batches:
        """Batches that no epoch draws, the same for the same seed and epoch."""
        sequence = np.random.SeedSequence([self._seed, trainer.current_epoch])
        seed = int(sequence.generate_state(1)[0])
        count = probe_batch_count(trainer, self._probe_steps)
        epoch = UNUSED_EPOCHS + seed % UNUSED_EPOCHS

        def draw() -> Iterator[Any]:
            seed_all(trainer_seam.loader_generators(trainer), seed)
            yield from trainer_seam.draw_batches(trainer, count, epoch)

        return keep_or_redraw(trainer, draw, count)

    def _adopt(self, trainer: pl.Trainer, winner: Winner | None) -> FloatArray | None:
        """The best vector's values; on request its weights are written, too."""
        vector, perf = (winner.vector, winner.perf) if winner else self.search.best
        if not np.isfinite(perf):
            warn_all_diverged(trainer)
            return None
        if winner is not None:
            adopt_weights(trainer, winner.snapshot, winner.metrics)
        return self.search.space.decode(vector)

    def _judge_adopted(self, trainer: pl.Trainer) -> int:
        """Validates adopted weights in full if probes were not; returns how often it validated."""
        if self._maker.limit_val_batches is None:
            return 0
        with self._maker.validating(trainer) as probe:
            metrics = probe.validate().metrics
        trainer.callback_metrics.update(metrics)
        return 1

    def _logged(self, generation: Generation) -> dict[str, float]:
        search = self.search
        best = self._maker.monitor.signed(search.best[1])
        return {
            **({"best": best} if np.isfinite(best) else {}),
            "accepted": float(generation.accepted.sum()),
            "spread": spread(search.population.vectors, search.space),
        }
