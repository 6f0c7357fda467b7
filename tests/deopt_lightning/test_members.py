"""carry="population": members with weights of their own, one of whom is the Trainer's model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from deopt_lightning import DEOptCallback
from tests.deopt_lightning.test_resume import comparable
from tests.deopt_lightning.wrapping_optimizers import Sums
from tests.tiny import (
    Recorder,
    SilentDryRun,
    TinyModel,
    ValuesPerEpoch,
    fit,
    fit_that_fails,
    same_state,
    val_loader,
)


def make_callback(**options: Any) -> DEOptCallback:
    defaults = {"monitor": "val_loss", "population_size": 4, "carry": "population"}
    return DEOptCallback(**defaults | options)


def pinned(**options: Any) -> DEOptCallback:
    """All members have the user's own values, so only their weights could differ."""
    return make_callback(lr_bounds=(0.01, 0.01), weight_decay_bounds=(0.0, 0.0), **options)


def by_decay(**options: Any) -> DEOptCallback:
    """No lr is far from the own one, so that no further member goes on beside the population."""
    return make_callback(lr_bounds=(0.01, 0.01), **options)


class Plain(TinyModel):
    """Draws nothing in its steps, so that every member can see the very same epoch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.dropout = nn.Dropout(0.0)


def warm_up(optimizer: Any) -> Any:
    """From nothing, so that an epoch with one lr throughout would be another."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 2))


def schedule_of(kind: str, parameters: Any) -> Any:
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    if kind == "plain":
        return optimizer
    if kind == "epoch":
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]
    scheduler = {"scheduler": warm_up(optimizer), "interval": "step", "frequency": 2}
    return [optimizer], [scheduler]


@pytest.mark.parametrize("kind", ["plain", "epoch", "step"])
@pytest.mark.parametrize("accumulate", [1, 5])
def test_members_with_equal_values_train_as_the_trainer_does(
    kind: str, accumulate: int, tmp_path: Path
) -> None:
    """Their weights go through quiet loops, snapshots and schedules of their own, bit for bit."""
    build = partial(Plain, partial(schedule_of, kind))
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "accumulate_grad_batches": accumulate}
    plain, _ = fit(tmp_path / "plain", model=build, **options)
    callback = pinned()
    model, trainer = fit(tmp_path / "search", [callback], model=build, **options)
    assert same_state(plain.state_dict(), model.state_dict())
    assert [len(set(record["perf"])) for record in callback.history] == [1, 1, 1]
    steps = -(-12 // accumulate)
    assert callback.probe_steps_taken == 3 * 3 * steps
    assert callback.evaluations == 3 * 3
    assert trainer.global_step == 3 * steps


def test_members_count_batches_as_the_trainer_does(tmp_path: Path) -> None:
    class Falls(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            done = self.trainer.fit_loop.epoch_loop.total_batch_idx / 36
            return super().training_step(batch, batch_idx) * (1 - 0.5 * done)

    plain, _ = fit(tmp_path / "plain", model=Falls, num_sanity_val_steps=0)
    callback = pinned()
    model, _ = fit(tmp_path / "search", [callback], model=Falls, num_sanity_val_steps=0)
    assert same_state(plain.state_dict(), model.state_dict())
    assert [len(set(record["perf"])) for record in callback.history] == [1, 1, 1]


def test_members_keep_their_own_weights(tmp_path: Path) -> None:
    callback = by_decay()
    model, _ = fit(tmp_path, [callback], model=Recorder, max_epochs=3)
    weights = [step[3] for step in model.seen.steps]
    epochs = [weights[start : start + 48] for start in range(0, 144, 48)]
    starts = [[epoch[member * 12] for member in range(4)] for epoch in epochs]
    assert all(torch.equal(start, starts[0][0]) for start in starts[0])  # a common beginning
    distinct = {str(start.tolist()) for start in starts[2]}
    assert len(distinct) == 2  # two trials of four took over the best member's weights


def test_the_best_member_leads_and_checkpoints_know_its_score(tmp_path: Path) -> None:
    callback = make_callback()
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    model, trainer = fit(tmp_path, [callback, checkpoint], max_epochs=3)
    record = callback.history[-1]
    assert record["perf"][record["leader"]] == max(record["perf"])
    (validated,) = trainer.validate(model, val_loader(), verbose=False)
    assert validated["val_loss"] == pytest.approx(-max(record["perf"]), rel=1e-6)
    scores = sorted(float(score) for score in checkpoint.best_k_models.values())
    best = max(perf for record in callback.history for perf in record["perf"])
    assert scores[0] == pytest.approx(-best, rel=1e-6)


def test_the_next_epoch_trains_with_the_leaders_values(tmp_path: Path) -> None:
    callback = make_callback()
    _, trainer = fit(tmp_path, [callback], max_epochs=4)
    assert callback.history[0]["members"][0] == pytest.approx([0.01] * 3 + [0.0] * 3)
    for record, row in zip(callback.history, callback.schedule[1:], strict=False):
        expected = record["members"][record["leader"]]
        assert [*row["lr"].values(), *row["weight_decay"].values()] == pytest.approx(expected)
    groups = trainer.optimizers[0].param_groups
    last = callback.history[-1]["members"][callback.history[-1]["leader"]]
    assert [group["lr"] for group in groups] == pytest.approx(last[:3])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 5},
        {"gradient_clip_val": 0.1},
        {"check_val_every_n_epoch": 2, "max_epochs": 4},
        {"val_check_interval": 0.5},
        {"limit_train_batches": 7},
    ],
)
def test_a_dry_run_changes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    dry = SilentDryRun(carry="population", probe_steps=None)
    plain, left = fit(tmp_path / "plain", **options)
    model, right = fit(tmp_path / "search", [dry], **options)
    assert same_state(plain.state_dict(), model.state_dict())
    assert left.global_step == right.global_step
    metrics = [(tmp_path / run / "metrics.csv").read_text() for run in ("plain", "search")]
    assert metrics[0] == metrics[1]
    assert len(dry.history) == right.current_epoch
    assert all(record["leader"] == 0 for record in dry.history)


@pytest.mark.parametrize(
    ("options", "epochs", "steps"),
    [
        ({"every_n_epochs": 2}, [1, 3], 3 * 12 * 5),
        ({"warmup_epochs": 3}, [2, 3, 4], 3 * 12 * 3),
        ({"max_generations": 2}, [0, 1], 3 * 12 * 2),
    ],
)
def test_generations_run_when_they_are_due(
    options: dict[str, Any], epochs: list[int], steps: int, tmp_path: Path
) -> None:
    callback = by_decay(**options)
    fit(tmp_path, [callback], max_epochs=5)
    assert [record["epoch"] for record in callback.history] == epochs
    assert callback.probe_steps_taken == steps


class NanAbove(TinyModel):
    """Diverges where the last layer's lr is too high."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        lr = self.trainer.optimizers[0].param_groups[-1]["lr"]
        return loss * float("nan") if lr > 0.012 else loss


def test_diverging_members_are_replaced(tmp_path: Path) -> None:
    callback = make_callback(population_size=6)
    model, _ = fit(tmp_path, [callback], model=NanAbove, max_epochs=3)
    first = callback.history[0]
    assert None in first["perf"]
    for perf, parent in zip(first["perf"], first["parents"], strict=True):
        assert perf is not None or parent == first["leader"]
    for record in callback.history:
        for drawn in (record["scale_factors"], record["omegas"]):
            made = [value is not None for value in drawn]
            goes_on = [at == parent for at, parent in enumerate(record["parents"])]
            assert not any(made[place] for place in np.flatnonzero(goes_on[:6]))
            assert all(made[place] for place in range(6) if not goes_on[place])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_an_error_in_a_member_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    callback = make_callback()
    model = fit_that_fails(tmp_path / "search", callback, at=10)
    plain, _ = fit(tmp_path / "plain", max_epochs=1)
    assert same_state(plain.state_dict(), model.state_dict())
    assert callback.history == []


OUT_OF_PLACE = {"population_size": 5, "seed": 3}  # here the own setting is soon replaced


class WarmsUp(torch.optim.lr_scheduler.LRScheduler):
    """Hands over to another scheduler after a warm-up, as a much copied one does."""

    def __init__(self, optimizer: Any, steps: int) -> None:
        self.steps = steps
        self.after = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [lr * min(1.0, self.last_epoch / self.steps) for lr in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch < self.steps:
            super().step()
        else:
            self.after.step()


def warms_up(parameters: Any) -> Any:
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    return [optimizer], [{"scheduler": WarmsUp(optimizer, 5), "interval": "step"}]


@pytest.mark.parametrize("optimizer", [None, Sums, warms_up])
def test_the_own_setting_trains_beside_the_population_as_without_the_search(
    optimizer: Any, tmp_path: Path
) -> None:
    plain, callback = ValuesPerEpoch(), make_callback(**OUT_OF_PLACE)
    options: dict[str, Any] = {"model": partial(Plain, optimizer), "max_epochs": 8}
    for folder, added in {"plain": plain, "search": callback}.items():
        fit(tmp_path / folder, [added], num_sanity_val_steps=0, **options)
    own = callback.history[0]["members"][0]
    places = [record["members"].index(own) for record in callback.history]
    assert set(places) == {0, 5}
    found = [record["perf"][place] for record, place in zip(callback.history, places, strict=True)]
    assert [-perf for perf in found] == plain.losses
    assert callback.probe_steps_taken == 12 * sum(len(r["perf"]) - 1 for r in callback.history)


class Scales(Plain):
    """Its optimizer trains a factor, too, that is not among its parameters."""

    def __init__(self, held: str) -> None:
        super().__init__()
        factor = nn.Parameter(torch.tensor([2.0]))
        self.held: Any = {"list": [factor], "object": lambda: factor}[held]

    @property
    def factor(self) -> torch.Tensor:
        return self.held[0] if isinstance(self.held, list) else self.held()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.factor

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([*self.parameters(), self.factor], lr=0.01)


@pytest.mark.parametrize("held", ["list", "object"])
def test_members_have_parameters_of_their_own_outside_of_the_module(
    held: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"model": partial(Scales, held), "max_epochs": 4}
    plain, callback = ValuesPerEpoch(), make_callback(population_size=5)
    fit(tmp_path / "plain", [plain], num_sanity_val_steps=0, **options)
    checkpoint = ModelCheckpoint(tmp_path / "search", save_last=True)
    model, _ = fit(tmp_path / "search", [callback, checkpoint], num_sanity_val_steps=0, **options)
    own = callback.history[0]["members"][0]
    assert any(record["leader"] != 0 for record in callback.history)
    places = [record["members"].index(own) for record in callback.history]
    found = [record["perf"][place] for record, place in zip(callback.history, places, strict=True)]
    assert [-perf for perf in found] == plain.losses
    file = torch.load(tmp_path / "search" / "last.ckpt", weights_only=True)
    state = file["callbacks"][callback.state_key]["search"]
    factors = [member["outside"][0, 6].item() for member in state["members"]]
    assert len(set(factors)) > 1
    assert factors[state["leader"]] == model.factor.item()

    resumed = make_callback(population_size=5)
    options |= {"max_epochs": 5, "ckpt_path": str(tmp_path / "search" / "last.ckpt")}
    fit(tmp_path / "resumed", [resumed], **options)
    assert [record["epoch"] for record in resumed.history] == [0, 1, 2, 3, 4]


class LateOwn(Plain):
    """Counts steps with other lrs than the own: good in the first four epochs, bad after them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("others", torch.zeros(()))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        lrs = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        self.others += not np.allclose(lrs, 0.01, rtol=1e-9)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        late = self.trainer.current_epoch >= 4
        self.log("val_loss", self.others if late else -self.others)


def test_an_own_setting_that_comes_to_lead_is_the_trainers_model(tmp_path: Path) -> None:
    callback = make_callback(**OUT_OF_PLACE)
    model, _ = fit(tmp_path, [callback], model=LateOwn, max_epochs=6)
    own = callback.history[0]["members"][0]
    places = [record["members"].index(own) for record in callback.history]
    leaders = [record["leader"] for record in callback.history]
    assert [len(record["perf"]) for record in callback.history] == [5, 6, 6, 7, 8, 8]
    assert [place >= 5 for place in places] == [False] * 3 + [True] * 3
    assert leaders[3] < 5
    assert leaders[4:] == places[4:]
    assert model.others == 0
    assert callback.history[4]["parents"].count(places[4]) == 3  # two trials, and itself


class HighLeads(Plain):
    """Its losses by lr: far ones are bad at first; then the tenfold lr is the best, the own bad."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        lrs = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        own, low, high = (np.allclose(lrs, far, rtol=1e-9) for far in (0.01, 0.001, 0.1))
        if self.trainer.current_epoch < 2:
            self.log("val_loss", torch.tensor(9.0 if low or high else 1.0))
        else:
            self.log("val_loss", torch.tensor(0.0 if high else 9.0 if own else 1.0))


def test_a_leader_beside_the_population_leads_on_where_its_place_changes(tmp_path: Path) -> None:
    callback = make_callback(population_size=5)
    fit(tmp_path, [callback], model=HighLeads, max_epochs=6)
    sizes = [len(record["members"]) for record in callback.history]
    assert sizes == [5, 7, 7, 8, 8, 8]
    leaders = [record["leader"] for record in callback.history]
    assert leaders[2:] == [6, 7, 7, 7]  # moved by the own setting, which has a place before it
    for record, row in zip(callback.history[2:], callback.schedule[3:], strict=False):
        assert record["members"][record["leader"]][:3] == pytest.approx([0.1] * 3)
        assert list(row["lr"].values()) == pytest.approx([0.1] * 3)
    assert all(record["perf"][record["leader"]] == 0.0 for record in callback.history[2:])


def test_a_resumed_run_has_the_own_setting_beside_it(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "all", every_n_epochs=1, save_top_k=-1)
    unbroken = make_callback(**OUT_OF_PLACE)
    model, _ = fit(tmp_path / "unbroken", [unbroken, checkpoint], model=Plain, max_epochs=8)
    assert [len(record["perf"]) for record in unbroken.history[-4:]] == [8, 8, 8, 8]
    own = unbroken.history[0]["members"][0]
    assert all(own in record["members"][5:] for record in unbroken.history[-4:])
    (path,) = (tmp_path / "all").glob("epoch=5-*.ckpt")
    resumed = make_callback(**OUT_OF_PLACE)
    again, _ = fit(tmp_path / "resumed", [resumed], model=Plain, max_epochs=8, ckpt_path=path)
    assert comparable(resumed) == comparable(unbroken)
    assert same_state(again.state_dict(), model.state_dict())


def test_history_is_plain_data(tmp_path: Path) -> None:
    callback = make_callback()
    fit(tmp_path, [callback])
    assert json.loads(json.dumps(callback.history, allow_nan=False)) == callback.history


def test_probe_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="members all train whole epochs; got 10"):
        make_callback(probe_steps=10)


def test_members_share_a_state_until_they_differ(tmp_path: Path) -> None:
    """Two trials have the leader's state, the two others of five their own."""
    callback = by_decay(population_size=5)
    model, trainer = fit(tmp_path, [callback], max_epochs=2)
    model_bytes = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    state = trainer.optimizers[0].state.values()
    state_bytes = sum(tensor.nbytes for entries in state for tensor in entries.values())
    assert callback.member_bytes == 3 * (model_bytes + state_bytes)


def test_the_memory_of_members_is_said_once(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, [by_decay(population_size=5)], max_epochs=3)
    said = [record.message for record in caplog.records if "members' states" in record.message]
    assert len(said) == 1
    assert "after epoch 0, in 3 copies" in said[0]
