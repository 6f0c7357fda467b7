"""What the callback does to a run that it may change."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from deopt_lightning import DEOptCallback
from tests.tiny import LAYERS, TinyModel, csv_rows, fit, probing_callback, same_state


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
    callback = probing_callback(population_size=40, max_generations=1, probe_steps=1)
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
    callback = probing_callback()
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


def test_mode_max_and_min_agree_on_a_negated_metric(tmp_path: Path) -> None:
    class Negated(TinyModel):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.log("gain", -self.trainer.callback_metrics["val_loss"])

    low, high = probing_callback(), probing_callback(monitor="gain", mode="max")
    left, _ = fit(tmp_path / "min", [low], model=Negated)
    right, _ = fit(tmp_path / "max", [high], model=Negated)
    assert low.history[0]["target_perf"] == pytest.approx(high.history[0]["target_perf"])
    assert same_state(left.state_dict(), right.state_dict())


def test_runs_are_repeatable_and_seeds_differ(tmp_path: Path) -> None:
    runs = [fit(tmp_path / str(i), [probing_callback(seed=i // 2)])[0] for i in range(3)]
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
    callback = probing_callback(probe_steps=1, **options)
    fit(tmp_path, [callback], max_epochs=5)
    assert [record["epoch"] for record in callback.history] == epochs


def test_values_are_logged_in_the_row_of_the_epoch(tmp_path: Path) -> None:
    callback = probing_callback()
    fit(tmp_path, [callback])
    logged = [row for row in csv_rows(tmp_path) if row["deopt/accepted"]]
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
    fit(tmp_path, [probing_callback(), LearningRateMonitor("epoch", log_weight_decay=True)])
    shown = [row for row in csv_rows(tmp_path) if row["lr-Adam/first"]]
    assert len({row["lr-Adam/last"] for row in shown}) > 1
    assert "lr-Adam/norm-weight_decay" in shown[0]


def test_layer_patterns_reach_the_search(tmp_path: Path) -> None:
    callback = probing_callback(layers={"all": "*"})
    fit(tmp_path, [callback], max_epochs=1)
    assert callback.history[0]["names"] == ["lr/all", "weight_decay/all"]


def test_bounds_hold_for_every_candidate(tmp_path: Path) -> None:
    callback = probing_callback(lr_bounds=(0.02, 0.03), weight_decay_bounds=(1e-4, 1e-3))
    fit(tmp_path, [callback])
    for record in callback.history:
        values = np.array(record["targets"] + record["trials"])
        assert (values[:, :3] >= 0.02 * (1 - 1e-9)).all()
        assert (values[:, :3] <= 0.03 * (1 + 1e-9)).all()
        decay = values[:, 3:]
        assert ((decay == 0) | ((decay >= 1e-4 * (1 - 1e-9)) & (decay <= 1e-3 * (1 + 1e-9)))).all()


@pytest.mark.parametrize("pinned", [0.0, 1e-3])
def test_equal_bounds_pin_a_value(pinned: float, tmp_path: Path) -> None:
    callback = probing_callback(weight_decay_bounds=(pinned, pinned))
    fit(tmp_path, [callback])
    values = np.array([v for r in callback.history for v in r["targets"] + r["trials"]])
    assert (values[:, 3:] == pinned).all()
    assert len(np.unique(values[:, 0])) > 4


@pytest.mark.parametrize("bounds", [None, (1e-4, 1e-3)])
def test_no_weight_decay_is_searched_or_logged_where_none_acts(
    bounds: tuple[float, float] | None, tmp_path: Path
) -> None:
    def decay_matrices(parameters: Any) -> torch.optim.Optimizer:
        parameters = list(parameters)
        vectors = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
        return torch.optim.AdamW([vectors, {"params": [p for p in parameters if p.ndim == 2]}])

    callback = probing_callback(weight_decay_bounds=bounds)
    fit(tmp_path, [callback], model=partial(TinyModel, decay_matrices))
    assert LAYERS == ["first", "norm", "last"]
    values = np.array([v for r in callback.history for v in r["targets"] + r["trials"]])
    searched = [len(np.unique(column)) > 4 for column in values.T]
    assert searched == [True, True, True, True, False, True]
    assert not values[:, 4].any()
    assert [row["weight_decay"]["norm"] for row in callback.schedule] == [0, 0, 0]
    logged = [row["deopt/weight_decay/norm"] for row in csv_rows(tmp_path)]
    assert {float(value) for value in logged if value} == {0.0}


@pytest.mark.parametrize("carry", ["population", "weights", "chain"])
def test_a_metric_of_every_second_epoch_can_be_searched_by(carry: Any, tmp_path: Path) -> None:
    class Dear(TinyModel):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            if self.current_epoch % 2 == 1:
                self.log("dear", 1 + self.last.weight.square().mean())

    callback = DEOptCallback("dear", population_size=4, carry=carry, every_n_epochs=2)
    fit(tmp_path, [callback], model=Dear, max_epochs=10)
    expected = [9] if carry == "chain" else [1, 3, 5, 7, 9]
    assert [row["epoch"] for row in callback.history] == expected
    with pytest.raises(MisconfigurationException, match="If every n-th epoch logs it, set every_n"):
        fit(tmp_path, [DEOptCallback("dear", carry=carry)], model=Dear)


def test_history_is_plain_data(tmp_path: Path) -> None:
    callback = probing_callback()
    fit(tmp_path, [callback])
    assert json.loads(json.dumps(callback.history, allow_nan=False)) == callback.history
    assert all(record["seconds"] > 0 for record in callback.history)


def test_progress_bar_shows_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [probing_callback(), TQDMProgressBar()], enable_progress_bar=True, max_epochs=1)
    assert "DE-Opt generation" in "".join(capsys.readouterr())


def test_silent_without_a_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [probing_callback()], max_epochs=1)
    assert "DE-Opt generation" not in "".join(capsys.readouterr())


def test_fast_dev_run_does_not_search(tmp_path: Path) -> None:
    callback = probing_callback()
    fit(tmp_path, [callback], fast_dev_run=True)
    assert callback.history == []


def test_a_callback_can_be_used_again(tmp_path: Path) -> None:
    callback = probing_callback()
    first, _ = fit(tmp_path / "a", [callback])
    history = [{**record, "seconds": 0} for record in callback.history]
    second, _ = fit(tmp_path / "b", [callback])
    assert same_state(first.state_dict(), second.state_dict())
    assert [{**record, "seconds": 0} for record in callback.history] == history


@pytest.mark.parametrize("carry", ["population", "weights", "hyperparameters", "chain"])
def test_a_saved_state_does_not_follow_the_run(carry: str, tmp_path: Path) -> None:
    states: list[tuple[dict[str, Any], str]] = []

    class Keeps(L.Callback):
        def on_train_epoch_end(self, *args: Any) -> None:
            state = callback.state_dict()
            states.append((state, repr(state)))

    callback = DEOptCallback("val_loss", carry=carry)
    fit(tmp_path, [callback, Keeps()])
    assert len(states) == 3
    assert all(repr(state) == then for state, then in states)


@pytest.mark.parametrize("carry", ["population", "chain", "weights"])
def test_a_metric_of_training_by_the_monitors_name_is_not_the_monitor(
    carry: Any, tmp_path: Path
) -> None:
    class SameName(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("val_loss", 1e4 + loss.detach(), on_step=False, on_epoch=True)
            return loss

    callback = DEOptCallback("val_loss", carry=carry)
    fit(tmp_path, [callback], model=SameName, max_epochs=6)
    perf = [
        row.get("perf") or row.get("target_perf") or [row["first_perf"]] for row in callback.history
    ]
    assert perf
    assert min(value for row in perf for value in row) > -1e3


def test_the_search_goes_on_where_too_few_epochs_forbid_to_stop(tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=1, min_delta=1e9)
    callback = probing_callback()
    _, trainer = fit(tmp_path, [callback, stopping], min_epochs=5, max_epochs=8)
    assert trainer.current_epoch == 5
    assert [row["epoch"] for row in callback.history] == [0, 1, 2, 3]  # none follows the fifth


def test_user_code_finds_folders_and_metrics_of_the_run(tmp_path: Path) -> None:
    class Looks(TinyModel):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            assert self.logger is not None
            found.append((self.logger.log_dir, self.logger.version, self.trainer.log_dir))
            if not self.trainer.sanity_checking:
                seen.append(float(self.trainer.callback_metrics["train_loss_step"]))

    found: list[Any] = []
    seen: list[float] = []
    fit(tmp_path, [probing_callback()], model=Looks, max_epochs=2)
    assert {Path(folder) for folder, *_ in found} == {tmp_path}
    assert len({version for _, version, _ in found}) == 1
    assert len(seen) > 10
