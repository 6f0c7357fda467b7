"""What the callback does to a run that it may change."""

from __future__ import annotations

import csv
import gc
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar

from deopt_lightning import DEOptCallback
from deopt_lightning.snapshot import Snapshot
from tests.tiny import TinyModel, fit, same_state, val_loader

LAYERS = ["first", "norm", "last"]


def make_callback(**options: Any) -> DEOptCallback:
    return DEOptCallback(
        **{"monitor": "val_loss", "population_size": 4, "probe_steps": 3} | options
    )


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


class Recorder(TinyModel):
    """Notes every batch, draw and weight that a training step sees."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        object.__setattr__(self, "seen", Seen())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        weight = self.first.weight.detach().clone()
        self.seen.steps.append((self.trainer.global_step, batch[0].clone(), torch.rand(1), weight))
        return super().training_step(batch, batch_idx)


class Seen:
    """Not a plain value, so a snapshot leaves it alone."""

    def __init__(self) -> None:
        self.steps: list[Any] = []


def test_one_argument_is_enough(tmp_path: Path) -> None:
    callback = DEOptCallback(monitor="val_loss")
    fit(tmp_path, [callback])
    assert [row["epoch"] for row in callback.history] == [0, 1, 2]
    assert [row["epoch"] for row in callback.schedule] == [0, 1, 2]
    assert callback.history[0]["names"] == [
        f"{kind}/{layer}" for kind in ("lr", "weight_decay") for layer in LAYERS
    ]
    assert callback.history[0]["members"][0] == pytest.approx([0.01] * 3 + [0.0] * 3)


def test_default_bounds_reach_ten_times_up_and_a_thousand_times_down(tmp_path: Path) -> None:
    callback = make_callback(population_size=40, max_generations=1, probe_steps=1)
    build = partial(TinyModel, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    fit(tmp_path, [callback], model=build, max_epochs=1)
    values = np.array(callback.history[0]["targets"])
    lr, decay = values[:, :3], values[:, 3:]
    assert 1e-5 <= lr.min() < 3e-5
    assert 0.05 < lr.max() <= 0.1
    assert decay.min() == 0  # exactly zero is among the first 40 vectors
    assert 1e-4 <= decay[decay > 0].min() < 3e-4
    assert 0.5 < decay.max() <= 1


def test_by_default_members_may_reach_a_hundred_times_the_own_lr(tmp_path: Path) -> None:
    callback = DEOptCallback("val_loss", max_generations=1)
    fit(tmp_path, [callback], max_epochs=1)
    space = callback._search.search.space
    assert space.low[:3] == pytest.approx([0.01 / 1000] * 3)
    assert space.high[:3] == pytest.approx([0.01 * 100] * 3)
    lrs = np.array(callback.history[0]["members"])[:, :3] / 0.01
    assert lrs[0] == pytest.approx([1.0] * 3)
    assert lrs[1] == pytest.approx([0.1] * 3)
    assert lrs[2] == pytest.approx([10.0] * 3)


def test_next_epoch_trains_with_the_best_target(tmp_path: Path) -> None:
    callback = make_callback()
    _, trainer = fit(tmp_path, [callback])
    for record, row in zip(callback.history, callback.schedule[1:], strict=False):
        perf = np.where(record["accepted"], record["trial_perf"], record["target_perf"]).astype(
            float
        )
        survivors = [
            record["trials" if accepted else "targets"][i]
            for i, accepted in enumerate(record["accepted"])
        ]
        best = survivors[int(np.argmax(perf))]
        assert [*row["lr"].values(), *row["weight_decay"].values()] == pytest.approx(best)
    groups = {g["name"]: g for g in trainer.optimizers[0].param_groups}
    assert list(groups) == LAYERS
    last = callback._control.by_layer(callback._values)
    assert {name: g["lr"] for name, g in groups.items()} == last["lr"]
    assert {name: g["weight_decay"] for name, g in groups.items()} == last["weight_decay"]


def test_candidates_of_a_generation_share_start_batches_and_randomness(tmp_path: Path) -> None:
    callback = make_callback(max_generations=1, local_search=None)
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
    fit(tmp_path / "search", [make_callback(), beside], max_epochs=2)
    assert beside.heard == alone.heard
    assert not set(vars(beside)) & set(dir(L.Callback)) - {"log", "log_dict"}


def test_nothing_is_logged_in_probe_steps(tmp_path: Path) -> None:
    class Logs(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            quiet = type(self.trainer.fit_loop.epoch_loop).__name__ == "ProbeEpochLoop"
            assert (self.log.__name__ == "_ignore") == quiet
            return super().training_step(batch, batch_idx)

    model, _ = fit(tmp_path, [make_callback()], model=Logs, max_epochs=1)
    assert "log" not in vars(model)


def test_generations_draw_different_probe_batches(tmp_path: Path) -> None:
    callback = make_callback(local_search=None)
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
    callback = make_callback(probe_steps=probe_steps, max_generations=1, local_search=None)
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


def test_mode_max_and_min_agree_on_a_negated_metric(tmp_path: Path) -> None:
    class Negated(TinyModel):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.log("gain", -self.trainer.callback_metrics["val_loss"])

    low, high = make_callback(), make_callback(monitor="gain", mode="max")
    left, _ = fit(tmp_path / "min", [low], model=Negated)
    right, _ = fit(tmp_path / "max", [high], model=Negated)
    assert low.history[0]["target_perf"] == pytest.approx(high.history[0]["target_perf"])
    assert same_state(left.state_dict(), right.state_dict())


def test_carried_weights_are_the_best_candidates_and_checkpoints_know_their_score(
    tmp_path: Path,
) -> None:
    callback = make_callback(carry="weights")
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
    model, _ = fit(tmp_path / "search", [make_callback(carry=carry)], max_epochs=1)
    left, right = (
        next(row for row in rows(tmp_path / run) if row["train_error"])
        for run in ("plain", "search")
    )
    assert left["train_error"] == right["train_error"]
    assert left["train_loss_epoch"] == right["train_loss_epoch"]
    assert (model.steps_seen, model.losses) == (plain.steps_seen, plain.losses)


def test_carry_hyperparameters_restores_the_weights(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", max_epochs=1)
    callback = make_callback(carry="hyperparameters")
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


def test_runs_are_repeatable_and_seeds_differ(tmp_path: Path) -> None:
    runs = [fit(tmp_path / str(i), [make_callback(seed=i // 2)])[0] for i in range(3)]
    states = [run.state_dict() for run in runs]
    assert same_state(states[0], states[1])
    assert not same_state(states[0], states[2])


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"every_n_epochs": 2}, [1, 3]),
        ({"warmup_epochs": 3}, [2, 3, 4]),
        ({"max_generations": 2}, [0, 1]),
        ({"warmup_epochs": 2, "every_n_epochs": 2, "max_generations": 1}, [1]),
    ],
)
def test_generations_run_when_they_are_due(
    options: dict[str, Any], epochs: list[int], tmp_path: Path
) -> None:
    callback = make_callback(probe_steps=1, **options)
    fit(tmp_path, [callback], max_epochs=5)
    assert [record["epoch"] for record in callback.history] == epochs


def test_values_are_logged_in_the_row_of_the_epoch(tmp_path: Path) -> None:
    callback = make_callback()
    fit(tmp_path, [callback])
    logged = [row for row in rows(tmp_path) if row["deopt/accepted"]]
    assert len(logged) == 3
    for row, record, schedule in zip(
        logged, callback.history, [*callback.schedule[1:], None], strict=True
    ):
        assert row["train_loss_epoch"]
        assert float(row["deopt/accepted"]) == sum(record["accepted"])
        perf = [p for k in ("target_perf", "trial_perf") for p in record[k] if p is not None]
        assert float(row["deopt/best"]) == pytest.approx(-max(perf), rel=1e-5)
        assert 0 < float(row["deopt/spread"]) < 0.5
        if schedule:
            for layer in LAYERS:
                assert float(row[f"deopt/lr/{layer}"]) == pytest.approx(schedule["lr"][layer])
                assert float(row[f"deopt/weight_decay/{layer}"]) == pytest.approx(
                    schedule["weight_decay"][layer]
                )


def test_learning_rate_monitor_shows_the_layers(tmp_path: Path) -> None:
    fit(tmp_path, [make_callback(), LearningRateMonitor("epoch", log_weight_decay=True)])
    shown = [row for row in rows(tmp_path) if row["lr-Adam/first"]]
    assert len({row["lr-Adam/last"] for row in shown}) > 1
    assert "lr-Adam/norm-weight_decay" in shown[0]


def test_layer_patterns_reach_the_search(tmp_path: Path) -> None:
    callback = make_callback(layers={"all": "*"})
    fit(tmp_path, [callback], max_epochs=1)
    assert callback.history[0]["names"] == ["lr/all", "weight_decay/all"]


def test_bounds_hold_for_every_candidate(tmp_path: Path) -> None:
    callback = make_callback(lr_bounds=(0.02, 0.03), weight_decay_bounds=(1e-4, 1e-3))
    fit(tmp_path, [callback])
    for record in callback.history:
        values = np.array(record["targets"] + record["trials"])
        assert (values[:, :3] >= 0.02 * (1 - 1e-9)).all()
        assert (values[:, :3] <= 0.03 * (1 + 1e-9)).all()
        decay = values[:, 3:]
        assert ((decay == 0) | ((decay >= 1e-4 * (1 - 1e-9)) & (decay <= 1e-3 * (1 + 1e-9)))).all()


@pytest.mark.parametrize("pinned", [0.0, 1e-3])
def test_equal_bounds_pin_a_value(pinned: float, tmp_path: Path) -> None:
    callback = make_callback(weight_decay_bounds=(pinned, pinned))
    fit(tmp_path, [callback])
    values = np.array([v for r in callback.history for v in r["targets"] + r["trials"]])
    assert (values[:, 3:] == pinned).all()
    assert len(np.unique(values[:, 0])) > 4


def test_history_is_plain_data(tmp_path: Path) -> None:
    callback = make_callback()
    fit(tmp_path, [callback])
    assert json.loads(json.dumps(callback.history, allow_nan=False)) == callback.history
    assert all(record["seconds"] > 0 for record in callback.history)


def test_diverging_candidates_lose_and_the_run_goes_on(tmp_path: Path) -> None:
    """With lr up to 1e30 most probes end in NaN or infinite weights."""
    callback = make_callback(lr_bounds=(1e-3, 1e30), population_size=6)
    build = partial(TinyModel, lambda p: torch.optim.SGD(p, lr=0.01))
    model, trainer = fit(tmp_path, [callback], model=build)
    perf = [p for r in callback.history for p in r["target_perf"] + r["trial_perf"]]
    assert None in perf
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert math.isfinite(float(trainer.callback_metrics["val_loss"]))
    probes = callback.probe_steps_taken / 3
    assert callback.evaluations < probes  # a diverged probe is not validated


def test_nan_loss_in_every_probe_changes_nothing_but_warns(tmp_path: Path) -> None:
    class NanInProbes(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return (
                loss * float("nan")
                if type(self.trainer.fit_loop.epoch_loop).__name__ == ("ProbeEpochLoop")
                else loss
            )

    callback = make_callback()
    plain, _ = fit(tmp_path / "plain")
    with pytest.warns(UserWarning, match="every candidate diverged after epoch 0"):
        model, _ = fit(tmp_path / "search", [callback], model=NanInProbes)
    assert same_state(plain.state_dict(), model.state_dict())
    assert callback.schedule[-1]["lr"] == dict.fromkeys(LAYERS, 0.01)
    assert all(p is None for p in callback.history[0]["target_perf"])


def test_floating_point_error_in_validation_counts_as_divergence(tmp_path: Path) -> None:
    class Strict(TinyModel):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if self(batch[0]).abs().max() > 100:
                raise FloatingPointError("scores out of range")
            super().validation_step(batch, batch_idx)

    callback = make_callback(lr_bounds=(1e-3, 1e3), population_size=8)
    build = partial(Strict, lambda p: torch.optim.SGD(p, lr=0.01))
    fit(tmp_path, [callback], model=build, max_epochs=1)
    perf = callback.history[0]["target_perf"]
    assert None in perf
    assert any(p is not None for p in perf)


def test_an_error_in_a_probe_leaves_weights_and_search_as_they_were(tmp_path: Path) -> None:
    class Fails(TinyModel):
        calls = 0

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            Fails.calls += 1
            if Fails.calls == 30:
                raise RuntimeError("out of luck")
            super().validation_step(batch, batch_idx)

    callback = make_callback()
    built: list[TinyModel] = []

    def build() -> TinyModel:
        built.append(Fails())
        return built[0]

    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tmp_path / "search", [callback], model=build)
    plain, _ = fit(tmp_path / "plain", max_epochs=1)
    assert same_state(plain.state_dict(), built[0].state_dict())
    assert callback.history == []
    assert callback._search is not None
    assert callback._search.state_dict()["told"] == []
    assert all(module.training for module in built[0].modules())


def test_progress_bar_shows_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [make_callback(), TQDMProgressBar()], enable_progress_bar=True, max_epochs=1)
    assert "DE-Opt generation" in "".join(capsys.readouterr())


def test_silent_without_a_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [make_callback()], max_epochs=1)
    assert "DE-Opt generation" not in "".join(capsys.readouterr())


def test_fast_dev_run_does_not_search(tmp_path: Path) -> None:
    callback = make_callback()
    fit(tmp_path, [callback], fast_dev_run=True)
    assert callback.history == []


def test_a_callback_can_be_used_again(tmp_path: Path) -> None:
    callback = make_callback()
    first, _ = fit(tmp_path / "a", [callback])
    history = [{**record, "seconds": 0} for record in callback.history]
    second, _ = fit(tmp_path / "b", [callback])
    assert same_state(first.state_dict(), second.state_dict())
    assert [{**record, "seconds": 0} for record in callback.history] == history


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
    callback = make_callback(carry="weights", workers=0, local_search=None)
    gc.collect()
    before = snapshots_alive()  # of other tests
    fit(tmp_path, [callback], model=EachIsBetter, max_epochs=1)
    assert EachIsBetter.most == before + 1
