"""What probes train on and are judged by, and what the run sees of them."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from deopt_lightning import DEOptCallback
from deopt_lightning.snapshot import Snapshot
from tests.tiny import Recorder, TinyModel, csv_rows, fit, probing_callback, same_state, val_loader


def test_candidates_of_a_generation_share_start_batches_and_randomness(tmp_path: Path) -> None:
    callback = probing_callback(max_generations=1, local_search=None)
    model, _ = fit(tmp_path, [callback], model=Recorder, max_epochs=1)
    probes = np.array_split(np.arange(12, len(model.seen.steps)), 8)
    assert len(model.seen.steps) == 12 + 8 * 3
    for step in range(3):
        first = model.seen.steps[probes[0][step]]
        for probe in probes[1:]:
            other = model.seen.steps[probe[step]]
            assert other[0] == first[0]  # global step
            assert torch.equal(other[1], first[1])  # batch
            assert torch.equal(other[2], first[2])  # random draw
    starts = [model.seen.steps[probe[0]][3] for probe in probes]
    ends = [model.seen.steps[probe[2]][3] for probe in probes]
    assert all(torch.equal(start, starts[0]) for start in starts)
    assert not any(torch.equal(end, ends[0]) for end in ends[1:])


class Listener(L.Callback):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.heard.append("train")

    def on_validation_end(self, *args: Any) -> None:
        self.heard.append("validation")


def test_other_callbacks_hear_nothing_of_probes(tmp_path: Path) -> None:
    alone, beside = Listener(), Listener()
    fit(tmp_path / "plain", [alone], max_epochs=2)
    fit(tmp_path / "search", [probing_callback(), beside], max_epochs=2)
    assert beside.heard == alone.heard
    assert not set(vars(beside)) & set(dir(L.Callback)) - {"log", "log_dict"}


def test_nothing_is_logged_in_probe_steps(tmp_path: Path) -> None:
    class Logs(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            quiet = type(self.trainer.fit_loop.epoch_loop).__name__ == "ProbeEpochLoop"
            assert (self.log.__name__ == "_ignore") == quiet
            return super().training_step(batch, batch_idx)

    model, _ = fit(tmp_path, [probing_callback()], model=Logs, max_epochs=1)
    assert "log" not in vars(model)


def test_generations_draw_different_probe_batches(tmp_path: Path) -> None:
    callback = probing_callback(local_search=None)
    model, _ = fit(tmp_path, [callback], model=Recorder, max_epochs=2)
    first, second = model.seen.steps[12], model.seen.steps[12 + 24 + 12]
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("probe_steps", "accumulate", "batches", "steps"),
    [
        (2, 1, 2, 2),
        (2, 5, 10, 2),
        (0.5, 1, 6, 6),
        (0.5, 4, 6, 2),
        (1.5, 1, 18, 18),
        (15, 1, 15, 15),
    ],
)
def test_probe_steps_are_optimizer_steps_or_a_fraction_of_an_epoch(
    probe_steps: float, accumulate: int, batches: int, steps: int, tmp_path: Path
) -> None:
    callback = probing_callback(probe_steps=probe_steps, max_generations=1, local_search=None)
    model, _ = fit(
        tmp_path,
        [callback],
        model=Recorder,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
    )
    assert len(model.seen.steps) == 12 + 8 * batches
    assert callback.probe_steps_taken == 8 * steps
    assert callback.evaluations == callback.history[0]["evaluations"] == 8


def test_carried_weights_are_the_best_candidates_and_checkpoints_know_their_score(
    tmp_path: Path,
) -> None:
    callback = probing_callback(carry="weights")
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    model, trainer = fit(tmp_path, [callback, checkpoint], max_epochs=2)
    (validated,) = trainer.validate(model, val_loader(), verbose=False)
    best = -max(
        perf
        for key in ("target_perf", "trial_perf")
        for perf in callback.history[-1][key]
        if perf is not None
    )
    assert validated["val_loss"] == pytest.approx(best, rel=1e-6)
    scores = sorted(float(score) for score in checkpoint.best_k_models.values())
    assert scores[0] == pytest.approx(best, rel=1e-6)
    assert trainer.global_step == 24  # probes do not count


@pytest.mark.parametrize("carry", ["hyperparameters", "weights"])
def test_training_metrics_and_counters_know_nothing_of_probes(carry: str, tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", max_epochs=1)
    model, _ = fit(tmp_path / "search", [probing_callback(carry=carry)], max_epochs=1)
    left, right = (
        next(row for row in csv_rows(tmp_path / run) if row["train_error"])
        for run in ("plain", "search")
    )
    assert left["train_error"] == right["train_error"]
    assert left["train_loss_epoch"] == right["train_loss_epoch"]
    assert (model.steps_seen, model.losses) == (plain.steps_seen, plain.losses)


def test_carry_hyperparameters_restores_the_weights(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", max_epochs=1)
    callback = probing_callback(carry="hyperparameters")
    model, _ = fit(tmp_path / "search", [callback], max_epochs=1)
    assert same_state(plain.state_dict(), model.state_dict())


@pytest.mark.parametrize(("limit", "batches"), [(1, 1), (0.5, 2), (9, 4)])
def test_probes_may_validate_on_fewer_batches_than_what_is_adopted(
    limit: int | float, batches: int, tmp_path: Path
) -> None:
    validated: list[int] = []

    class Counts(TinyModel):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            validated.append(batch_idx)

    options = {"population_size": 4, "probe_steps": 2, "limit_probe_val_batches": limit}
    callback = DEOptCallback("val_loss", **options)
    module, trainer = fit(tmp_path, [callback], model=Counts, max_epochs=1, num_sanity_val_steps=0)
    (row,) = callback.history
    assert callback.evaluations == row["evaluations"]
    probes = row["evaluations"] - 1
    assert len(validated) == 4 + probes * batches + 4  # the epoch's, the probes', the adopted one's
    adopted = trainer.callback_metrics["val_loss"].clone()
    checked = trainer.validate(module, val_loader(), verbose=False)[0]["val_loss"]
    assert float(adopted) == checked


class EachIsBetter(TinyModel):
    """Every validation is the best so far; counts the snapshots in memory when one is taken."""

    most = validations = 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        EachIsBetter.validations += 1
        self.log("val_loss", -float(EachIsBetter.validations))

    def on_validation_epoch_end(self) -> None:
        pass

    def buffers(self, recurse: bool = True) -> Any:
        if type(self.trainer.fit_loop.epoch_loop).__name__ == "ProbeEpochLoop":
            EachIsBetter.most = max(EachIsBetter.most, snapshots_alive())
        return super().buffers(recurse)


def snapshots_alive() -> int:
    return sum(isinstance(thing, Snapshot) for thing in gc.get_objects())


def test_the_best_so_far_is_freed_before_a_better_one_is_kept(tmp_path: Path) -> None:
    callback = probing_callback(carry="weights", workers=0, local_search=None)
    gc.collect()
    before = snapshots_alive()  # of other tests
    fit(tmp_path, [callback], model=EachIsBetter, max_epochs=1)
    assert EachIsBetter.most == before + 1


class CountsSnapshots(TinyModel):
    alive: list[int]

    def on_train_epoch_start(self) -> None:
        self.alive.append(snapshots_alive())


@pytest.mark.parametrize("carry", ["weights", "hyperparameters"])
def test_a_generation_leaves_no_snapshot_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carry: str
) -> None:
    monkeypatch.setattr(CountsSnapshots, "alive", [], raising=False)
    callback = probing_callback(carry=carry)
    gc.collect()
    before = snapshots_alive()  # of other tests
    gc.disable()  # tensors are large, but only objects are counted, so it comes late
    try:
        fit(tmp_path, [callback], model=CountsSnapshots, max_epochs=3)
    finally:
        gc.enable()
    assert CountsSnapshots.alive == [before] * 3
