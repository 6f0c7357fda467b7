"""The search beside other callbacks that average weights, and in manual optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch.optim.swa_utils import AveragedModel

from deopt_lightning import DEOptCallback
from tests.tiny import (
    ManualModel,
    SilentDryRun,
    TinyModel,
    fit,
    moving_average,
    same_state,
    val_loader,
)


def make_callback(**options: Any) -> DEOptCallback:
    probes = {} if options.get("carry") == "population" else {"probe_steps": 5}
    return DEOptCallback(**{"monitor": "val_loss", "population_size": 4} | probes | options)


def average_of(callback: L.Callback) -> AveragedModel:
    (model,) = (v for v in vars(callback).values() if isinstance(v, AveragedModel))
    return model


# --- averages that validation sees ---------------------------------------------------------------


@pytest.mark.parametrize("carry", ["weights", "population"])
@pytest.mark.parametrize("first", [False, True])
def test_scores_are_those_of_the_averaged_weights(carry: str, first: bool, tmp_path: Path) -> None:
    search = make_callback(carry=carry)
    average = moving_average()
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    callbacks = [average, search] if first else [search, average]
    model, trainer = fit(tmp_path, [*callbacks, checkpoint], max_epochs=2)
    (validated,) = trainer.validate(model, val_loader(), verbose=False)  # the average, by now
    assert float(trainer.global_step) == 24
    best = min(float(score) for score in checkpoint.best_k_models.values())
    last = search.history[-1]
    perf = last["perf"] if carry == "population" else last["target_perf"] + last["trial_perf"]
    assert validated["val_loss"] == pytest.approx(-max(perf), rel=1e-6)
    assert best == pytest.approx(min(float(validated["val_loss"]), best), rel=1e-6)
    (saved,) = (p for p, score in checkpoint.best_k_models.items() if float(score) == best)
    stored = torch.load(saved, weights_only=True)
    again = TinyModel()
    again.load_state_dict(stored["state_dict"])
    (loaded,) = trainer.validate(again, val_loader(), verbose=False)
    assert loaded["val_loss"] == pytest.approx(best, rel=1e-6)


def test_the_average_goes_on_with_the_probe_that_was_adopted(tmp_path: Path) -> None:
    """After n steps of the Trainer, the average has taken in n steps and the adopted probes'."""
    search, average = make_callback(), moving_average()
    fit(tmp_path, [search, average])
    assert int(average_of(average).n_averaged) == 36 + 3 * 5
    plain = moving_average()
    fit(tmp_path / "dry", [SilentDryRun(), plain])
    assert int(average_of(plain).n_averaged) == 36


def test_plain_weights_are_compared_while_the_average_stands_still(tmp_path: Path) -> None:
    search = make_callback()
    average = moving_average(update_starting_at_step=1000)
    _, trainer = fit(tmp_path, [search, average], max_epochs=1)
    (record,) = search.history
    perf = record["target_perf"] + record["trial_perf"]
    assert len(set(perf)) == len(perf)
    # The run's metric is still the average's, which no probe has changed.
    assert float(trainer.callback_metrics["val_loss"]) != pytest.approx(-max(perf))


@pytest.mark.parametrize("carry", ["weights", "population"])
def test_resumed_run_with_an_average_equals_the_unbroken_one(carry: str, tmp_path: Path) -> None:
    def callbacks() -> list[L.Callback]:
        return [make_callback(carry=carry), moving_average()]

    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    unbroken, _ = fit(tmp_path / "unbroken", [*callbacks(), checkpoint], max_epochs=4)
    resumed, _ = fit(
        tmp_path / "resumed", callbacks(), max_epochs=4, ckpt_path=str(tmp_path / "epoch=1.ckpt")
    )
    assert same_state(unbroken.state_dict(), resumed.state_dict())


# --- stochastic weight averaging -----------------------------------------------------------------


def test_a_learned_lr_multiplies_the_schedule_of_stochastic_averaging(tmp_path: Path) -> None:
    search = make_callback()
    swa = StochasticWeightAveraging(0.02, 2, annealing_epochs=1)
    _, trainer = fit(tmp_path, [search, swa], max_epochs=4)
    assert [record["epoch"] for record in search.history] == [0, 1, 2, 3]  # none in the last pass
    groups = trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.02] * 3)
    learned = np.array([group["lr_multiplier"] for group in groups])
    assert learned * 0.01 == pytest.approx(
        list(search._control.by_layer(search._values)["lr"].values())
    )
    assert not np.allclose(learned, 1)


@pytest.mark.parametrize("with_search", [True, False])
def test_stochastic_averaging_resumes_with_and_without_the_search(
    with_search: bool, tmp_path: Path
) -> None:
    def callbacks(search: bool) -> list[L.Callback]:
        swa = StochasticWeightAveraging([0.02], 2, annealing_epochs=2)
        return [*([make_callback(carry="hyperparameters")] if search else []), swa]

    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    plain, unbroken = fit(tmp_path / "plain", [*callbacks(with_search), checkpoint], max_epochs=5)
    path = str(tmp_path / "epoch=2.ckpt")
    options = {"max_epochs": 5, "ckpt_path": path}
    _, trainer = fit(tmp_path / "other", callbacks(not with_search), **options)
    assert trainer.global_step == unbroken.global_step
    assert {group["swa_lr"] for group in trainer.optimizers[0].param_groups} == {0.02}
    if with_search:
        same, _ = fit(tmp_path / "same", callbacks(True), **options)
        assert same_state(plain.state_dict(), same.state_dict())


# --- manual optimization -------------------------------------------------------------------------


@pytest.mark.parametrize("carry", ["weights", "hyperparameters", "population"])
def test_all_optimizers_of_a_manual_module_are_learned(carry: str, tmp_path: Path) -> None:
    search = make_callback(carry=carry)
    _, trainer = fit(tmp_path, [search], model=ManualModel)
    assert trainer.global_step == 3 * 2 * 2  # epochs, steps, optimizers
    assert list(search.schedule[0]["lr"]) == ["first", "norm", "last"]
    assert list(search.schedule[0]["lr"].values()) == pytest.approx([0.01, 0.01, 0.1])
    body, head = (optimizer.param_groups for optimizer in trainer.optimizers)
    assert [group["name"] for group in body + head] == ["first", "norm", "last"]
    learned = search._control.by_layer(search._values)["lr"]
    own = {"first": 0.01, "norm": 0.01, "last": 0.1}
    for group in body + head:
        name = group["name"]
        assert group["lr_multiplier"] * own[name] == pytest.approx(learned[name])


@pytest.mark.parametrize(("index", "layers"), [(0, ["first", "norm"]), (1, ["last"])])
def test_one_optimizer_can_be_chosen(index: int, layers: list[str], tmp_path: Path) -> None:
    search = make_callback(optimizer_index=index)
    _, trainer = fit(tmp_path, [search], model=ManualModel, max_epochs=2)
    assert list(search.schedule[1]["lr"]) == layers
    (untouched,) = trainer.optimizers[1 - index].param_groups
    assert "lr_multiplier" not in untouched


def test_a_layer_in_two_optimizers_counts_for_each(tmp_path: Path) -> None:
    search = make_callback(layers={"all": "*"})
    fit(tmp_path, [search], model=ManualModel, max_epochs=2)
    assert list(search.schedule[1]["lr"]) == ["all/0", "all/1"]
    assert search.schedule[1]["lr"]["all/0"] != search.schedule[1]["lr"]["all/1"]


class Even(ManualModel):
    """Leaves no gradients over, which Lightning's checkpoints do not hold."""

    accumulate = 4


@pytest.mark.parametrize("options", [{}, {"optimizer_index": 1}, {"carry": "population"}])
def test_a_manual_run_resumes_exactly(options: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")

    model, _ = fit(tmp_path / "a", [make_callback(**options), checkpoint], model=Even)
    path = str(tmp_path / "epoch=0.ckpt")
    again, _ = fit(tmp_path / "b", [make_callback(**options)], model=Even, ckpt_path=path)
    assert same_state(model.state_dict(), again.state_dict())
    _, trainer = fit(tmp_path / "without", model=Even, ckpt_path=path)
    assert [len(optimizer.param_groups) for optimizer in trainer.optimizers] == [1, 1]


def test_a_dry_run_of_members_leaves_no_trace_in_a_manual_run(tmp_path: Path) -> None:
    dry = SilentDryRun(carry="population", probe_steps=None)
    plain, _ = fit(tmp_path / "plain", model=ManualModel)
    model, _ = fit(tmp_path / "search", [dry], model=ManualModel)
    assert same_state(plain.state_dict(), model.state_dict())
    assert len(dry.history) == 3


# --- tuners --------------------------------------------------------------------------------------


class Tunable(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.lr = 1e-6

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def test_the_search_starts_from_the_lr_that_a_finder_found(tmp_path: Path) -> None:
    search = make_callback()
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
    plain, trainer = fit(tmp_path / "plain", [finder], model=Tunable, max_epochs=2)
    if trainer.optimizers[0].param_groups[0]["lr"] != plain.lr:
        pytest.skip("this version of Lightning loses the lr that its finder has found")
    model, _ = fit(tmp_path / "search", [search, finder], model=Tunable, max_epochs=2)
    assert model.lr == plain.lr != 1e-6
    assert search.schedule[0]["lr"]["first"] == pytest.approx(model.lr)
    assert len(search.history) == 2
