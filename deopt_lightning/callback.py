"""DEOptCallback: learns lr and weight decay per layer while the Trainer trains, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from deopt_lightning import averaging, compatibility, other_callbacks, step_counts, trainer_seam
from deopt_lightning.differential_evolution import Strategy
from deopt_lightning.evaluators.probe import Monitor
from deopt_lightning.last_validation import LastValidation
from deopt_lightning.members import MemberSearch
from deopt_lightning.random_state import rng_state, set_rng_state
from deopt_lightning.rank_exchange import gather_ranks, warn_of_lost_rank
from deopt_lightning.scale_factor import LocalSearch
from deopt_lightning.search_space import Bounds, Repair
from deopt_lightning.searches import Search, build_control, build_maker, build_search

_ATTRIBUTES = ("history", "schedule", "probe_steps_taken", "evaluations")


class DEOptCallback(Callback):
    r"""Learns a learning rate and a weight decay for each layer during one training run.

    A small population of members trains side by side, each from weights of its own with its own
    vector of per-layer lr and weight decay; the Trainer's own epoch is one of them. At the end of
    an epoch all have been validated, differential evolution (Eq. 6 to 10) replaces the worst by
    trials around the best, and the best is the Trainer's model. The optimizer's own values, and lrs
    a decade from them, go on as further members when trials take their places, see ``RunBeside``.

    An epoch costs what ``population_size`` epochs cost, or up to three more, less what Lightning's
    loops take, with a copy of the state for each. ``carry="weights"`` costs less: two copies.

    Args:
        monitor: A metric that validation logs, for example ``"val_loss"``.
        mode: ``"min"`` if smaller is better, ``"max"`` if larger is.
        population_size: Number of target vectors, NP in the paper; at least 4.
        lr_bounds: Smallest and largest lr for every layer. By default each layer's own lr in the
            optimizer, from a thousandth of it to a hundred times it; with probes, ten times it.
        weight_decay_bounds: Smallest and largest weight decay; 0 is tried, too; (0, 0) learns lr
            alone. By default from the optimizer's own likewise, (1e-7, 1e-3) where that is 0.
        probe_steps: Asks for probes instead of members, of this length: optimizer steps (int) or a
            fraction of an epoch (float), a quarter where ``carry`` alone asks for probes. In manual
            optimization a step is a call of ``training_step``.
        limit_probe_val_batches: Judge probes by so many of the first validation batches (int, or a
            share as float); what is adopted is validated in full. See docs/scaling.md.
        layers: Which parameters form a layer: patterns as in ``group_layers``. By default the
            module's ``layer_groups()``, else one layer per submodule that owns parameters.
        seed: Seeds the search and the choice of probe batches.
        carry: What a generation hands on. ``"population"``: every member keeps weights of its own
            and trains every epoch; the Trainer's model is the best of them. This is the default,
            or ``"weights"`` if ``probe_steps`` is given: candidates are scored by probes, which
            all start from the Trainer's weights, and training goes on with the best vector from
            the weights that its probe reached; these steps are not part of ``global_step``.
            ``"hyperparameters"``: the vector alone; the weights are restored, so that apart from
            lr and weight decay the run is what it would be without the callback.
            ``"chain"``: as the authors' public program: each epoch trains with another trial's
            values, from the weights that the one before has left.
        every_n_epochs: Run a generation after every n-th epoch.
        warmup_epochs: Number of epochs before the first generation.
        max_generations: Stop searching after so many generations and keep the last values.
        strategy: ``"current_to_rand"`` (Eq. 9 as printed) or ``"mutant_then_trial"`` (Eq. 7 in 8).
        local_search: Local search for the scale factor (SFLSDE): ``"best"``, ``"all"`` or None.
            ``"population"`` and ``"chain"`` go without.
        repair: How a vector outside the bounds comes back: ``"reflect"`` or ``"clip"``.
        adopt: False searches and records, but changes nothing: a dry run.
        optimizer_index: The one optimizer that is controlled; by default all are.
        direct_steps: Train and validate probes without Lightning's loops where the module has
            ``training_loss(batch)`` and ``validation_metrics(batches)``; bit for bit the same.
        evaluator: ``"vectorised"`` trains candidates stacked where direct steps allow it, equal up
            to rounding; ``"sequential"`` does not; ``"auto"`` does on an accelerator if faster.
        compile_steps: Let torch compile direct steps if the rest of the run is long enough for it
            to pay; results differ by rounding. See ``compiled_steps``.
        workers: Number of processes, this one among them, that share out a generation's candidates,
            each with one thread, on Linux without a GPU; 0 for this one alone, with its threads.
            The others are forks: what steps write to other objects' attributes stays where it is.
        share_over_ranks: With ``strategy="ddp"``, each process trains candidates of its own where
            the module has a method ``training_loss(batch)``; equal up to rounding.
        snapshot_device: Where states of candidates and members are kept: None for the model's
            device, ``"cpu"``, or ``"auto"`` for that where a GPU lacks room beside training.

    Raises:
        ValueError: For an argument that cannot work, naming it and the way out.

    Attributes:
        history: One plain dict per generation: vectors, perf, F, omega, what was accepted, seconds.
        schedule: One plain dict per epoch: the lr and weight decay per layer that trained it.
        probe_steps_taken: Optimizer steps taken in probes so far.
        evaluations: Validation passes made in probes so far.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "min",
        population_size: int = 5,
        lr_bounds: Bounds | None = None,
        weight_decay_bounds: Bounds | None = None,
        probe_steps: int | float | None = None,
        limit_probe_val_batches: int | float | None = None,
        layers: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        seed: int = 0,
        carry: Literal["population", "weights", "hyperparameters", "chain"] | None = None,
        every_n_epochs: int = 1,
        warmup_epochs: int = 0,
        max_generations: int | None = None,
        strategy: Strategy = "current_to_rand",
        local_search: LocalSearch | None = "best",
        repair: Repair = "reflect",
        adopt: bool = True,
        optimizer_index: int | None = None,
        direct_steps: bool = True,
        evaluator: Literal["auto", "sequential", "vectorised"] = "auto",
        compile_steps: bool = False,
        workers: int = 0,
        share_over_ranks: bool = False,
        snapshot_device: Literal["auto", "cpu"] | None = "auto",
    ) -> None:
        self.monitor = monitor
        self.mode = mode
        self.population_size = population_size
        self.lr_bounds = lr_bounds
        self.weight_decay_bounds = weight_decay_bounds
        self.probe_steps = probe_steps
        self.limit_probe_val_batches = limit_probe_val_batches
        self.layers = layers
        self.seed = seed
        self.carry = carry or ("population" if probe_steps is None else "weights")
        self.every_n_epochs = every_n_epochs
        self.warmup_epochs = warmup_epochs
        self.max_generations = max_generations
        self.strategy: Strategy = strategy
        self.local_search: LocalSearch | None = local_search
        self.repair: Repair = repair
        self.adopt = adopt
        self.optimizer_index = optimizer_index
        self.direct_steps = direct_steps
        self.evaluator = evaluator
        self.compile_steps = compile_steps
        self.workers = workers
        self.share_over_ranks = share_over_ranks
        self.snapshot_device = snapshot_device
        vars(self).update(compatibility.checked_arguments(vars(self)))
        self._reset()

    def _reset(self) -> None:
        """Forgets the last fit."""
        self.history: list[dict[str, Any]] = []
        self.schedule: list[dict[str, Any]] = []
        self.probe_steps_taken = 0
        self.evaluations = 0
        self._last_epoch = -1  # the last epoch whose end was handled
        self._validation = LastValidation()
        self._search: Search | None = None
        self._maker = build_maker(vars(self))
        self._resumed_rng: dict[str, Any] | None = None
        self._begin_rng: dict[str, Any] | None = None
        self._undo = ExitStack()  # takes away what the fit puts on other objects

    @property
    def member_bytes(self) -> int:
        """Size of the members' states in this process, with ``carry="population"``; else 0."""
        return self._search.nbytes if isinstance(self._search, MemberSearch) else 0

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint."""
        return f"DEOptCallback[monitor={self.monitor},mode={self.mode}]"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets what an earlier test or fit left to be resumed."""
        self._resumed_state: dict[str, Any] = {}
        self._resumed_checkpoint: dict[str, Any] | None = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the checkpoint, whose optimizer state must follow the split groups."""
        self._resumed_checkpoint = checkpoint

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state for `on_fit_start`, since testing loads checkpoints, too."""
        self._resumed_state = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the Trainer, splits the optimizer by layer, and builds or resumes the search."""
        self._reset()
        compatibility.check_trainer(trainer, pl_module, self.carry, self.optimizer_index)
        try:
            self._control = build_control(trainer, vars(self))
            self._undo.callback(self._control.close)
            self._values = self._control.own_values
            self._search = build_search(vars(self), self._control, self._maker, self._resumed_state)
            if self._resumed_checkpoint is not None:
                self._control.to_split_layout(self._resumed_checkpoint)
                self._resumed_checkpoint = None
            if self._resumed_state:
                self._resume(trainer, self._search)
                self._resumed_state = {}
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self._begin_rng = rng_state()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes resumed values, after the Trainer has restored the optimizer."""
        assert self._search is not None
        compatibility.check_epochs(trainer, vars(self))
        if isinstance(self._search, MemberSearch):
            self._undo.callback(other_callbacks.watch(trainer))
        self._search.train_start(trainer)
        if self.history and self.adopt:
            self._control.write(self._values)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes with what values this epoch trains."""
        epoch = trainer.current_epoch
        self.schedule = [row for row in self.schedule if row["epoch"] < epoch]
        self.schedule.append({"epoch": epoch, **self._control.by_layer(self._values)})
        assert self._search is not None
        if self._resumed_rng is not None and trainer_seam.draws_order_again(trainer):
            set_rng_state(self._resumed_rng)
            self._begin_rng = None
        # The first epoch's order is drawn before this hook, from the state that the fit began with.
        rng, self._begin_rng = self._begin_rng or rng_state(), None
        if epoch + 1 >= self.warmup_epochs and not self._is_over():
            self._control.check()
            self._search.epoch_starts(trainer, rng)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, idx: int) -> None:
        """Lets the search see what hooks have made of the module by an epoch's first batch."""
        self._resumed_rng = None
        if idx == 0 and self._search is not None and not self._is_over():
            self._control.settle(self._values, trainer.optimizers)
            self._search.first_batch_comes(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a monitor that validation does not log, as soon as that is known."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
                Monitor(self.monitor, self.mode).check(trainer.callback_metrics)
            self._validation.note(trainer, whole=self._resumed_rng is None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs a generation, if one is due, and logs the values that train the next epoch."""
        if self._resumed_rng is not None:  # a resumed run that has trained nothing yet
            set_rng_state(self._resumed_rng)  # has drawn an epoch order that it will not use
            self._resumed_rng = None
        # Lightning may end a resumed epoch once more, and a signal may cut a generation.
        while self._last_epoch < trainer.current_epoch:
            with self._maker.signals.held():
                self._end_epoch(trainer)
                self._last_epoch = trainer.current_epoch

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the optimizer in the user's own groups, so that any Trainer can load it."""
        if self._search is not None and "optimizer_states" in checkpoint:
            self._control.to_user_layout(checkpoint)
            if self._last_epoch < trainer.current_epoch:  # as by an exception in a generation
                step_counts.end_epoch_again(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Search, history and random state, in types that a safe `torch.load` accepts."""
        if self._search is None:
            return getattr(self, "_resumed_state", {})
        return {
            "layers": list(self._control.layer_names),
            "carry": self.carry,
            "by_hand": list(self._control.by_hand),
            "search": self._search.state_dict(),
            "values": self._values.tolist(),
            **{name: copy(getattr(self, name)) for name in _ATTRIBUTES},
            "decisions": dict(self._maker.decisions),
            "last_epoch": self._last_epoch,
            "validated": self._validation.step,
            "rng": gather_ranks(rng_state()),
        }

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Says in plain words if another process of the run is gone; `teardown` is not called."""
        warn_of_lost_rank(exception)
        self._undo.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves nothing on optimizers and other callbacks."""
        self._undo.close()

    @property
    def compile_seconds(self) -> float:
        """How long compiling the steps took; 0 if they were not compiled."""
        return self._maker.compile_seconds

    def _is_over(self) -> bool:
        """Whether all generations that were asked for have run."""
        return self.max_generations is not None and len(self.history) >= self.max_generations

    def _end_epoch(self, trainer: pl.Trainer) -> None:
        """Lets the search see the end of an epoch, and puts into effect what it finds."""
        assert self._search is not None
        logged = self._validation.of_present(trainer, self._maker)
        if trainer_seam.ends_now(trainer) or averaging.training_is_over(trainer) or self._is_over():
            return
        self._control.settle(self._values, trainer.optimizers)
        epochs = trainer.current_epoch + 1
        due = epochs >= self.warmup_epochs and epochs % self.every_n_epochs == 0
        outcome = self._search.epoch_ends(trainer, due, logged)
        if outcome is None:
            return
        self.probe_steps_taken += outcome.probe_steps
        self.evaluations += outcome.evaluations
        if outcome.record is not None:
            self.history.append(outcome.record)
        if self.adopt and outcome.values is not None:
            self._values = outcome.values
            self._control.write(self._values)
        if self._is_over():
            self._search.release()
        if outcome.logged:
            self._log(trainer.lightning_module, outcome.logged)

    def _log(self, module: pl.LightningModule, metrics: dict[str, float]) -> None:
        """Logs a generation and its values into the row of the epoch that has just ended."""
        found = {**metrics, **self._control.by_name(self._values)}
        named = {f"deopt/{name}": value for name, value in found.items()}
        module.log_dict(named, sync_dist=module.trainer.world_size > 1)

    def _resume(self, trainer: pl.Trainer, search: Search) -> None:
        """Goes on where a checkpoint left off."""
        state = self._resumed_state
        compatibility.check_resumed(state, list(self._control.layer_names), self.carry)
        self._control.follow(state.get("by_hand", []))
        search.load_state_dict(state["search"])
        self._values = np.array(state["values"])
        vars(self).update({name: copy(state[name]) for name in _ATTRIBUTES})
        self._maker.decisions.update(state.get("decisions", {}))
        self._last_epoch = state["last_epoch"]
        self._validation = LastValidation(state.get("validated", -1))  # older versions have none
        if len(state["rng"]) == trainer.world_size:
            self._resumed_rng = state["rng"][trainer.global_rank]
            set_rng_state(self._resumed_rng)
