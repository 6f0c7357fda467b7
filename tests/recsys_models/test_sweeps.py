import json
import sys
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch

from recsys_models import train
from recsys_models.costs import Row, best_so_far
from recsys_models.data import RecsysDataModule
from recsys_models.experiment import Experiment
from recsys_models.tuning import (
    GridSearch,
    OptunaSearch,
    Outcome,
    PopulationTraining,
    RandomSearch,
    Setting,
    Space,
    bounds_around,
    choose,
)

SWEEPS = ("grid", "random", "optuna", "pbt")
SHORT = ("search=fast", "trainer.max_epochs=2", "trainer.accelerator=cpu", "+data.batch_size=128")
SPACE = Space((1e-6, 1e-2), (1e-7, 1e-3), own=(1e-3, 0.0))

pytestmark = pytest.mark.usefixtures("tiny_synthetic")


class Landscape:
    """A trainable whose value grows by epoch towards how near lr is to 1e-3."""

    def __init__(self, folder, epochs=9):
        self.folder = folder
        self.epochs = epochs
        self.trained = []

    def value(self, setting, epoch):
        return -abs(np.log10(setting.lr) + 3) * (epoch + 1)

    def fit(self, setting, watch=None):
        values = []
        for epoch in range(self.epochs):
            values.append(self.value(setting, epoch))
            if watch is not None and watch(epoch, values[-1]):
                break
        self.trained.append((setting, len(values)))
        rows = [Row(k + 1, k + 1, 1.0, value, 0.5) for k, value in enumerate(values)]
        return Outcome(setting, max(values), len(values), len(values), 1.0, "", curve=rows)

    def fit_leg(self, setting, start, end_epoch, weights):
        self.trained.append((setting, start))
        return Outcome(setting, self.value(setting, 0), 1, 1, 1.0, str(weights))


@pytest.fixture
def fits(monkeypatch):
    """Counts the trainings of real Trainers."""
    seen = []
    fit = L.Trainer.fit

    def counted(self, *args, **kwargs):
        seen.append(self)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "fit", counted)
    return seen


def read_result(folder):
    return json.loads((folder / "out" / "result.json").read_text())


# --- the space ------------------------------------------------------------------------------------


def test_bounds_reach_a_thousandth_down_and_ten_times_up():
    assert bounds_around(0.5) == (0.5 / 1000, 5.0)


@pytest.mark.parametrize("setting", [Setting(1e-4, 1e-5), Setting(1e-2, 1e-3), Setting(1e-6, 0.0)])
def test_coordinates_decode_to_what_was_encoded(setting):
    assert SPACE.decode(*SPACE.encode(setting)) == pytest.approx(setting)


def test_samples_stay_in_bounds_and_a_fifth_has_no_weight_decay():
    rng = np.random.default_rng(0)
    drawn = [SPACE.sample(rng) for _ in range(2000)]
    assert all(1e-6 <= s.lr <= 1e-2 for s in drawn)
    assert all(s.weight_decay == 0 or 1e-7 <= s.weight_decay <= 1e-3 for s in drawn)
    assert np.mean([s.weight_decay == 0 for s in drawn]) == pytest.approx(0.2, abs=0.03)


def test_grid_has_the_bounds_the_decades_and_no_decay():
    grid = SPACE.grid(5, 4)
    assert len(set(grid)) == 20
    assert sorted({s.lr for s in grid}) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert sorted({s.weight_decay for s in grid}) == pytest.approx([0, 1e-7, 1e-5, 1e-3])


def test_without_an_upper_bound_of_weight_decay_only_lr_is_searched():
    space = Space((1e-4, 1e-2), (0.0, 0.0), own=(1e-3, 0.0))
    rng = np.random.default_rng(1)
    assert {space.sample(rng).weight_decay for _ in range(9)} == {0.0}
    assert [s.weight_decay for s in space.grid(2, 3)] == [0.0, 0.0]
    assert space.decode(*space.encode(Setting(1e-3, 0.0))) == pytest.approx((1e-3, 0.0))


@pytest.mark.parametrize("bounds", [((0.0, 1.0), (0.0, 1.0)), ((1.0, 2.0), (1.0, 0.5))])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="must be a pair"):
        Space(*bounds, own=(1.0, 0.0))


# --- what each sweep does, on a landscape that is known -------------------------------------------


def test_random_search_is_seeded_and_opens_with_the_own_setting():
    first, again, other = (RandomSearch(SPACE, 5, seed).settings for seed in (0, 0, 1))
    assert first == again != other
    assert first[0] == other[0] == SPACE.own
    assert len(set(first)) == 5


def test_optuna_stops_what_falls_behind_and_keeps_its_costs(tmp_path):
    landscape = Landscape(tmp_path, epochs=27)
    search = OptunaSearch(SPACE, 20, seed=0, mode="max", max_epochs=27)
    outcomes = search.run(landscape)
    assert landscape.trained[0] == (SPACE.own, 27)
    lengths = [epochs for _, epochs in landscape.trained]
    assert min(lengths) < 27
    assert [outcome.steps for outcome in outcomes] == lengths
    assert choose(outcomes, "max").setting == SPACE.own


def test_optuna_goes_on_after_a_setting_that_diverges(tmp_path):
    class Broken(Landscape):
        def fit(self, setting, watch=None):
            outcome = super().fit(setting, watch)
            return replace(outcome, val=None) if len(self.trained) == 2 else outcome

    outcomes = OptunaSearch(SPACE, 4, 0, "max", 9).run(Broken(tmp_path))
    assert [outcome.val is None for outcome in outcomes] == [False, True, False, False]


def test_worst_member_of_a_population_copies_the_best_and_is_perturbed(tmp_path):
    landscape = Landscape(tmp_path)
    PopulationTraining(SPACE, 5, 0, "max", max_epochs=2, patience=9).run(landscape)
    first, second = landscape.trained[:5], landscape.trained[5:]
    values = [landscape.value(setting, 0) for setting, _ in first]
    best, worst = int(np.argmax(values)), int(np.argmin(values))
    for member, (setting, parent) in enumerate(second):
        if member == worst:
            assert parent.setting == first[best][0]
            assert setting != parent.setting
        else:
            assert setting == parent.setting == first[member][0]


def test_population_ends_after_epochs_without_a_better_value(tmp_path):
    class Flat(Landscape):
        def value(self, setting, epoch):
            return 0.5

    outcomes = PopulationTraining(SPACE, 3, 0, "max", max_epochs=50, patience=2).run(Flat(tmp_path))
    assert len(outcomes) == 3 * (1 + 2)


def test_smaller_may_be_better():
    low, high = (Outcome(SPACE.own, value, 1, 1, 1.0, "") for value in (0.1, 0.9))
    assert choose([high, low], "min") is low
    assert choose([low, high, replace(low, val=None)], "max") is high
    rising = [Row(1, 1, 1.0, 3.0), Row(2, 2, 2.0, 4.0)]
    assert [row.value for row in best_so_far([rising], "min")] == [3, 3]


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tuner", SWEEPS)
def test_a_sweep_reads_the_test_set_once_and_at_its_end(tuner, compose_train, monkeypatch, fits):
    events = []
    make_loader = RecsysDataModule.test_dataloader
    cfg = compose_train(*SHORT, f"tuner={tuner}")
    expected = 8 if tuner == "pbt" else 4  # four members for two epochs, or four settings

    def noted(self):
        events.append(len(fits))
        return make_loader(self)

    class Poisoned:
        """Stands for ``RecsysDataModule.test``: deadly to whoever looks before the last fit."""

        def __get__(self, module, owner=None):
            assert len(fits) == expected, "the test set was read before the sweep had ended"
            return module.__dict__["_test"]

        def __set__(self, module, value):
            module.__dict__["_test"] = value

    monkeypatch.setattr(RecsysDataModule, "test_dataloader", noted)
    monkeypatch.setattr(RecsysDataModule, "test", Poisoned(), raising=False)
    train.run(cfg)
    assert events == [expected]


@pytest.mark.parametrize("tuner", SWEEPS)
def test_costs_of_all_points_add_up(tuner, compose_train, tmp_path):
    best = train.run(compose_train(*SHORT, f"tuner={tuner}"))
    result = read_result(tmp_path)
    points = result["points"]
    assert result["train_steps"] + result["probe_steps"] == sum(p["steps"] for p in points)
    assert result["evaluations"] == sum(p["evaluations"] for p in points) == 8
    assert result["train_seconds"] == pytest.approx(sum(p["seconds"] for p in points))
    cpu = result["train_cpu_seconds"]
    assert cpu == pytest.approx(sum(p["cpu_seconds"] for p in points))
    assert best == pytest.approx(max(p["val"] for p in points), abs=1e-6)
    assert result["train_steps"] == 5 * result["epochs"]
    assert result["epochs"] == len(result["schedule"])
    steps, passes, seconds, values, cpu_seconds = zip(*result["curve"], strict=True)
    assert 0 < cpu_seconds[-1] <= cpu
    for column in (steps, passes, seconds, values, cpu_seconds):
        assert list(column) == sorted(column)
    assert (steps[-1], passes[-1]) == (sum(p["steps"] for p in points), 8)
    assert values[-1] == pytest.approx(best, abs=1e-6)


def test_a_point_is_what_a_run_with_its_values_would_be(compose_train, tmp_path):
    train.run(compose_train(*SHORT, "tuner=grid"))
    swept = read_result(tmp_path)
    (lr,) = set(swept["schedule"][0]["lr"].values())
    (decay,) = set(swept["schedule"][0]["weight_decay"].values())
    assert lr == pytest.approx(0.01)
    train.run(compose_train(*SHORT, f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}"))
    alone = read_result(tmp_path)
    for key in ("val", "test", "train_steps", "schedule"):
        assert swept[key] == alone[key]


@pytest.mark.parametrize("tuner", ["grid", "optuna"])
def test_a_stopped_sweep_goes_on_where_it_was(tuner, compose_train, tmp_path, fits, monkeypatch):
    cfg = compose_train(*SHORT, f"tuner={tuner}")
    finish = Experiment.fit

    def stop_at_third(self, setting, watch=None):
        if len(fits) == 2:
            raise KeyboardInterrupt
        return finish(self, setting, watch)

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "fit", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            train.run(cfg)
    train.run(cfg)
    assert len(fits) == 4
    resumed = read_result(tmp_path)
    train.run(cfg)
    assert len(fits) == 4
    unbroken = compose_train(*SHORT, f"tuner={tuner}", f"output_dir={tmp_path / 'out' / 'new'}")
    train.run(unbroken)
    again = json.loads((tmp_path / "out" / "new" / "result.json").read_text())
    for key in ("val", "test", "train_steps", "probe_steps", "evaluations", "schedule"):
        assert resumed[key] == again[key]


def test_a_sweep_says_what_each_setting_gave_when_it_is_trained(compose_train, tmp_path, capsys):
    train.run(compose_train(*SHORT, "tuner=grid"))
    said = capsys.readouterr().out
    for point in read_result(tmp_path)["points"]:
        setting = f"lr={point['lr']!r},weight_decay={point['weight_decay']!r}"
        assert f"{setting}: val/ndcg@10 {point['val']:.4f}, " in said


def test_points_of_another_configuration_are_trained_again(compose_train, fits):
    train.run(compose_train(*SHORT, "tuner=grid"))
    train.run(compose_train(*SHORT, "tuner=grid", "search.grid=[2,3]"))
    assert len(fits) == 4 + 2
    train.run(compose_train(*SHORT, "tuner=grid", "seed=1"))
    assert len(fits) == 4 + 2 + 4


def test_points_of_a_table_that_has_changed_are_trained_again(compose_train, fits, rating_files):
    table = ("data=table", f"data.path={rating_files['table']}")
    for _ in range(2):
        train.run(compose_train(*SHORT, *table, "tuner=grid"))
    assert len(fits) == 4
    rating_files["table"].write_text(rating_files["table"].read_text() + "61,1\n61,2\n")
    train.run(compose_train(*SHORT, *table, "tuner=grid"))
    assert len(fits) == 4 + 4


def test_processes_side_by_side_give_the_same(compose_train, tmp_path, rating_files, monkeypatch):
    data = ("data=filmtrust", f"data.path={rating_files['filmtrust']}")  # fixtures stay here
    grid = (*SHORT, *data, "tuner=grid", "search.grid=[2,1]")
    command = ["recsys-train", *grid, "tuner.sweep.n_jobs=2", f"hydra.run.dir={tmp_path / 'two'}"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(tmp_path)
    train.main()
    train.run(compose_train(*grid))
    assert len(list((tmp_path / "two" / "points").glob("*/point.json"))) == 2
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["val"] == read_result(tmp_path)["val"]


def test_a_setting_that_diverges_counts_but_is_not_chosen(compose_train, tmp_path):
    bounds = "search.lr_bounds=[0.01,1e38]"
    best = train.run(compose_train(*SHORT, "tuner=grid", "search.grid=[2,1]", bounds))
    fine, diverged = read_result(tmp_path)["points"]
    assert diverged["val"] is None
    assert diverged["steps"] > 0
    assert fine["val"] == pytest.approx(best, abs=1e-6)


def test_a_sweep_in_which_all_diverges_says_so(compose_train):
    bounds = "search.lr_bounds=[1e37,1e38]"
    with pytest.raises(FloatingPointError, match="every setting of the sweep diverged"):
        train.run(compose_train(*SHORT, "tuner=grid", "search.grid=[2,1]", bounds))


def test_only_the_chosen_checkpoint_is_kept(compose_train, tmp_path):
    for tuner in ("grid", "pbt"):
        folder = tmp_path / tuner
        train.run(compose_train(*SHORT, f"tuner={tuner}", f"output_dir={folder}"))
        assert len(list(folder.rglob("*.ckpt"))) == 1


def test_a_leg_goes_on_from_weights_and_optimizer_with_the_new_setting(compose_train, tmp_path):
    experiment = Experiment(compose_train(*SHORT))
    first = experiment.fit_leg(Setting(0.01, 0.0), None, 1, tmp_path / "first.ckpt")
    still = experiment.fit_leg(Setting(0.0, 0.0), first, 2, tmp_path / "still.ckpt")
    moved = experiment.fit_leg(Setting(0.01, 0.0), first, 2, tmp_path / "moved.ckpt")
    assert still.val == first.val != moved.val
    assert (moved.steps, moved.total_steps, moved.evaluations) == (5, 10, 1)
    assert still.lineage == [Setting(0.01, 0.0), Setting(0.0, 0.0)]
    saved = torch.load(moved.weights, weights_only=True)["optimizer_states"][0]["state"][0]
    assert saved["step"] == 10


def test_schedule_free_is_judged_and_kept_by_its_averaged_weights(compose_train, tmp_path):
    best = train.run(compose_train(*SHORT, "tuner=schedule_free", "optimizer.lr=0.05"))
    curve = read_result(tmp_path)["curve"]
    assert best == pytest.approx(curve[-1][3], abs=1e-6)
    saved = torch.load(tmp_path / "out" / "checkpoints" / "best.ckpt", weights_only=True)
    (group,) = saved["optimizer_states"][0]["param_groups"]
    assert group["train_mode"] is False


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="points must be at least 1; got 0"):
        RandomSearch(SPACE, 0, 0)
    with pytest.raises(ValueError, match="weight decays must be at least 1; got 0"):
        GridSearch(SPACE, (2, 0))
    for size in (5, [5], [5, 4, 3]):
        with pytest.raises(ValueError, match="the grid must be two numbers, .* got"):
            GridSearch(SPACE, size)
    with pytest.raises(ValueError, match="population_size must be at least 2; got 1"):
        PopulationTraining(SPACE, 1, 0, "max", 1, 1)
