"""workers: candidates shared out among forked processes, with the results of one process."""

from __future__ import annotations

import gc
import os
import signal
import time
import warnings
from contextlib import suppress
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deopt_lightning import DEOptCallback
from deopt_lightning.snapshot import Snapshot
from deopt_lightning.workers import Workers, shared_array
from tests.tiny import TinyModel, fit, same_state, val_loader

MAIN = os.getpid()


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """As workers have, so that sums are added in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_shared_out(task: Any, count: int, workers: int, known: Any = ()) -> Any:
    with Workers(task, workers, known) as processes:
        yield from processes.run(count)


def search(folder: Path, workers: int, model: type = TinyModel, **options: Any) -> Any:
    callback = DEOptCallback("val_loss", population_size=5, workers=workers, **options)
    module, trainer = fit(folder, [callback], model=model)
    records = [{k: v for k, v in row.items() if k != "seconds"} for row in callback.history]
    return records, callback.schedule, module, trainer


def assert_same_run(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    assert one[1] == other[1]
    assert same_state(one[2].state_dict(), other[2].state_dict())
    assert one[2].losses == other[2].losses
    states = [run[3].optimizers[0].state_dict() for run in (one, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("carry", ["hyperparameters", "weights", "population"])
def test_a_run_does_not_depend_on_the_number_of_workers(carry: str, tmp_path: Path) -> None:
    options = {"carry": carry} | ({} if carry == "population" else {"probe_steps": 2})
    alone = search(tmp_path / "0", 0, **options)
    assert_same_run(alone, search(tmp_path / "2", 2, **options))
    assert_same_run(alone, search(tmp_path / "3", 3, **options))


class DiesInWorkers(TinyModel):
    """Its validation in a worker kills the worker."""

    def on_validation_epoch_end(self) -> None:
        if os.getpid() != MAIN:
            os.kill(os.getpid(), signal.SIGKILL)
        super().on_validation_epoch_end()


class RaisesInWorkers(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if os.getpid() != MAIN:
            raise RuntimeError("not in a worker")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("model", [DiesInWorkers, RaisesInWorkers])
@pytest.mark.parametrize("carry", ["weights", "population"])
def test_what_a_worker_leaves_undone_is_redone(model: type, carry: str, tmp_path: Path) -> None:
    alone = search(tmp_path / "0", 0, carry=carry)
    with pytest.warns(UserWarning, match="a worker process stopped before"):
        shared = search(tmp_path / "2", 2, model, carry=carry)
    assert_same_run(alone, shared)


def test_an_error_of_every_process_is_raised_where_the_user_sees_it(tmp_path: Path) -> None:
    class Broken(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.current_epoch == 0 and len(self.losses) >= 12:
                raise RuntimeError("broken in every probe")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="broken in every probe"):
        search(tmp_path, 2, Broken, carry="weights")


def test_results_come_back_with_the_very_same_objects() -> None:
    model = TinyModel()
    optimizer = torch.optim.Adam(model.parameters())
    before = Snapshot.take(model, [optimizer])

    def task(index: int) -> Snapshot:
        for parameter in model.parameters():
            parameter.data.fill_(float(index))
        model.losses.append(float(index))
        return Snapshot.take(model, [optimizer])

    losses = model.losses
    results = dict(run_shared_out(task, 3, 2, before.originals()))
    assert sorted(results) == [0, 1, 2]
    for index, snapshot in results.items():
        snapshot.restore()
        assert all(bool((p == index).all()) for p in model.parameters())
        assert model.losses is losses
        assert losses[-1] == index
    before.restore()
    assert losses == []


def test_every_worker_takes_part_and_each_task_is_done_once(tmp_path: Path) -> None:
    def task(index: int) -> int:
        with (tmp_path / str(index)).open("x"):  # raises where it has been done before
            return os.getpid()

    processes = dict(run_shared_out(task, 20, 3))
    assert sorted(processes) == list(range(20))
    assert len(set(processes.values()) - {MAIN}) == 2


def wait_for_the_end(workers: set[int]) -> None:
    for _ in range(3_000):
        if not workers & {process.pid for process in active_children()}:
            return
        time.sleep(0.01)
    raise AssertionError("they have not ended")


def test_processes_stay_and_see_what_is_shared() -> None:
    shared = shared_array((2, 20))
    own = [0.0]

    def task(index: int) -> tuple[int, float, float]:
        time.sleep(0.01)  # so that all take part
        return os.getpid(), shared[1, index], own[0]

    seen = []
    with Workers(task, 3) as processes:
        for turn, count in enumerate([20, 2, 1, 3], start=1):
            shared[1] = np.arange(20) + 100 * turn
            own[0] = turn
            results = dict(processes.run(count))
            assert sorted(results) == list(range(count))
            assert all(value == 100 * turn + index for index, (_, value, _) in results.items())
            seen += [(process, told) for process, _, told in results.values()]
    workers = {process for process, _ in seen} - {MAIN}
    assert len(workers) == 2
    assert all(told == 1.0 for process, told in seen if process in workers)
    wait_for_the_end(workers)


@pytest.mark.parametrize("dies_at", [0, 3])
def test_where_a_process_has_died_others_take_its_place(dies_at: int, tmp_path: Path) -> None:
    def task(index: int) -> int:
        time.sleep(0.01)
        if os.getpid() != MAIN and index >= dies_at:
            with suppress(FileExistsError):  # one dies, also where two come here at once
                (tmp_path / "dead").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    with Workers(task, 3) as processes:
        with pytest.warns(UserWarning, match="stopped before 1 of 20 candidates were done"):
            first = dict(processes.run(20))
        second = dict(processes.run(20))
    assert sorted(first) == sorted(second) == list(range(20))
    assert len(set(second.values()) - {MAIN}) == 2
    assert not set(first.values()) & set(second.values()) - {MAIN}


def test_a_process_that_died_while_it_waited_is_missed_by_nobody() -> None:
    def task(index: int) -> int:
        time.sleep(0.01)
        return os.getpid()

    with Workers(task, 2) as processes:
        (worker,) = set(dict(processes.run(6)).values()) - {MAIN}
        os.kill(worker, signal.SIGKILL)
        wait_for_the_end({worker})
        assert set(dict(processes.run(6)).values()) == {MAIN}
        assert len(set(dict(processes.run(6)).values())) == 2


@pytest.mark.parametrize("frozen_before", [False, True])
def test_present_objects_are_collected_here_and_not_in_workers(frozen_before: bool) -> None:
    def task(index: int) -> tuple[bool, bool]:
        time.sleep(0.05)
        return os.getpid() == MAIN, gc.get_freeze_count() > 0

    if frozen_before:
        gc.freeze()
    try:
        found = {result for _, result in run_shared_out(task, 8, workers=2)}
        assert found == {(True, frozen_before), (False, True)}
        assert (gc.get_freeze_count() > 0) == frozen_before
    finally:
        gc.unfreeze()


def test_results_larger_than_a_pipe_come_back_while_this_process_works() -> None:
    results = dict(run_shared_out(lambda index: torch.full((100_000,), index), 7, 2))
    assert all(bool((tensor == index).all()) for index, tensor in results.items())
    assert sorted(results) == list(range(7))


def test_a_worker_goes_on_before_its_result_is_read(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"  # tasks that the worker has begun

    def task(index: int) -> tuple[bool, torch.Tensor]:
        if os.getpid() != MAIN:
            (second if first.exists() else first).touch()
        else:  # reads nothing for ten seconds, if it has to
            for _ in range(1_000):
                if second.exists():
                    break
                time.sleep(0.01)
        return os.getpid() != MAIN or second.exists(), torch.full((100_000,), index)

    results = dict(run_shared_out(task, 6, 2))
    assert sorted(results) == list(range(6))
    assert all(went_on for went_on, _ in results.values())


@pytest.mark.parametrize("count", [1, 4])
def test_a_task_has_one_thread_and_this_process_its_own_between_tasks(count: int) -> None:
    def task(index: int) -> int:
        if os.getpid() != MAIN:
            raise RuntimeError("leaves its tasks to be redone")
        return torch.get_num_threads()

    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "DEOptCallback: a worker process stopped")
        seen = [(one, torch.get_num_threads()) for _, one in run_shared_out(task, count, 2)]
    assert seen == [(1, 2)] * count
    assert [one for _, one in run_shared_out(task, count, 0)] == [2] * count


def test_validation_workers_exclude_others(tmp_path: Path) -> None:
    callback = DEOptCallback("val_loss", population_size=4, workers=2, probe_steps=1)
    with pytest.warns(UserWarning, match="goes without worker processes: the validation data"):
        fit(tmp_path, [callback], val=val_loader(num_workers=1), max_epochs=1)
    assert callback.evaluations >= 8


def test_a_daemon_which_may_start_no_processes_goes_without(tmp_path: Path) -> None:
    def train() -> None:
        with pytest.warns(UserWarning, match="goes without worker processes: this process is a d"):
            assert len(search(tmp_path, 2)[0]) == 3

    daemon = get_context("fork").Process(target=train, daemon=True)
    daemon.start()
    daemon.join(60)
    assert daemon.exitcode == 0


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at least 0; got -1"):
        DEOptCallback("val_loss", workers=-1)
