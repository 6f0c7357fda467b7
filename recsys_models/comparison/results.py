"""The finished cells of a comparison, and the tests between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from recsys_models.comparison.cells import Cell, finished_of
from recsys_models.comparison.statistics import (
    holm,
    mean_and_sd,
    one_sided_signed_rank,
    two_sided_signed_rank,
)
from recsys_models.report import Result

PER_USER_STEP = 1e-4  # metrics of a user are compared as multiples of this


@dataclass(frozen=True)
class PerUser:
    """One tuner against the baseline on one data set with one model, users paired.

    Attributes:
        difference: mean over users of the difference, each user's a mean over seeds.
        users: how many differ at all.
        p_value: two-sided.
        corrected: for all tests of the comparison, by Holm.
    """

    data: str
    model: str
    tuner: str
    difference: float
    users: int
    p_value: float
    corrected: float


@dataclass(frozen=True)
class Pair:
    """One tuner against the baseline on one data set with one model by one metric.

    Attributes:
        seeds: how many both tuners have.
        difference: mean over these seeds of the difference.
    """

    data: str
    model: str
    metric: str
    seeds: int
    difference: float


class Results:
    """What the cells of a comparison have left so far.

    Args:
        cells: all planned cells, also those without a result.
        metrics: the metrics of the table.
        baseline: the tuner that others are compared with.
    """

    def __init__(self, cells: Sequence[Cell], metrics: Sequence[str], baseline: str) -> None:
        self.metrics = list(metrics)
        self.baseline = baseline
        self.cells = list(cells)
        self.datasets, self.models, self.tuners = (
            list(dict.fromkeys(getattr(cell, name) for cell in cells))
            for name in ("data", "model", "tuner")
        )
        self.of: dict[Cell, Result] = finished_of(cells)
        self.missing = [cell for cell in cells if cell not in self.of]

    def runs(self, data: str, model: str, tuner: str) -> list[Result]:
        """The finished runs of all seeds."""
        return [self.of[cell] for cell in self.by_seed(data, model, tuner).values()]

    def test(
        self, data: str, model: str, tuner: str, metric: str
    ) -> tuple[float, float | None] | None:
        """Mean and standard deviation of a test metric over seeds."""
        values = [r.test[metric] for r in self.runs(data, model, tuner) if metric in r.test]
        return mean_and_sd(values) if values else None

    def reference(self, data: str, name: str, metric: str) -> float | None:
        """A test metric of MostPop or EASE, which know no seed."""
        for cell, result in self.of.items():
            if cell.data == data and metric in result.reference.get(name, {}):
                return result.reference[name][metric]
        return None

    def signed_rank(self, tuner: str, models: Sequence[str]) -> tuple[float | None, int]:
        """One-sided p-value over all pairs, and their number."""
        pairs = self.pairs(tuner, models)
        return one_sided_signed_rank([pair.difference for pair in pairs]), len(pairs)

    def pairs(self, tuner: str, models: Sequence[str]) -> list[Pair]:
        """A tuner against the baseline, wherever the two have a seed in common."""
        found = []
        for data, model in product(self.datasets, models):
            mine, other = (self.by_seed(data, model, t) for t in (tuner, self.baseline))
            tests = [(self.of[mine[s]].test, self.of[other[s]].test) for s in mine if s in other]
            for metric in self.metrics:
                gains = [a[metric] - b[metric] for a, b in tests if metric in a and metric in b]
                if gains:
                    mean = float(np.mean(gains))
                    found.append(Pair(data, model, metric, len(gains), mean))
        return found

    @property
    def user_metric(self) -> str:
        """What the test per user compares: NDCG where the table has it, else its first metric."""
        return next((m for m in self.metrics if m.startswith("ndcg")), self.metrics[0])

    @cached_property
    def per_user(self) -> list[PerUser]:
        """The paired tests over users, as far as both sides have the same seeds."""
        rows = []
        for data in self.datasets:
            for model in self.models:
                for tuner in self.tuners:
                    pairs = self._paired_users(data, model, tuner)
                    p_value = None if pairs is None else two_sided_signed_rank(pairs)
                    if pairs is not None and p_value is not None:
                        moved = int((pairs != 0).sum())
                        rows.append((data, model, tuner, float(pairs.mean()), moved, p_value))
        corrected = holm([row[-1] for row in rows])
        return [PerUser(*row, value) for row, value in zip(rows, corrected, strict=True)]

    def _paired_users(self, data: str, model: str, tuner: str) -> NDArray[np.float64] | None:
        """Differences to the baseline per user, means over the seeds that both have.

        They are differences of whole steps, so that equal users are equal to the last digit.
        """
        if tuner == self.baseline:
            return None
        mine, other = (self._users_by_seed(data, model, name) for name in (tuner, self.baseline))
        differences = [mine[seed] - other[seed] for seed in mine if seed in other]
        mean: NDArray[np.float64] | None = np.sum(differences, axis=0) if differences else None
        return mean if mean is None else mean * (PER_USER_STEP / len(differences))

    def by_seed(self, data: str, model: str, tuner: str) -> dict[int, Cell]:
        """The finished cells of one row."""
        wanted = (data, model, tuner)
        return {c.seed: c for c in self.of if (c.data, c.model, c.tuner) == wanted}

    def _users_by_seed(self, data: str, model: str, tuner: str) -> dict[int, NDArray[np.float64]]:
        found = {
            seed: cell.per_user(self.user_metric)
            for seed, cell in self.by_seed(data, model, tuner).items()
        }
        return {s: np.rint(v / PER_USER_STEP) for s, v in found.items() if v is not None}
