"""What SGDA and lambda-opt share: a penalty that is learned on validation pairs during training."""

from abc import abstractmethod
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from recsys_models.baselines.assumed_step import AssumedStep
from recsys_models.baselines.penalty import Penalty, Shares, row_shares
from recsys_models.data.batches import TrainBatch
from recsys_models.data.datamodule import RecsysDataModule
from recsys_models.data.interactions import Interactions
from recsys_models.data.negatives import NegativeSampler
from recsys_models.models import BPRMF


class PenaltyTuner(L.Callback):
    """Learns the weights lambda of an L2 penalty while a BPR-MF trains; all start at 0.

    The Trainer, the module and its optimizer stay as they are: once the gradients of a batch are
    there, the tuner adds those of the penalty (see `Penalty`), so that the optimizer's own step is
    the real one. To learn lambda, it draws pairs from the validation set and follows the gradient
    of their BPR loss after an assumed step (see `AssumedStep`).

    Logs the mean lambda of every layer after each epoch as ``lambda/<layer>``.

    Args:
        granularity: which entries share a lambda; see `Penalty`.
        batch_size: validation pairs per step of lambda, drawn with replacement. Each has as many
            negatives as in training, without a training or validation pair of that user.
        seed: of these draws.

    Attributes:
        penalty: the lambdas, from the start of a fit.
        probe_steps_taken: assumed steps so far. Each costs one forward and backward pass on a
            validation batch, about as much as a training step.
        schedule: one ``{"epoch": 0, "lr": {layer: value}, "lambda": {layer: mean}}`` per epoch,
            as at its end.
    """

    penalty: Penalty

    def __init__(self, granularity: str, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}. Try 1024.")
        self.granularity = granularity
        self.batch_size = batch_size
        self.seed = seed
        self.probe_steps_taken = 0
        self.schedule: list[dict[str, Any]] = []
        self._has_fitted = False
        self._resumed: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget what an earlier test or fit left to be resumed."""
        self._resumed = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for `on_fit_start`, since testing loads checkpoints, too."""
        self._resumed = state_dict

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what cannot work, then begin at lambda = 0 or where a checkpoint ended."""
        model, data = check_fit(type(self).__name__, trainer, pl_module)
        self._model = model
        self._optimizer = trainer.optimizers[0]
        self.penalty = Penalty(dict(model.named_parameters()), self.granularity)
        self._assumed = AssumedStep(model, self._optimizer, self.penalty)
        self._validation = ValidationPairs(data, self.batch_size, self.seed)
        self.probe_steps_taken = 0
        self.schedule = []
        self._build()
        if self._resumed:
            self._resume(self._resumed)
            self._resumed = {}
        self._has_fitted = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: TrainBatch, batch_idx: int
    ) -> None:
        """Note the batch, whose rows the penalty is for."""
        self._batch = batch

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the gradients of the loss be used, then add those of the penalty."""
        dtype = self._model.user_embedding.weight.dtype
        sizes = self._model.num_users, self._model.num_items
        shares = row_shares(self._batch, *sizes, dtype)
        self._use_gradients(shares)
        self.penalty.add_to_gradients(shares)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note and log the mean lambda of every layer."""
        epoch = trainer.current_epoch
        layers = self._model.layer_groups()
        means = self.penalty.means(layers)
        rates = dict.fromkeys(layers, float(self._optimizer.param_groups[0]["lr"]))
        # With max_steps, Lightning ends a resumed epoch once more.
        self.schedule = [row for row in self.schedule if row["epoch"] < epoch]
        self.schedule.append({"epoch": epoch, "lr": rates, "lambda": means})
        pl_module.log_dict({f"lambda/{layer}": mean for layer, mean in means.items()})

    def state_dict(self) -> dict[str, Any]:
        """The state of the last fit, in types that a safe `torch.load` accepts."""
        if not self._has_fitted:
            return self._resumed
        return {
            "granularity": self.granularity,
            "lambdas": self.penalty.lambdas,
            "generator": self._validation.generator.get_state(),
            "probe_steps_taken": self.probe_steps_taken,
            "schedule": self.schedule,
            "own": self._own_state(),
        }

    def _resume(self, state: dict[str, Any]) -> None:
        if state["granularity"] != self.granularity:
            raise MisconfigurationException(
                f"the checkpoint has lambdas per {state['granularity']}, but this run per "
                f"{self.granularity}. Resume with the same granularity."
            )
        copy_tensors(state["lambdas"], self.penalty.lambdas)
        self._validation.generator.set_state(state["generator"].cpu())
        self.probe_steps_taken = state["probe_steps_taken"]
        self.schedule = state["schedule"]
        self._resume_own(state["own"])

    def _learn(self, gradients: dict[str, Tensor], shares: Shares) -> None:
        """One step of lambda, for the assumed step on these gradients and shares."""
        batch = self._validation.draw(self._model.device)
        hypergradients = self._assumed.hypergradients(gradients, shares, batch)
        for key, weights in self.penalty.lambdas.items():
            weights.grad = hypergradients[key]
        self._step_lambdas()
        for weights in self.penalty.lambdas.values():
            weights.clamp_(min=0)
        self.probe_steps_taken += 1

    @abstractmethod
    def _build(self) -> None:
        """Make what this tuner needs beside the penalty."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """The state of what this tuner has beside the penalty."""

    @abstractmethod
    def _resume_own(self, state: dict[str, Any]) -> None:
        """Put that state back."""

    @abstractmethod
    def _use_gradients(self, shares: Shares) -> None:
        """Do something with the gradients of the loss, before the penalty joins them."""

    @abstractmethod
    def _step_lambdas(self) -> None:
        """Move the lambdas by their gradients; they are clamped at 0 afterwards."""


class ValidationPairs:
    """Draws validation positives with negatives, from a generator of its own.

    Args:
        data: the data module, set up; of it, train and validation are read.
        batch_size: pairs per batch.
        seed: of the generator.
    """

    def __init__(self, data: RecsysDataModule, batch_size: int, seed: int) -> None:
        validation: Interactions = data.validation
        if not len(validation):
            raise MisconfigurationException(
                "lambda is learned from validation pairs, but there are 0. "
                "Give validation a larger share in data.ratios."
            )
        self._users = torch.from_numpy(validation.users)
        self._items = torch.from_numpy(validation.items)
        self._negatives = NegativeSampler(data.train.union(validation), data.user_ids)
        self._num_negatives = data.num_negatives
        self._batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, device: torch.device | str = "cpu") -> TrainBatch:
        """The next batch."""
        size = (self._batch_size,)
        positions = torch.randint(len(self._users), size, generator=self.generator)
        users = self._users[positions]
        negatives = self._negatives.sample(users, self._num_negatives, self.generator)
        return TrainBatch(*(ids.to(device) for ids in (users, self._items[positions], negatives)))


def copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Write tensors into those of the same names, on whatever device."""
    for name, tensor in target.items():
        tensor.copy_(source[name])


def check_fit(
    name: str, trainer: L.Trainer, module: L.LightningModule
) -> tuple[BPRMF, RecsysDataModule]:
    """Refuse a fit in which the assumed step would differ from the real one, or cannot be taken."""
    data = getattr(trainer, "datamodule", None)
    for wrong, problem in (
        (
            not isinstance(module, BPRMF),
            "assumes steps of BPRMF, whose loss depends on the rows of a batch alone; got "
            f"{type(module).__name__}. Use model=bpr_mf, or another tuner.",
        ),
        (
            not isinstance(data, RecsysDataModule),
            f"draws validation pairs from a RecsysDataModule; got {type(data).__name__}. "
            "Pass one as datamodule.",
        ),
        (
            trainer.world_size > 1,
            "counts the rows of a batch in one process; got a world size of "
            f"{trainer.world_size}. Use trainer=default.",
        ),
        (
            trainer.accumulate_grad_batches != 1,
            "penalises the rows of one batch per step; got accumulate_grad_batches="
            f"{trainer.accumulate_grad_batches}. Leave it out and raise data.batch_size.",
        ),
        (
            bool(trainer.gradient_clip_val),
            "assumes steps without clipping; got gradient_clip_val="
            f"{trainer.gradient_clip_val}. Leave it out.",
        ),
        (
            trainer.precision not in ("32-true", "64-true"),
            f"assumes steps in full precision; got precision={trainer.precision}. "
            "Use precision=32-true.",
        ),
    ):
        if wrong:
            raise MisconfigurationException(f"{name} {problem}")
    assert isinstance(module, BPRMF)
    assert isinstance(data, RecsysDataModule)
    return module, data
