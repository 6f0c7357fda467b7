"""What all recommenders share: steps, ranking metrics, the optimizer and the list of layers."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from recsys_models.data.batches import RankingBatch, TrainBatch
from recsys_models.metrics import RankingMetrics, Scorer
from recsys_models.models.compiled_loss import compiled_loss
from recsys_models.models.rows import pair_scores, rows
from recsys_models.optim import RowSparseOptimizer

OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]

MODEL = "recommender"  # by this name a checkpoint says which model it is of


class RecommenderModule(L.LightningModule):
    """A recommender that scores all items for a user and is judged by its ranking of them.

    Logs ``train/loss``, then ``val/ndcg@10``, ``val/recall@10``, ``val/hr@10`` and the same names
    under ``test/``, each a mean over users.

    A checkpoint keeps the arguments but the optimizer, so that ``load_from_checkpoint`` builds the
    model.

    Args:
        num_users: user ids are 0 to num_users - 1.
        num_items: item ids are 0 to num_items - 1.
        optimizer: makes the optimizer from the parameters, for example
            ``functools.partial(torch.optim.SGD, lr=0.1)``; None is Adam with its own defaults.
        top_k: what is logged: for a number K, for example 10, NDCG, Recall and HR at K; for a name
            such as "map@20" that metric. See ``RankingMetrics``.
        compile: lets torch compile the training loss, see ``compiled_loss``; for long runs.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        optimizer: OptimizerFactory | None = None,
        top_k: Sequence[int | str] = (10,),
        compile: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("num_users", num_users), ("num_items", num_items)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}. Read it from the data.")
        self.save_hyperparameters(ignore=["optimizer"], logger=False)
        self.num_users = num_users
        self.num_items = num_items
        self._make_optimizer = optimizer or partial(torch.optim.Adam, fused=True)
        if compile:
            self.training_loss = partial(compiled_loss, self)  # type: ignore[method-assign]
        self.val_metrics = RankingMetrics(top_k)
        self.test_metrics = RankingMetrics(top_k)
        self.top_k = tuple(top_k)
        self._losses, self._positives = torch.zeros(()), 0  # sums over the epoch so far
        self._row_optimizer: RowSparseOptimizer | None = None
        # Before parameters are read or replaced as a whole; torch leaves these two untyped.
        self.register_state_dict_pre_hook(RecommenderModule.bring_up_to_date)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(RecommenderModule.bring_up_to_date)  # type: ignore[no-untyped-call]

    @abstractmethod
    def score_users(self, users: Tensor) -> Tensor:
        """Scores of all items, higher is better: from shape (B,) to a fresh (B, num_items)."""

    def scorer(self) -> Scorer:
        """What a ranking is made by: ``score_users``, or tables whose products the scores are."""
        return self.score_users

    @abstractmethod
    def training_loss(self, batch: TrainBatch) -> Tensor:
        """The loss of one batch, a scalar."""

    @abstractmethod
    def layer_groups(self) -> dict[str, list[str]]:
        """Layers in order, each with its parameters' names as in ``named_parameters()``.

        Together they name every trainable parameter exactly once.
        """

    def configure_optimizers(self) -> Optimizer:
        """One optimizer over all parameters."""
        self.bring_up_to_date()
        optimizer = self._make_optimizer(self.parameters())
        self._row_optimizer = optimizer if isinstance(optimizer, RowSparseOptimizer) else None
        if self._row_optimizer is not None:  # only then, so that others are seen to clip as usual
            self.configure_gradient_clipping = self._clip  # type: ignore[method-assign]
        return optimizer

    def lookup(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a parameter in the training loss, with a sparse gradient if so optimized.

        See ``rows`` for the shapes. A table that the loss reads in another way, too, is read
        through ``whole`` there.
        """
        optimizer = self._row_optimizer
        return rows(table, ids) if optimizer is None else optimizer.lookup(table, ids)

    def pair_scores(self, left: Tensor, right: Tensor, left_ids: Tensor, ids: Tensor) -> Tensor:
        """Products of rows of two parameters in the training loss, looked up like the above.

        Args:
            left: shape (m, dim).
            right: shape (n, dim).
            left_ids: shape (B,).
            ids: of the right rows, shape (B, count).

        Returns:
            Shape (B, count).
        """
        left, left_ids = self._readable(left, left_ids)
        right, ids = self._readable(right, ids)
        return pair_scores(left, right, left_ids, ids)

    def _readable(self, table: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """A table that may be read as it is, and the places of the ids in it.

        That is the parameter itself, or, where most of it is not to be visited, those of its rows.
        """
        optimizer = self._row_optimizer
        if optimizer is None or optimizer.prefers_dense(table, ids.numel()):
            return self.whole(table), ids
        places = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        return self.lookup(table, ids.flatten()), places

    def whole(self, table: Tensor) -> Tensor:
        """All rows of a parameter in the training loss."""
        return table if self._row_optimizer is None else self._row_optimizer.whole(table)

    def bring_up_to_date(self, *_: object) -> None:
        """Do to all rows what an optimizer has put off."""
        if self._row_optimizer is not None:
            self._row_optimizer.flush()

    def train(self, mode: bool = True) -> Self:
        """Change the mode; rows that an optimizer left for later are up to date in evaluations."""
        if not mode:
            self.bring_up_to_date()
        return super().train(mode)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which of the models this is."""
        checkpoint[MODEL] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model's weights in one sentence; torch lists all their names."""
        own, saved = (
            {name: tuple(value.shape) for name, value in state.items()}
            for state in (self.state_dict(), checkpoint["state_dict"])
        )
        differing = sorted(set(own.items()) ^ set(saved.items()))
        if differing and self.strict_loading:
            name = differing[0][0]
            raise ValueError(
                f"the checkpoint is of {checkpoint.get(MODEL, 'a model')} with other weights than "
                f"this {type(self).__name__} has: {name} has the shape {saved.get(name)} there and "
                f"{own.get(name)} here. Use the model and the sizes that it was trained with."
            )

    def on_fit_start(self) -> None:
        """Refuse what would look for the gradients of rows in vain."""
        if self._row_optimizer is None:
            return
        processes = self.trainer.world_size
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        for wrong, found, way_out in (
            (processes > 1, f"{processes} processes", "devices=1"),
            (scaler is not None, "a gradient scaler", "precision='bf16-mixed'"),
            ("training_loss" in vars(self), "a compiled loss", "compile=False"),
        ):
            if wrong:
                raise MisconfigurationException(
                    f"{type(self._row_optimizer).__name__} keeps gradients of rows to itself, so "
                    f"nothing else can add up, scale or compile them; got {found}. Use {way_out}, "
                    "or the optimizer of torch.optim that it stands for."
                )

    def on_train_end(self) -> None:
        """Leave all rows up to date."""
        self.bring_up_to_date()

    def _clip(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer is told to, gradients of rows as well."""
        if gradient_clip_val and self._row_optimizer is not None:
            algorithm = gradient_clip_algorithm or "norm"
            self._row_optimizer.clip_gradients(gradient_clip_val, algorithm)
        else:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of positives and sampled negatives."""
        self._check_ids(batch.users, batch.items, batch.negatives)
        loss = self.training_loss(batch)
        self._log_mean_loss(loss.detach(), len(batch.users), batch_idx)
        return loss

    def validation_step(self, batch: RankingBatch, batch_idx: int) -> None:
        """Rank all unseen items for a batch of users."""
        self._rank(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all validation users."""
        if not self.trainer.sanity_checking:  # sees a few users only, perhaps none that counts
            self._log_metrics("val", self.val_metrics)
        self.val_metrics.reset()

    def validation_metrics(self, batches: Iterable[RankingBatch]) -> dict[str, Tensor]:
        """What a validation of all these batches logs, without a Trainer's loop."""
        with torch.autocast(self.device.type, enabled=False):  # rounded scores tie
            values = self.val_metrics.of(self.scorer(), map(self._checked, batches))
        logged = torch.tensor(list(values.values()), device=self.device)
        return _named("val", dict(zip(values, logged, strict=True)))

    def test_step(self, batch: RankingBatch, batch_idx: int) -> None:
        """Rank all unseen items for a batch of users."""
        self._rank(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the means over all test users."""
        self._log_metrics("test", self.test_metrics)
        self.test_metrics.reset()

    def _log_mean_loss(self, loss: Tensor, size: int, batch_idx: int) -> None:
        # A call of log costs more than a fused Adam step on MovieLens-1M, so there is one an epoch.
        if batch_idx == 0:
            self._losses, self._positives = torch.zeros_like(loss), 0
        self._losses = self._losses + loss * size
        self._positives += size
        if self.trainer.is_last_batch:
            mean, n = self._losses / self._positives, self._positives
            self.log("train/loss", mean, on_step=False, on_epoch=True, sync_dist=True, batch_size=n)

    def _rank(self, batch: RankingBatch, metrics: RankingMetrics) -> None:
        with torch.autocast(batch.users.device.type, enabled=False):  # rounded scores tie
            metrics.update(self.scorer(), self._checked(batch))

    def _log_metrics(self, stage: str, metrics: RankingMetrics) -> None:
        # compute() has already summed over processes; the mean of equal values changes nothing.
        self.log_dict(_named(stage, metrics.compute()), sync_dist=True)

    def _checked(self, batch: RankingBatch) -> RankingBatch:
        self._check_ids(batch.users, batch.seen_items, batch.relevant_items)
        return batch

    def _check_ids(self, users: Tensor, *items: Tensor) -> None:
        named = [("user", users, self.num_users), *(("item", i, self.num_items) for i in items)]
        for kind, ids, size in named:
            low, high = (int(bound) for bound in ids.aminmax()) if ids.numel() else (0, 0)
            if low < 0 or high >= size:
                raise ValueError(
                    f"{kind} ids must lie between 0 and {size - 1}, the rows the model was built "
                    f"with; got {low if low < 0 else high}. "
                    f"Build the model with the num_{kind}s of the data."
                )


def check_monitor(monitor: str, model: L.LightningModule, mode: str = "max") -> None:
    """Raise where a recommender's validation will not log the metric, or the mode is not its."""
    metrics = getattr(model, "val_metrics", None)  # an own module may log what it likes
    names = [f"val/{name}" for name in getattr(metrics, "names", [])]
    if names and monitor not in names:
        raise ValueError(
            f"monitor must be a metric that validation logs; got {monitor!r}. "
            f"Choose one of {', '.join(names)}, or add its K with +model.top_k=[...], in the "
            "Lightning CLI with --model.top_k=[...]."
        )
    if names and mode != "max":
        raise ValueError(
            f"mode must be 'max' for {monitor}, which is better the larger it is; got {mode!r}."
        )


def _named(stage: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{stage}/{name}": value for name, value in values.items()}
