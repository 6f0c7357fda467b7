"""The tables of a comparison as plain cells of text, and their Markdown and CSV."""

import csv
import io
from dataclasses import dataclass, field

from recsys_models.comparison.results import Results
from recsys_models.comparison.statistics import mean_and_sd
from recsys_models.report import Result

NOTHING = "–"
WITHDRAWN = "data set withdrawn"
REFERENCES = ("MostPop", "EASE")


@dataclass(frozen=True)
class Table:
    """A table of text; the first `labels` columns name its rows.

    Attributes:
        best: positions (row, column) of the best value of a column within a model.
        footnotes: sentences below it.
        shades: of positions, where their value lies between the worst (0) and the best (1) of its
            column within a model.
    """

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    labels: int
    best: frozenset[tuple[int, int]] = frozenset()
    footnotes: tuple[str, ...] = ()
    shades: dict[tuple[int, int], float] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table in Markdown, best values bold."""
        lines = [self.header, ["---"] * self.labels + ["---:"] * (len(self.header) - self.labels)]
        for r, row in enumerate(self.rows):
            lines.append([f"**{c}**" if (r, k) in self.best else c for k, c in enumerate(row)])
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "".join(f"\n- {note}" for note in self.footnotes)
        return f"## {self.title}\n\n{self.note}\n\n{body}\n" + (f"{notes}\n" if notes else "")


def quality(results: Results, withdrawn: list[str]) -> Table:
    """The paper's layout: a row per tuner, a column per data set and metric."""
    columns = [(data, metric) for data in results.datasets for metric in results.metrics]
    blank = [WITHDRAWN] * len(withdrawn)
    rows = []
    known_of = {n: [results.reference(d, n, metric) for d, metric in columns] for n in REFERENCES}
    if any(value is not None for values in known_of.values() for value in values):
        for name, values in known_of.items():  # of recommenders alone
            rows.append([NOTHING, name, *(number(v) for v in values), *blank])
    shades: dict[tuple[int, int], float] = {}
    for model in results.models:
        first = len(rows)
        table = [[results.test(d, model, t, m) for d, m in columns] for t in results.tuners]
        for tuner, found in zip(results.tuners, table, strict=True):
            rows.append([model, tuner, *(with_deviation(value) for value in found), *blank])
        for k in range(len(columns)):
            known = {first + r: v[0] for r, line in enumerate(table) if (v := line[k]) is not None}
            shades |= {(r, k + 2): share for r, share in _shares(known).items()}
    seeds = sorted({cell.seed for cell in results.of})
    return Table(
        "Quality on the test set",
        f"Mean ± standard deviation over seeds ({', '.join(map(str, seeds))}). Every decision was "
        "made on validation; the test set was read once per run. Best per model in bold.",
        ["model", "tuner", *(f"{data} {metric}" for data, metric in columns), *withdrawn],
        rows,
        2,
        frozenset(place for place, share in shades.items() if share == 1),
        shades=shades,
    )


def signed_ranks(results: Results) -> Table:
    """The paper's test: is a tuner better than the baseline over data sets and metrics?"""
    several = len(results.models) > 1
    groups = [[model] for model in results.models] + ([results.models] if several else [])
    rows = []
    for tuner in results.tuners:
        if tuner == results.baseline:
            continue
        found = [results.signed_rank(tuner, group) for group in groups]
        cells = [NOTHING if p is None else f"{p:.4f} (n={n})" for p, n in found]
        rows.append([tuner, *cells])
    return Table(
        f"Better than {results.baseline}? Wilcoxon signed-rank, exact and one-sided",
        "Pairs are data set, model and metric, each a mean over the seeds that both sides have. "
        "The smallest p-value that n pairs allow is 1 / 2^n.",
        ["tuner", *results.models, *(["all models"] if several else [])],
        rows,
        1,
    )


def per_user(results: Results) -> Table:
    """Two-sided tests with users as pairs."""
    rows = [
        [row.data, row.model, row.tuner, f"{row.difference:+.4f}", str(row.users)]
        + [f"{row.p_value:.2g}", f"{row.corrected:.2g}"]
        for row in results.per_user
    ]
    return Table(
        f"Against {results.baseline}, user by user",
        f"Test {results.user_metric} of the same users, each a mean over the seeds; "
        "Wilcoxon signed-rank, two-sided, p-values corrected by Holm for all rows of this table.",
        ["data", "model", "tuner", "mean difference", "users that differ", "p", "p (Holm)"],
        rows,
        3,
    )


def costs(results: Results, withdrawn: list[str]) -> Table:
    """What every tuner has spent, all settings and probes included."""
    names = ("gradient steps", "validation passes", "CPU seconds", "wall seconds")
    columns = [(data, k) for data in results.datasets for k in range(len(names))]
    rows = []
    for model in results.models:
        for tuner in results.tuners:
            runs = {data: results.runs(data, model, tuner) for data in results.datasets}
            spent = {data: [costs_of(run) for run in found] for data, found in runs.items()}
            counts = [_count([run[k] for run in spent[data]]) for data, k in columns]
            rows.append([model, tuner, *counts, *([WITHDRAWN] * len(withdrawn))])
    return Table(
        "What it cost",
        "Means over seeds: optimizer steps, validation passes and seconds of training in one "
        "process with one thread, summed over every setting, probe and member. CPU seconds are "
        "the ones to compare: other programs on the machine lengthen wall seconds.",
        ["model", "tuner", *(f"{data} {names[k]}" for data, k in columns), *withdrawn],
        rows,
        2,
    )


def costs_of(run: Result) -> list[float | None]:
    """Gradient steps, validation passes, CPU and wall seconds of training."""
    steps = run.train_steps + run.probe_steps
    return [steps, run.evaluations, run.train_cpu_seconds, run.train_seconds]


def cells_as_csv(results: Results) -> str:
    """One line per finished run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(dict.fromkeys(name for result in results.of.values() for name in result.test))
    identity = ["data", "model", "tuner", "seed"]
    spent = ["gradient_steps", "validation_passes", "train_cpu_seconds", "train_seconds"]
    spent += ["seconds", "epochs"]
    stages = [f"{stage}/{name}" for stage in ("val", "test") for name in names]
    writer.writerow([*identity, *stages, *spent])
    for cell, run in results.of.items():
        values = [stage.get(name, "") for stage in (run.val, run.test) for name in names]
        costs = ["" if cost is None else cost for cost in costs_of(run)]
        identity_of = [cell.data, cell.model, cell.tuner, cell.seed]
        writer.writerow([*identity_of, *values, *costs, run.seconds, run.epochs])
    return text.getvalue()


def _shares(values: dict[int, float]) -> dict[int, float]:
    """Where each value lies between the lowest (0) and the highest (1); 1 where all are equal."""
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    return {r: (v - low) / (high - low) if high > low else 1.0 for r, v in values.items()}


def number(value: float | None) -> str:
    """A metric in a cell."""
    return NOTHING if value is None else f"{value:.4f}"


def with_deviation(found: tuple[float, float | None] | None) -> str:
    """Mean and standard deviation of a metric in a cell."""
    if found is None:
        return NOTHING
    mean, sd = found
    return f"{mean:.4f}" if sd is None else f"{mean:.4f} ± {sd:.4f}"


def _count(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    mean = mean_and_sd(known)[0]
    return f"{mean:,.0f}" if mean >= 10 else f"{mean:.3g}"
