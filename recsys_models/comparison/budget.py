"""What every tuner had reached when one of them was done, and when it was as good as another."""

import numpy as np
from scipy import stats

from recsys_models.comparison.results import Results
from recsys_models.comparison.statistics import mean_and_sd
from recsys_models.comparison.tables import NOTHING, Table, number
from recsys_models.report import Result

REFERENCE = "deopt"
LEARN_FROM_VALIDATION = ("sgda", "lambda_opt")  # their validation values say nothing


def equal_cost(results: Results) -> Table:
    """Best validation values at the cost of the reference's run, and their mean ranks.

    Costs are CPU seconds of training. A run that was over before keeps its last value; one that had
    no value yet, or whose costs are not known, is left out.
    """
    columns, tuners = _columns(results), _comparable(results)
    reached = {tuner: [_reached(results, *column, tuner) for column in columns] for tuner in tuners}
    ranks = _ranks(reached, falls=_falls(results))
    rows = [
        [tuner, *map(number, values), _mean(ranks[tuner])]
        for tuner, values in reached.items()
        if any(value is not None for value in values)
    ]
    best = {
        (r, k + 1)
        for r, (tuner, *_) in enumerate(rows)
        for k, rank in enumerate(ranks[tuner])
        if rank == 1
    }
    return Table(
        f"Validation at the cost of {REFERENCE}",
        f"The best value on validation that each tuner had when it had trained for as many CPU "
        f"seconds as {REFERENCE} in the end, means over the seeds that both have; and its mean "
        "rank among the tuners of each column, 1 the best. Tuners that learn from the validation "
        "pairs themselves are left out.",
        ["tuner", *(f"{data} {model}" for data, model in columns), "mean rank"],
        rows if any(row[0] == REFERENCE for row in rows) else [],
        1,
        frozenset(best),
    )


def time_to_match(results: Results) -> Table:
    """Steps until each tuner was as good as the baseline on validation, by all of the baseline's.

    A mean over the seeds that came to be as good, with their number and that of all.
    """
    columns = _columns(results)
    others = [tuner for tuner in _comparable(results) if tuner != results.baseline]
    rows = [[t, *(_shares_of_steps(results, *column, t) for column in columns)] for t in others]
    return Table(
        f"As good as {results.baseline} on validation",
        f"Optimizer steps until the best value on validation so far was that of {results.baseline} "
        f"in the end, by all steps of {results.baseline} at the same seed: the mean over the seeds "
        "that came so far, and how many of them did. Tuners that learn from the validation pairs "
        "themselves are left out.",
        ["tuner", *(f"{data} {model}" for data, model in columns)],
        [row for row in rows if set(row[1:]) != {NOTHING}],
        1,
    )


def _columns(results: Results) -> list[tuple[str, str]]:
    """Data sets and models."""
    return [(data, model) for data in results.datasets for model in results.models]


def _comparable(results: Results) -> list[str]:
    """Tuners whose validation values say something."""
    return [t for t in results.tuners if not t.startswith(LEARN_FROM_VALIDATION)]


def _shares_of_steps(results: Results, data: str, model: str, tuner: str) -> str:
    """The mean share and the number of seeds, as text."""
    mine, goals = (results.by_seed(data, model, name) for name in (tuner, results.baseline))
    pairs = [(results.of[mine[seed]], results.of[goals[seed]]) for seed in mine if seed in goals]
    pairs = [(run, goal) for run, goal in pairs if run.curve and goal.curve]
    if not pairs:
        return NOTHING
    sign = -1 if _falls(results) else 1
    shares = []
    for run, goal in pairs:
        whole = goal.curve[-1]
        steps = [row.steps for row in run.curve if sign * row.value >= sign * whole.value]
        shares += [steps[0] / whole.steps] if steps else []
    mean = f"{np.mean(shares):.0%}" if shares else NOTHING
    return f"{mean} ({len(shares)} of {len(pairs)})"


def _reached(results: Results, data: str, model: str, tuner: str) -> float | None:
    """Mean over seeds of the best value at the reference's cost."""
    mine, reference = (results.by_seed(data, model, name) for name in (tuner, REFERENCE))
    costs = {seed: results.of[cell].train_cpu_seconds for seed, cell in reference.items()}
    values = [_at(results.of[mine[seed]], costs[seed]) for seed in mine if seed in costs]
    known = [value for value in values if value is not None]
    return mean_and_sd(known)[0] if known else None


def _at(run: Result, cost: float | None) -> float | None:
    """The last value of a run's curve that cost at most so many CPU seconds."""
    if cost is None or any(row.cpu_seconds is None for row in run.curve):
        return None
    values = [row.value for row in run.curve if (row.cpu_seconds or 0.0) <= cost]
    return values[-1] if values else None


def _falls(results: Results) -> bool:
    """Whether smaller values are better: then curves of best values fall."""
    curves = [run.curve for run in results.of.values() if run.curve]
    return sum(curve[-1].value - curve[0].value for curve in curves) < 0


def _ranks(reached: dict[str, list[float | None]], *, falls: bool) -> dict[str, list[float | None]]:
    """Of each tuner in each column among those that have a value there; ties share a rank."""
    table = np.array([[np.nan if v is None else v for v in row] for row in reached.values()])
    ranks = stats.rankdata(table if falls else -table, axis=0, nan_policy="omit")
    return {
        tuner: [None if np.isnan(rank) else float(rank) for rank in row]
        for tuner, row in zip(reached, ranks, strict=True)
    }


def _mean(ranks: list[float | None]) -> str:
    known = [rank for rank in ranks if rank is not None]
    return f"{np.mean(known):.1f}" if known else NOTHING
