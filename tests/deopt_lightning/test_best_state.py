"""A population all of whose members collapse goes back to the best state of all generations."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from deopt_lightning import DEOptCallback
from deopt_lightning.best_state import BestState
from deopt_lightning.held_state import HeldState
from tests.deopt_lightning.test_resume import Interrupt, comparable
from tests.tiny import SilentDryRun, TinyModel, fit, same_state, val_loader


def after(*perfs: float) -> BestState:
    best = BestState()
    for epoch, perf in enumerate(perfs):
        perfs = np.array([perf - 0.05, np.nan, perf])
        best.note(perfs, HeldState(None, home=epoch), np.array([perf]), epoch)
    return best


@pytest.mark.parametrize(
    ("perfs", "perf", "collapsed"),
    [
        ([0.1, 0.5, 0.7, 0.8, 0.9], 0.49, True),  # .8 were gained
        ([0.1, 0.5, 0.7, 0.8, 0.9], 0.51, False),
        ([-2.3, -1.0, -0.5, -0.4], -3000.0, True),
        ([0.50, 0.52, 0.49, 0.51, 0.50], 0.46, False),  # noise: no gain to lose
        ([0.5, 0.5, 0.5, 0.5], 0.46, False),
        ([0.1, 0.9], 0.06, False),  # too early to know what is usual
        ([0.1, 0.9], 0.04, True),  # below the whole first generation
        ([0.1, 0.9], -math.inf, True),
        ([], -math.inf, False),  # nothing to go back to
    ],
)
def test_half_of_a_clear_gain_is_lost(perfs: list[float], perf: float, collapsed: bool) -> None:
    assert after(*perfs).has_collapsed(perf) is collapsed


def test_the_first_of_the_best_generations_is_kept() -> None:
    best = after(0.1, 0.9, 0.3, 0.9)
    assert best.epoch == 1
    assert best.state == HeldState(None, home=1)
    assert best.vector.tolist() == [0.9]


class Collapses(TinyModel):
    """Training ruins every member in the fourth epoch, and in no other."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.current_epoch == 3 and batch_idx == 11:
            with torch.no_grad():
                self.last.weight.add_(100.0)
            return self.factor * super().training_step(batch, batch_idx)
        return super().training_step(batch, batch_idx)


def make_callback(**options: Any) -> DEOptCallback:
    return DEOptCallback("val_loss", **options)


def best_epoch(callback: DEOptCallback, until: int) -> int:
    return int(np.argmax([max(record["perf"]) for record in callback.history[:until]]))


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_weights_and_vector_go_back_to_the_best(factor: float, tmp_path: Path) -> None:
    callback = make_callback()
    build = partial(Collapses, factor)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    with pytest.warns(UserWarning, match="after epoch 3 all members are far worse than the best"):
        model, trainer = fit(tmp_path, [callback, checkpoint], model=build, max_epochs=4)
    record, back_to = callback.history[3], callback.history[3]["back_to"]
    assert back_to == best_epoch(callback, 3)
    best = callback.history[back_to]
    assert all(perf is None or perf < -100 for perf in record["perf"])
    assert record["parents"] is None
    (validated,) = trainer.validate(model, val_loader(), verbose=False)
    assert validated["val_loss"] == pytest.approx(-max(best["perf"]), rel=1e-6)
    scores = [float(score) for score in checkpoint.best_k_models.values()]
    assert max(scores) < 100  # the last epoch's checkpoint has the weights that it is ranked by
    values = best["members"][int(np.argmax(best["perf"]))]
    groups = trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == pytest.approx(values[:3])


def test_new_members_begin_around_the_best_vector_from_its_weights(tmp_path: Path) -> None:
    callback = make_callback()
    with pytest.warns(UserWarning, match="far worse"):
        fit(tmp_path, [callback], model=Collapses, max_epochs=5)
    best = callback.history[callback.history[3]["back_to"]]
    values = np.array(best["members"][int(np.argmax(best["perf"]))][:3])
    own, low, high = (np.array(member[:3]) for member in callback.history[4]["members"][:3])
    assert own == pytest.approx(values)
    assert low == pytest.approx(np.maximum(values / 10, 1e-5))
    assert high == pytest.approx(np.minimum(values * 10, 1.0))
    assert max(callback.history[4]["perf"]) > -100
    assert all(record["back_to"] is None for i, record in enumerate(callback.history) if i != 3)


def test_a_dry_run_lets_the_model_collapse(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", model=Collapses, max_epochs=4)
    dry = SilentDryRun(carry="population", probe_steps=None)
    model, _ = fit(tmp_path / "dry", [dry], model=Collapses, max_epochs=4)
    assert same_state(plain.state_dict(), model.state_dict())
    assert [record["back_to"] for record in dry.history] == [None] * 4


@pytest.mark.filterwarnings("ignore:.*far worse:UserWarning")
def test_a_resumed_run_goes_back_to_the_same_state(tmp_path: Path) -> None:
    """The collapse comes after the interruption, the best state before it."""
    unbroken = make_callback()
    model, _ = fit(tmp_path / "unbroken", [unbroken], model=Collapses, max_epochs=5)
    assert unbroken.history[3]["back_to"] is not None
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    broken = [make_callback(), checkpoint, Interrupt()]
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "broken", broken, model=Collapses, max_epochs=5)
    resumed = make_callback()
    path = str(tmp_path / "last.ckpt")
    again, _ = fit(tmp_path / "resumed", [resumed], model=Collapses, max_epochs=5, ckpt_path=path)
    assert same_state(model.state_dict(), again.state_dict())
    assert comparable(unbroken) == comparable(resumed)
