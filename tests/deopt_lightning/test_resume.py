"""A run that is stopped and resumed equals the unbroken one, bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from deopt_lightning import DEOptCallback
from deopt_lightning.layer_control import DECAY_BOUNDS_FROM_ZERO, LayerControl
from deopt_lightning.search_space import SearchSpace
from tests.tiny import ManualModel, TinyModel, fit, needs_settled_epochs, same_state, val_loader


def make_callback(**options: Any) -> DEOptCallback:
    kinds = {"population": {}, "chain": {"lr_bounds": (1e-4, 0.05)}}  # nothing undoes divergence
    kind = kinds.get(options.get("carry", ""), {"probe_steps": 2})
    return DEOptCallback(**{"monitor": "val_loss", "population_size": 4} | kind | options)


def scheduled(parameters: Any) -> Any:
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


def groups(parameters: Any) -> torch.optim.Optimizer:
    parameters = list(parameters)
    matrices = [p for p in parameters if p.ndim == 2]
    vectors = [p for p in parameters if p.ndim < 2]
    return torch.optim.AdamW([{"params": vectors, "weight_decay": 0.0}, {"params": matrices}], 0.01)


OPTIMIZERS = {"adam": None, "schedule": scheduled, "user groups": groups}


class Interrupt(L.Callback):
    """Stops a run hard at the start of an epoch, after the last checkpoint."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("power cut")


def comparable(callback: DEOptCallback) -> Any:
    state = callback.state_dict()
    state["rng"], state["search"] = str(state["rng"]), str(state["search"])
    state["history"] = [{**record, "seconds": 0} for record in state["history"]]
    return state


EPOCHS, STEPS = {"max_epochs": 4}, {"max_epochs": -1, "max_steps": 48}


@pytest.mark.parametrize(
    ("carry", "optimizer", "limit"),
    [
        ("weights", "adam", EPOCHS),
        ("weights", "schedule", EPOCHS),
        ("weights", "user groups", EPOCHS),
        ("hyperparameters", "schedule", EPOCHS),
        ("weights", "adam", STEPS),
        ("hyperparameters", "schedule", STEPS),
        ("population", "adam", EPOCHS),
        ("population", "schedule", EPOCHS),
        ("population", "user groups", STEPS),
        ("chain", "adam", EPOCHS),
        ("chain", "schedule", EPOCHS),
        ("chain", "user groups", STEPS),
    ],
)
def test_resumed_run_equals_the_unbroken_one(
    carry: str, optimizer: str, limit: dict[str, int], tmp_path: Path
) -> None:
    needs_settled_epochs(limit)
    build = partial(TinyModel, OPTIMIZERS[optimizer])
    unbroken = make_callback(carry=carry)
    model, _ = fit(tmp_path / "unbroken", [unbroken], model=build, **limit)

    checkpoint = ModelCheckpoint(tmp_path / "broken", save_last=True)
    callbacks = [make_callback(carry=carry), checkpoint, Interrupt()]
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "broken", callbacks, model=build, **limit)

    resumed = make_callback(carry=carry)
    again, _ = fit(
        tmp_path / "resumed",
        [resumed],
        model=build,
        ckpt_path=str(tmp_path / "broken" / "last.ckpt"),
        seed=99,
        **limit,
    )
    assert len(resumed.schedule) == 4
    assert len(resumed.history) == (0 if carry == "chain" else 4)
    assert comparable(resumed) == comparable(unbroken)
    assert same_state(model.state_dict(), again.state_dict())


def test_members_drop_the_gradients_that_the_trainer_drops_before_a_validation(
    tmp_path: Path,
) -> None:
    # The model leaves gradients over at an epoch's end, and no checkpoint has them.
    unbroken = make_callback(carry="population")
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    model, _ = fit(tmp_path, [unbroken, checkpoint], model=ManualModel)

    resumed = make_callback(carry="population")
    path = str(tmp_path / "epoch=1.ckpt")
    again, _ = fit(tmp_path / "resumed", [resumed], model=ManualModel, ckpt_path=path)
    assert comparable(resumed) == comparable(unbroken)
    assert same_state(model.state_dict(), again.state_dict())


def test_of_weights_alone_lightning_says_that_no_fit_goes_on_from_them(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_weights_only=True)
    fit(tmp_path, [make_callback(), checkpoint])
    with pytest.raises(KeyError, match="checkpoint contains only the model"):
        fit(tmp_path, [make_callback()], ckpt_path=str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_checkpoints_hold_the_users_own_groups(optimizer: str, tmp_path: Path) -> None:
    build = partial(TinyModel, OPTIMIZERS[optimizer])
    for name, callbacks in {"with": [make_callback()], "without": []}.items():
        checkpoint = ModelCheckpoint(tmp_path / name, save_last=True)
        fit(tmp_path / name, [*callbacks, checkpoint], model=build, max_epochs=2)
    files = {
        name: torch.load(tmp_path / name / "last.ckpt", weights_only=True)
        for name in ("with", "without")
    }
    left, right = (files[name]["optimizer_states"][0] for name in files)
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    assert files["with"]["lr_schedulers"] == files["without"]["lr_schedulers"]

    for source, callbacks in {"with": [], "without": [make_callback()]}.items():
        model, trainer = fit(
            tmp_path / "crossed" / source,
            callbacks,
            model=build,
            max_epochs=3,
            ckpt_path=str(tmp_path / source / "last.ckpt"),
        )
        assert trainer.global_step == 36


def test_resume_with_other_layers_or_bounds_is_refused(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(tmp_path, [make_callback(), checkpoint], max_epochs=1)
    path = str(tmp_path / "last.ckpt")
    for options, message in (
        ({"layers": ["*"]}, r"layers \['first', 'norm', 'last'\], this run has \['\*'\]"),
        ({"lr_bounds": (1e-4, 1.0)}, "search with low="),
        ({"population_size": 5}, "population_size=4, but this one has population_size=5"),
        ({"carry": "population"}, "written with carry='weights', this run has carry='population'"),
    ):
        with pytest.raises(MisconfigurationException, match=message):
            fit(tmp_path, [make_callback(**options)], ckpt_path=path, max_epochs=2)


def test_testing_a_checkpoint_does_not_overwrite_the_history(tmp_path: Path) -> None:
    callback = make_callback()
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    model, trainer = fit(tmp_path, [callback, checkpoint])
    trainer.validate(model, val_loader(), ckpt_path=str(tmp_path / "epoch=0.ckpt"), verbose=False)
    assert len(callback.history) == 3


@pytest.mark.parametrize("options", [{"carry": "population"}, {"carry": "chain"}, {}], ids=str)
@pytest.mark.parametrize("often", [{"check_val_every_n_epoch": 2}, {"val_check_interval": 0.5}])
def test_a_checkpoint_from_the_end_of_a_validation_is_gone_on_with(
    often: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """It is written before the generation, whose metrics it does not hold."""
    saved = ModelCheckpoint(
        tmp_path, monitor="val_loss", mode="min", save_last=True, save_on_train_epoch_end=False
    )
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, [make_callback(**options), saved, Interrupt()], max_epochs=4, **often)
    callback = make_callback(**options)
    last = str(tmp_path / "last.ckpt")
    _, trainer = fit(tmp_path, [callback], max_epochs=4, ckpt_path=last, **often)
    assert trainer.current_epoch == 4
    assert callback.schedule[-1]["epoch"] == 3


@pytest.mark.parametrize("carry", ["population", "weights", "chain"])
def test_a_checkpoint_from_before_no_decay_groups_had_bounds_of_their_own_is_resumed(
    carry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_it_was(control: LayerControl, *args: Any) -> Any:
        lr_bounds = [(0.01 / 1000, 0.01 * args[-2])] * 3 if args[0] is None else args[0]
        space = SearchSpace.for_layers(control.layer_names, lr_bounds, DECAY_BOUNDS_FROM_ZERO)
        return space, space.encode([0.01] * 3 + [0.0] * 3)

    build = partial(TinyModel, groups)
    with monkeypatch.context() as patch:
        patch.setattr(LayerControl, "search_space", as_it_was)
        _, trainer = fit(tmp_path, [make_callback(carry=carry)], model=build, max_epochs=2)
    trainer.save_checkpoint(path := str(tmp_path / "earlier.ckpt"))
    resumed = make_callback(carry=carry)
    fit(tmp_path, [resumed], model=build, ckpt_path=path)
    assert [row["epoch"] for row in resumed.schedule] == [0, 1, 2]
    space = resumed._search.search.space
    assert list(zip(space.low[3:], space.high[3:], strict=True)) == [DECAY_BOUNDS_FROM_ZERO] * 3
