"""Bad input is refused early, with the value seen and the way out."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from deopt_lightning import DEOptCallback
from tests.tiny import (
    ManualModel,
    TinyModel,
    fit,
    moving_average,
    tiny_data,
    train_loader,
    val_loader,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population_size": 3}, "population_size must be at least 4 .*; got 3"),
        ({"lr_bounds": (0.1, 0.01)}, "lr_bounds are reversed: low 0.1 is above high 0.01"),
        ({"weight_decay_bounds": (1e-2, 1e-5)}, "weight_decay_bounds are reversed"),
        ({"lr_bounds": (0.0, 0.1)}, r"lr_bounds must be positive; got \(0.0, 0.1\)"),
        ({"lr_bounds": (0.1, float("inf"))}, "lr_bounds must be finite"),
        ({"lr_bounds": (0.1,)}, "lr_bounds must be a pair"),
        ({"weight_decay_bounds": (-1e-3, 1e-2)}, "weight_decay_bounds must be at least 0"),
        ({"mode": "up"}, r"mode must be one of \('min', 'max'\); got 'up'"),
        ({"carry": "all"}, "carry must be one of .*; got 'all'"),
        ({"strategy": "best"}, "strategy must be one of .*; got 'best'"),
        ({"local_search": "none"}, "local_search must be one of .*; got 'none'"),
        ({"repair": "wrap"}, "repair must be one of .*; got 'wrap'"),
        ({"probe_steps": 0}, "probe_steps must be a positive int .*; got 0"),
        ({"probe_steps": -0.5}, "probe_steps must be a positive int .*; got -0.5"),
        (
            {"limit_probe_val_batches": 1},
            "limit_probe_val_batches=1 is for probes, but with carry='population'",
        ),
        (
            {"probe_steps": 1, "limit_probe_val_batches": 0},
            "limit_probe_val_batches must be a number .*; got 0",
        ),
        (
            {"probe_steps": 1, "limit_probe_val_batches": 1.5},
            "limit_probe_val_batches must be a number .*; got 1.5",
        ),
        ({"probe_steps": float("nan")}, "probe_steps must be a positive int .*; got nan"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1; got 0"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0; got -1"),
        ({"max_generations": 0}, "max_generations must be at least 1; got 0"),
        ({"carry": "chain", "probe_steps": 9}, "carry='chain', whose trials train whole .* got 9"),
        ({"carry": "chain", "adopt": False}, "adopt=False cannot be set with carry='chain'"),
        ({"optimizer_index": -1}, "optimizer_index must be at least 0; got -1"),
        ({"monitor": ""}, "monitor must name a validation metric"),
        ({"monitor": ["val_loss"]}, r"monitor must name a validation metric; got \['val_loss'\]"),
        ({"population_size": 5.0}, "population_size must be a whole number; got 5.0"),
        ({"seed": None}, "seed must be a whole number; got None"),
        ({"warmup_epochs": "3"}, "warmup_epochs must be a whole number; got '3'"),
        ({"workers": True}, "workers must be a whole number; got True"),
        ({"lr_bounds": 0.1}, "lr_bounds must be a pair .* of numbers; got 0.1"),
        ({"lr_bounds": ["1e-3", "1e-1"]}, r"lr_bounds must be .* got \['1e-3', '1e-1'\]. YAML"),
        ({"probe_steps": "10"}, "probe_steps must be a positive int .*; got '10'"),
        (
            {"probe_steps": 1, "limit_probe_val_batches": "1"},
            "limit_probe_val_batches must be a number .*; got '1'",
        ),
    ],
)
def test_bad_arguments_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DEOptCallback(**{"monitor": "val_loss"} | options)


class LogsNothing(TinyModel):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])

    def on_validation_epoch_end(self) -> None:
        pass


class LogsWhenTraining(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("only_here", loss)
        return loss


class WithBackbone(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Linear(1, 1)


class NoValidationStep(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TakesIterator(TinyModel):
    def training_step(self, dataloader_iter: Any) -> torch.Tensor:
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter(tiny_data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": NoValidationStep}, "NoValidationStep has no validation_step"),
        ({"model": TakesIterator}, r"training_step\(dataloader_iter\)"),
        ({"limit_val_batches": 0}, "there is no validation data"),
        ({"model": partial(TinyModel, lambda p: None)}, "holds none of the layers' parameters"),
        ({"model": partial(TinyModel, torch.optim.LBFGS)}, "LBFGS has no weight_decay"),
        (
            {"callbacks": [BackboneFinetuning()], "model": WithBackbone},
            "does not work beside BackboneFinetuning",
        ),
        (
            {"callbacks": [ModelPruning("l1_unstructured", amount=0.1)]},
            "does not work beside ModelPruning",
        ),
        ({"callbacks": [DEOptCallback("train_loss")]}, "is in the Trainer 2 times"),
        (
            {"callbacks": [StochasticWeightAveraging(0.1)], "search": {"carry": "population"}},
            "StochasticWeightAveraging average the weights of different members",
        ),
        (
            {"model": ManualModel, "search": {"optimizer_index": 2}},
            "optimizer_index=2, but the module has 2 optimizers",
        ),
    ],
)
def test_unfit_trainers_are_refused_before_training(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    search = DEOptCallback("val_loss", **options.pop("search", {}))
    callbacks = [search, *options.pop("callbacks", [])]
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, callbacks, **options)


@pytest.mark.parametrize(
    ("frequency", "search", "refused"),
    [(1, {}, True), (11, {}, True), (12, {}, False), (1, {"probe_steps": 2}, False)],
)
def test_a_schedule_that_looks_at_the_trainers_steps_is_refused(
    frequency: int, search: dict[str, Any], refused: bool, tmp_path: Path
) -> None:
    def plateau(parameters: Any) -> Any:
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        config = {"scheduler": scheduler, "interval": "step", "monitor": "train_loss"}
        return {"optimizer": optimizer, "lr_scheduler": config | {"frequency": frequency}}

    callback = DEOptCallback("val_loss", population_size=4, **search)
    message = f"ReduceLROnPlateau with interval='step' and frequency={frequency}"
    with pytest.raises(MisconfigurationException, match=message) if refused else nullcontext():
        fit(tmp_path, [callback], model=partial(TinyModel, plateau))
    assert len(callback.history) == (0 if refused else 3)


class Lazy(TinyModel):
    """Its first layer learns from the first batch how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.LazyLinear(8)


def test_weights_without_a_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"first\.weight has no shape before"):
        fit(tmp_path, [DEOptCallback("val_loss")], model=Lazy, num_sanity_val_steps=0)


@pytest.mark.parametrize(("sanity_steps", "warmup"), [(1, 0), (0, 2)])
def test_weights_that_have_got_a_shape_are_not(
    sanity_steps: int, warmup: int, tmp_path: Path
) -> None:
    callback = DEOptCallback("val_loss", warmup_epochs=warmup)
    fit(tmp_path, [callback], model=Lazy, num_sanity_val_steps=sanity_steps)
    assert [row["epoch"] for row in callback.history] == [0, 1, 2][max(0, warmup - 1) :]


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"])
def test_sharded_strategies_are_refused_by_their_name(name: str, tmp_path: Path) -> None:
    """The real ones need a GPU or another package before a fit begins."""
    strategy = type(name, (SingleDeviceStrategy,), {})("cpu")
    with pytest.raises(MisconfigurationException, match=f"does not support {name}, whose sharded"):
        fit(tmp_path, [DEOptCallback("val_loss")], strategy=strategy)


class Configured(TinyModel):
    def configure_model(self) -> None:
        pass


def test_fsdp2_is_refused(tmp_path: Path) -> None:
    try:
        with pytest.raises(MisconfigurationException, match="does not support ModelParallelStrat"):
            fit(
                tmp_path,
                [DEOptCallback("val_loss")],
                model=Configured,
                strategy=ModelParallelStrategy(),
            )
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_missing_validation_loader_is_refused(tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[DEOptCallback("val_loss")],
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(MisconfigurationException, match="there is no validation data"):
        trainer.fit(TinyModel(), train_loader())


def test_unknown_monitor_lists_what_is_logged(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"'val_los'.*val_error, val_loss.*Choose"):
        fit(tmp_path, [DEOptCallback("val_los", probe_steps=1)])


def test_unknown_monitor_is_known_after_the_first_epoch_even_in_warmup(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="'val_los'"):
        fit(tmp_path, [DEOptCallback("val_los", warmup_epochs=3)], max_epochs=1)


def test_monitor_never_logged(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"'val_loss'.*logs: .*self.log"):
        fit(tmp_path, [DEOptCallback("val_loss")], model=LogsNothing)


def test_monitor_logged_by_training_only(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="'only_here'.*that validation logs"):
        fit(tmp_path, [DEOptCallback("only_here", probe_steps=1)], model=LogsWhenTraining)


def test_fraction_of_an_epoch_without_a_length_is_refused(tmp_path: Path) -> None:
    loader = DataLoader(Endless(), batch_size=8)
    with pytest.raises(MisconfigurationException, match="the training data has no length"):
        fit(tmp_path, [DEOptCallback("val_loss", probe_steps=0.5)], train=loader)


def test_share_of_validation_without_a_length_is_refused(tmp_path: Path) -> None:
    callback = DEOptCallback("val_loss", probe_steps=1, limit_probe_val_batches=0.5)
    loader, first = DataLoader(Endless(), batch_size=8), {"num_sanity_val_steps": 0}
    with pytest.raises(MisconfigurationException, match="0.5 is a share of the validation data"):
        fit(tmp_path, [callback], val=loader, val_check_interval=1.0, **first)


def test_layers_that_leave_parameters_out_are_refused(tmp_path: Path) -> None:
    callback = DEOptCallback("val_loss", layers=["first.*"])
    with pytest.raises(MisconfigurationException, match="leave out trainable parameters"):
        fit(tmp_path, [callback], val=val_loader())


def test_members_cannot_be_compared_by_an_average_that_has_not_begun(tmp_path: Path) -> None:
    callbacks = [
        DEOptCallback("val_loss", carry="population"),
        moving_average(update_starting_at_step=100),
    ]
    with pytest.raises(MisconfigurationException, match="averaged none of.*Set warmup_epochs"):
        fit(tmp_path, callbacks)


def test_probes_without_an_optimizer_step_are_refused(tmp_path: Path) -> None:
    callback = DEOptCallback("val_loss", probe_steps=4)
    with pytest.raises(MisconfigurationException, match="4 batches took no optimizer step"):
        fit(tmp_path, [callback], model=ManualModel)


class Grows(TinyModel):
    """Replaces a layer, and the optimizer with it, as its second epoch starts."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.last = torch.nn.Linear(8, 1)
            self.trainer.strategy.setup_optimizers(self.trainer)


@pytest.mark.parametrize("options", [{}, {"probe_steps": 2}])
def test_optimizers_that_are_replaced_during_the_fit_are_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(MisconfigurationException, match="Optimizers cannot be replaced during a"):
        fit(tmp_path, [DEOptCallback("val_loss", **options)], model=Grows)


def test_a_trainer_that_logs_nothing_is_refused() -> None:
    trainer = L.Trainer(
        barebones=True, accelerator="cpu", max_epochs=1, callbacks=[DEOptCallback("val_loss")]
    )
    with pytest.raises(MisconfigurationException, match=r"barebones=True\) logs nothing"):
        trainer.fit(TinyModel(), train_loader(), val_loader())


@pytest.mark.parametrize(
    ("monitor", "mode", "usual"),
    [
        ("val_acc", "min", "max"),
        ("val/ndcg@10", "min", "max"),
        ("Val Loss", "max", "min"),
        ("val_acc", "max", None),
        ("val_loss", "min", None),
        ("accuracy_loss", "max", None),
        ("score", "min", None),
    ],
)
def test_a_mode_that_would_unlearn_is_remarked_on(
    monitor: str, mode: Any, usual: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    DEOptCallback(monitor, mode)
    texts = [str(warning.message) for warning in recwarn]
    assert len(texts) == (usual is not None)
    assert all(repr(monitor) in text and f"Pass mode={usual!r}" in text for text in texts)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"train": DataLoader(Endless(), batch_size=8), "max_steps": 20}, True),
        ({"max_steps": 12}, True),
        ({"max_steps": 6, "accumulate_grad_batches": 2}, True),
        ({"max_epochs": 1}, True),
        ({"max_steps": 13}, False),
        ({"max_epochs": 2}, False),
        ({"fast_dev_run": True}, False),
        ({"train": DataLoader(Endless(), batch_size=8), "limit_train_batches": 9}, False),
    ],
)
def test_a_run_of_one_epoch_is_remarked_on(
    options: dict[str, Any], told: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    fit(tmp_path, [DEOptCallback("val_loss")], **options)
    texts = [str(warning.message) for warning in recwarn]
    assert any("this run may be over in its first" in text for text in texts) is told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"warmup_epochs": 3}, True),
        ({"every_n_epochs": 3}, True),
        ({"warmup_epochs": 2}, False),
        ({"every_n_epochs": 2}, False),
    ],
)
def test_a_run_without_a_generation_is_remarked_on(
    options: dict[str, Any], told: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    callback = DEOptCallback("val_loss", **options)
    fit(tmp_path, [callback], max_epochs=2)
    texts = [str(warning.message) for warning in recwarn]
    assert any("searches nothing in this run" in text for text in texts) is told
    assert bool(callback.history) is not told


class Unfreezes(TinyModel):
    """Adds a group to the optimizer, by hand, as its second epoch starts."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.first.requires_grad_(True)
            self.optimizers().add_param_group({"params": self.first.parameters()})

    def configure_optimizers(self) -> Any:
        self.first.requires_grad_(False)
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


@pytest.mark.parametrize(
    "options",
    [{}, {"probe_steps": 2}, {"carry": "hyperparameters"}, {"every_n_epochs": 9}],
)
def test_groups_that_are_added_during_the_fit_are_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    message = "has 3 parameter groups with 6 parameters, but had 2 with 4 .* requires_grad=False"
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, [DEOptCallback("val_loss", **options)], model=Unfreezes)


def test_no_checkpoint_is_written_of_groups_that_it_could_not_hold(tmp_path: Path) -> None:
    callback = DEOptCallback("val_loss", max_generations=1)
    _, trainer = fit(tmp_path, [callback], model=Unfreezes)  # nothing is searched by then
    with pytest.raises(MisconfigurationException, match="has 3 parameter groups"):
        trainer.save_checkpoint(tmp_path / "grown.ckpt")


def test_the_documented_messages_are_those_of_the_code() -> None:
    root = Path(__file__).parents[2]
    table = (root / "docs" / "compatibility.md").read_text().partition("## Refused")[2]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")]
    documented = [message for row in rows for message in re.findall(r'"([^"]+)"', row)]
    code = "".join(path.read_text() for path in (root / "deopt_lightning").rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", code).replace("{count}", "2")
    assert len(documented) >= 14
    assert [message for message in documented if message not in code] == []
