"""One generation inside a Trainer: from a snapshot, score what the search asks for, put back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from deopt_lightning import trainer_seam
from deopt_lightning.differential_evolution import DifferentialEvolution
from deopt_lightning.evaluators.sequential import SequentialEvaluator, Winner
from deopt_lightning.population import Generation
from deopt_lightning.progress import generation_progress
from deopt_lightning.snapshot import Snapshot

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class GenerationResult:
    """What a generation did and what it cost.

    Attributes:
        generation: The search's own record.
        winner: The best candidate with its trained weights, if they were to be kept.
        evaluations: Number of validation passes.
        probe_steps: Number of optimizer steps in probes.
        seconds: Wall-clock time.
    """

    generation: Generation
    winner: Winner | None
    evaluations: int
    probe_steps: int
    seconds: float


def run_generation(
    trainer: pl.Trainer,
    search: DifferentialEvolution,
    write: Callable[[FloatArray], None],
    *,
    probe_steps: int | float,
    seed: int,
    monitor: str,
    mode: Literal["min", "max"],
    keep_winner: bool,
) -> GenerationResult:
    """Lets the search ask until its generation is complete; leaves Trainer and model as they were.

    After an error, Trainer, model and search are back at the start of the generation.

    Args:
        trainer: A Trainer in `on_train_epoch_end`.
        search: The search, between two generations.
        write: Puts (2N,) values into the optimizer.
        probe_steps: Length of a probe: optimizer steps (int) or a fraction of an epoch (float).
        seed: With the epoch, seeds the choice of the probes' batches.
        monitor: Name of the validation metric.
        mode: Whether smaller ("min") or larger ("max") is better.
        keep_winner: Whether to keep the weights that the best candidate's probe reached.
    """
    started = time.perf_counter()
    search_before = search.state_dict()
    start = take_snapshot(trainer)
    try:
        with start.restored_on_exit():
            batches = _probe_batches(trainer, probe_steps, seed)
            with (
                generation_progress(trainer, 2 * search.population_size) as advance,
                trainer_seam.quiet_loops(trainer, batches) as probe,
            ):
                evaluate = SequentialEvaluator(
                    probe=probe,
                    start=start,
                    write=lambda vector: write(search.space.decode(vector)),
                    take_snapshot=lambda: take_snapshot(trainer),
                    monitor=monitor,
                    mode=mode,
                    keep_winner=keep_winner,
                    on_scored=advance,
                )
                while len(candidates := search.ask()):
                    search.tell(evaluate(candidates))
    except BaseException:
        search.load_state_dict(search_before)
        raise
    assert search.last_generation is not None
    steps = -(-len(batches) // trainer.accumulate_grad_batches)
    return GenerationResult(
        generation=search.last_generation,
        winner=evaluate.winner,
        evaluations=evaluate.validations,
        probe_steps=steps * evaluate.probes,
        seconds=time.perf_counter() - started,
    )


def take_snapshot(trainer: pl.Trainer) -> Snapshot:
    """A snapshot of everything that a Trainer's steps and validation change."""
    return Snapshot.take(
        trainer.lightning_module,
        trainer.optimizers,
        stateful=[trainer.precision_plugin],
        generators=trainer_seam.loader_generators(trainer),
    )


def _probe_batches(trainer: pl.Trainer, probe_steps: int | float, seed: int) -> list[object]:
    count = trainer_seam.probe_batch_count(trainer, probe_steps)
    sequence = np.random.SeedSequence([seed, trainer.current_epoch])
    return trainer_seam.fetch_batches(trainer, count, int(sequence.generate_state(1)[0]))
