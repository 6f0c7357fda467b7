"""Weights chained through trials: each epoch of the Trainer trains with another one's values."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np

from deopt_lightning.evaluators.probe import Metrics
from deopt_lightning.generation import Outcome, ProbeMaker
from deopt_lightning.history import finite, spread
from deopt_lightning.layer_control import LayerControl
from deopt_lightning.running_best import RunningBestDE
from deopt_lightning.trainer_seam import quiet_loops


class ChainedSearch:
    """Lets the Trainer's own epochs score the trials, with nothing restored between them.

    There are no probes: a trial trains the model itself for an epoch (for as many as lie between
    two generations that are due), and the next trial goes on from there, whether or not it was
    accepted. A round of population_size trials is one generation, and one line of the history.

    Args:
        search: The search; its first vector is the user's own, with which the fit begins.
        control: Writes values into the optimizer.
        maker: Makes quiet validations.
        max_rounds: After so many rounds the values of the last accepted trial stay.
    """

    def __init__(
        self,
        search: RunningBestDE,
        control: LayerControl,
        maker: ProbeMaker,
        max_rounds: int | None = None,
    ) -> None:
        self.search = search
        self._control = control
        self._maker = maker
        self._max_rounds = max_rounds
        self._rounds = 0
        self._validations = 0  # quiet ones of this round

    def first_batch_comes(self, trainer: pl.Trainer) -> None:
        """Nothing: no epoch is trained once more."""

    def train_start(self, trainer: pl.Trainer) -> None:
        """Writes the values of the trial that a resumed run was training with."""
        if self.search.trial is not None:
            self._control.write(self.search.space.decode(self.search.trial))

    def epoch_starts(self, trainer: pl.Trainer, rng: dict[str, Any]) -> None:
        """Nothing: the epoch's training is the trial's."""

    def epoch_ends(self, trainer: pl.Trainer, due: bool, logged: Metrics | None) -> Outcome | None:
        """Tells the search what the epoch has reached, if a trial is due, and asks for the next.

        Args:
            trainer: A Trainer in `on_train_epoch_end`.
            due: Whether a trial is due.
            logged: What validation has logged of the present weights; None without one.
        """
        if not due:
            return None
        search = self.search
        perf, validations = self._score(trainer, logged)
        self._validations += validations
        record = None
        if search.trial is None:  # the first epoch that is due has trained with the own values
            search.open(perf)
        elif search.tell(perf):
            record = self._record(trainer)
            self._rounds, self._validations = self._rounds + 1, 0
            if self._rounds != self._max_rounds:
                search.open(perf)
        best = self._maker.monitor.signed(search.round.best)
        return Outcome(
            values=search.space.decode(search.accepted if search.trial is None else search.trial),
            record=record,
            logged={
                **({"best": best} if np.isfinite(best) else {}),
                "accepted": float(sum(search.round.accepted)),
                "spread": spread(search.vectors, search.space),
            },
            probe_steps=0,
            evaluations=validations,
        )

    def state_dict(self) -> dict[str, Any]:
        """State of the search, in types that a safe `torch.load` accepts."""
        counts = {"rounds": self._rounds, "validations": self._validations}
        return {"search": self.search.state_dict(), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self.search.load_state_dict(state["search"])
        self._rounds, self._validations = state["rounds"], state["validations"]

    def release(self) -> None:
        """Nothing: a trial leaves nothing in memory."""

    def _score(self, trainer: pl.Trainer, logged: Metrics | None) -> tuple[float, int]:
        """Perf of the weights as they are, and how many validation passes it took."""
        if logged is not None:
            with quiet_loops(trainer, []) as loops:
                return self._maker.monitor.perf(logged, loops), 0
        with self._maker.validating(trainer) as probe:
            return probe.validate().perf, 1

    def _record(self, trainer: pl.Trainer) -> dict[str, Any]:
        search, ended = self.search, self.search.round
        first, *perf = finite(np.array([ended.first, *ended.perf]))
        return {
            "epoch": trainer.current_epoch,
            "names": list(search.space.names),
            "first_perf": first,
            "trials": search.space.decode(np.array(ended.trials)).tolist(),
            "trial_perf": perf,
            "accepted": ended.accepted,
            "probe_steps": 0,
            "evaluations": self._validations,
            "seconds": 0.0,
        }
