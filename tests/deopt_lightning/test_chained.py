"""carry="chain": the Trainer's own epochs train one trial after another, nothing is restored."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from deopt_lightning import DEOptCallback
from tests.tiny import TinyModel, ValuesPerEpoch, fit, same_state


def make_callback(**options: Any) -> DEOptCallback:
    return DEOptCallback(
        **{"monitor": "val_loss", "population_size": 4, "carry": "chain"} | options
    )


def test_each_epoch_trains_with_another_trial_and_its_validation_decides(tmp_path: Path) -> None:
    callback, seen = make_callback(), ValuesPerEpoch()
    _, trainer = fit(tmp_path, [callback, seen], max_epochs=9, num_sanity_val_steps=0)
    assert seen.lrs[0] == [0.01] * 3
    assert [record["epoch"] for record in callback.history] == [4, 8]
    for number, record in enumerate(callback.history):
        first = 4 * number  # the epoch whose validation opens the round
        assert record["first_perf"] == pytest.approx(-seen.losses[first])
        assert record["trial_perf"] == pytest.approx([-x for x in seen.losses[first + 1 :][:4]])
        assert [row[:3] for row in record["trials"]] == [
            pytest.approx(lrs) for lrs in seen.lrs[first + 1 :][:4]
        ]
        best = [max([record["first_perf"], *record["trial_perf"][:k]]) for k in range(4)]
        assert record["accepted"] == [
            perf >= mark for perf, mark in zip(record["trial_perf"], best, strict=True)
        ]
    assert (callback.probe_steps_taken, callback.evaluations) == (0, 0)
    assert trainer.global_step == 9 * 12
    assert json.loads(json.dumps(callback.history, allow_nan=False)) == callback.history


def test_nothing_is_restored_so_equal_values_train_as_without(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", max_epochs=6)
    callback = make_callback(lr_bounds=(0.01, 0.01), weight_decay_bounds=(0.0, 0.0))
    model, _ = fit(tmp_path / "chain", [callback], max_epochs=6)
    assert same_state(plain.state_dict(), model.state_dict())
    assert len(callback.history) == 1


def test_weights_that_the_trainer_did_not_validate_are_validated_quietly(tmp_path: Path) -> None:
    options = {"max_epochs": 6, "check_val_every_n_epoch": 2}
    plain, _ = fit(tmp_path / "plain", **options)
    callback = make_callback(lr_bounds=(0.01, 0.01), weight_decay_bounds=(0.0, 0.0))
    model, _ = fit(tmp_path / "chain", [callback], **options)
    assert same_state(plain.state_dict(), model.state_dict())
    assert callback.evaluations == 3
    assert len(set(callback.history[0]["trial_perf"])) > 1


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"warmup_epochs": 3}, [6]),
        ({"every_n_epochs": 2}, [9]),
        ({"max_generations": 1}, [4]),
    ],
)
def test_rounds_run_when_they_are_due(
    options: dict[str, Any], epochs: list[int], tmp_path: Path
) -> None:
    callback = make_callback(**options)
    fit(tmp_path, [callback], max_epochs=10)
    assert [record["epoch"] for record in callback.history] == epochs


def test_after_the_last_round_the_last_accepted_values_stay(tmp_path: Path) -> None:
    callback = make_callback(max_generations=1)
    fit(tmp_path, [callback], max_epochs=8)
    (record,) = callback.history
    accepted = [t for t, yes in zip(record["trials"], record["accepted"], strict=True) if yes]
    expected = accepted[-1] if accepted else [0.01] * 3 + [0.0] * 3
    for row in callback.schedule[5:]:
        values = [*row["lr"].values(), *row["weight_decay"].values()]
        assert values == pytest.approx(expected)


class Interrupt(L.Callback):
    """Stops a run at the start of an epoch, after the last checkpoint."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("epoch", [1, 3, 5, 6])
@pytest.mark.parametrize("generations", [None, 1])
def test_a_run_resumed_anywhere_in_a_round_equals_the_unbroken_one(
    epoch: int, generations: int | None, tmp_path: Path
) -> None:
    make = partial(make_callback, max_generations=generations)
    unbroken = make()
    model, _ = fit(tmp_path / "unbroken", [unbroken], max_epochs=9)
    checkpoint = ModelCheckpoint(tmp_path / "broken", save_last=True)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "broken", [make(), checkpoint, Interrupt(epoch)], max_epochs=9)
    resumed = make()
    path = str(tmp_path / "broken" / "last.ckpt")
    again, _ = fit(tmp_path / "resumed", [resumed], ckpt_path=path, max_epochs=9, seed=99)
    assert same_state(model.state_dict(), again.state_dict())
    assert resumed.history == unbroken.history
    assert resumed.schedule == unbroken.schedule


def test_a_trial_that_diverges_is_not_restored_and_never_accepted(tmp_path: Path) -> None:
    """The schedule has no way back; a run that must survive carries weights instead."""

    class Diverges(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if self.current_epoch == 2 else loss

    callback = make_callback()
    fit(tmp_path, [callback], model=Diverges, max_epochs=5)
    (record,) = callback.history
    assert record["trial_perf"][1:] == [None, None, None]
    assert record["accepted"][1:] == [False, False, False]


def test_a_checkpoint_of_another_form_is_refused(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(tmp_path, [make_callback(), checkpoint], max_epochs=1)
    path = str(tmp_path / "last.ckpt")
    with pytest.raises(MisconfigurationException, match="written with carry='chain'"):
        fit(tmp_path, [make_callback(carry="weights")], ckpt_path=path, max_epochs=2)
