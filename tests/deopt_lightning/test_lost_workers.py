"""Workers that die amid a result, lose their main process, or wait for what never comes."""

from __future__ import annotations

import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import connection, get_context
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch

from deopt_lightning import DEOptCallback
from deopt_lightning.workers import Workers
from tests.deopt_lightning.test_workers import MAIN, run_shared_out
from tests.tiny import TinyModel, fit


@pytest.fixture
def open_in_tasks() -> Any:
    """A pipe's ends; the first shows when nobody has the second, which the test closes, open."""
    ends = os.pipe()
    yield ends
    os.close(ends[0])


def test_a_process_that_dies_amid_a_result_is_redone(open_in_tasks: tuple[int, int]) -> None:
    shows_end, held = open_in_tasks

    def task(index: int) -> torch.Tensor:
        if os.getpid() != MAIN:
            time.sleep(0.2)  # so that the main process takes the other task
            Timer(0.5, os.kill, [os.getpid(), signal.SIGKILL]).start()  # the pipe is full by then
        elif index == 1:
            os.close(held)
            assert connection.wait([shows_end], 20)
        return torch.full((2_000_000,), index)

    with pytest.warns(UserWarning, match="stopped before 1 of 2 candidates were done"):
        results = dict(run_shared_out(task, 2, 2))
    assert all(bool((tensor == index).all()) for index, tensor in results.items())
    assert sorted(results) == [0, 1]


def test_no_process_stays_when_the_main_one_is_killed_amid_a_result(
    open_in_tasks: tuple[int, int],
) -> None:
    shows_end, held = open_in_tasks

    def train() -> None:
        os.setpgrp()
        dict(run_shared_out(task, 3, 3))

    def task(index: int) -> torch.Tensor:
        if os.getppid() == MAIN:
            time.sleep(0.5)  # until the others have filled their pipes
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((2_000_000,), index)

    main = get_context("fork").Process(target=train)
    main.start()
    os.close(held)
    main.join(20)
    try:
        assert main.exitcode == -signal.SIGKILL
        assert connection.wait([shows_end], 20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(main.pid, signal.SIGKILL)


def test_a_process_that_waits_for_a_thread_of_the_main_one_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deopt_lightning.workers._STANDS_STILL", 1.0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # its thread exists from now on, but in no forked process
        with Workers(lambda index: pool.submit(abs, -index).result(), 2) as processes:
            with pytest.warns(UserWarning, match="has done nothing for 1 s"):
                first = dict(processes.run(4))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                again = dict(processes.run(4))
    assert first == again == {index: index for index in range(4)}


@pytest.mark.parametrize("carry", ["population", "hyperparameters"])
def test_a_run_whose_processes_stood_still_makes_no_more(
    carry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deopt_lightning.workers._STANDS_STILL", 1.0)
    options: dict[str, Any] = {} if carry == "population" else {"probe_steps": 2}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()

        class Pooled(TinyModel):
            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                pool.submit(int).result()
                return super().training_step(batch, batch_idx)

        callback = DEOptCallback("val_loss", population_size=4, workers=2, carry=carry, **options)
        with pytest.warns(UserWarning, match="has done nothing for 1 s") as warned:
            fit(tmp_path, [callback], model=Pooled, max_epochs=4)
    assert len(callback.history) >= 3
    assert sum("has done nothing for 1 s" in str(warning.message) for warning in warned) == 1


def test_a_process_that_works_for_long_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deopt_lightning.workers._STANDS_STILL", 0.2)

    def task(index: int) -> int:
        end = time.monotonic() + (0 if os.getpid() == MAIN else 1.5)
        while time.monotonic() < end:
            pass
        return os.getpid()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = dict(run_shared_out(task, 3, 2))
    assert len(set(results.values())) == 2
