"""Grid search and random search: settings that are known before the first is trained."""

import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context

import numpy as np

from recsys_models.tuning.settings import Outcome, Setting, Space, Trainable, check_count


class GridSearch:
    """Trains every pair of a grid of lr and weight decay, as the paper's Grid Search does.

    Args:
        space: the bounds, which are the first and the last values of the grid.
        size: number of lr and number of weight decays, of which one is 0.
        n_jobs: processes that train at the same time.
    """

    def __init__(self, space: Space, size: Sequence[int], n_jobs: int = 1) -> None:
        if not isinstance(size, Sequence) or len(size) != 2:
            raise ValueError(
                "the grid must be two numbers, of lrs and of weight decays, such as [5,4]; got "
                f"{size!r}."
            )
        for name, count in zip(("the grid's lr", "the grid's weight decays"), size, strict=True):
            check_count(name, count, 1)
        self.settings = space.grid(size[0], size[1])
        self.n_jobs = n_jobs

    def run(self, trainable: Trainable) -> list[Outcome]:
        """Train all settings."""
        return fit_all(trainable, self.settings, self.n_jobs)


class RandomSearch:
    """Trains the optimizer's own setting, then settings drawn evenly from the space.

    Args:
        space: the bounds.
        points: number of settings.
        seed: of the draws.
        n_jobs: processes that train at the same time.
    """

    def __init__(self, space: Space, points: int, seed: int, n_jobs: int = 1) -> None:
        check_count("points", points, 1)
        rng = np.random.default_rng(seed)
        self.settings = [space.own, *(space.sample(rng) for _ in range(points - 1))]
        self.n_jobs = n_jobs

    def run(self, trainable: Trainable) -> list[Outcome]:
        """Train all settings."""
        return fit_all(trainable, self.settings, self.n_jobs)


def fit_all(trainable: Trainable, settings: Sequence[Setting], n_jobs: int) -> list[Outcome]:
    """Train independent settings, several at a time in processes of their own if asked to."""
    check_count("n_jobs", n_jobs, 1)
    if n_jobs == 1:
        return [trainable.fit(setting) for setting in settings]
    # Forked processes would share torch's threads, so each begins anew. None of them heeds Ctrl-C:
    # one that is ended while it sends its KeyboardInterrupt leaves this one waiting for the rest.
    with ProcessPoolExecutor(
        n_jobs,
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        try:
            return list(pool.map(trainable.fit, settings))
        except (KeyboardInterrupt, SystemExit):  # a worker outlives it and trains what comes next
            for worker in active_children():
                worker.kill()
            raise
