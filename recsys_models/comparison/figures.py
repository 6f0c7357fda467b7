"""The pictures of a comparison as SVG: quality over budget, and time."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recsys_models.comparison.colours import colours_of
from recsys_models.comparison.results import Results
from recsys_models.costs import corners
from recsys_models.report import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUDGETS = {  # attribute of a curve's row, and its unit
    "steps": "gradient steps",
    "passes": "validation passes",
    "cpu_seconds": "CPU seconds",
    "seconds": "wall seconds",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and set in the page's own font
    "font.size": 9,
    "axes.edgecolor": "#888888",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#ececec",
    "axes.axisbelow": True,
}
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # costs and best values, both rising


def budget_pictures(results: Results) -> list[tuple[str, str]]:
    """Unit and SVG for every kind of budget; none while nothing is finished."""
    # Imported here: pictures are wanted once, after all cells have run.
    import matplotlib

    if not results.of:
        return []
    with matplotlib.rc_context(STYLE):
        return [(unit, _svg(_curves(results, cost, unit), cost)) for cost, unit in BUDGETS.items()]


def time_picture(results: Results) -> str:
    """SVG of how long training took; empty while nothing is finished."""
    import matplotlib

    if not results.of:
        return ""
    with matplotlib.rc_context(STYLE):
        return _svg(_times(results), "times")


def mean_curve(curves: list[Curve]) -> Curve:
    """Mean over runs of the best value, from where all have one; a run that has ended keeps its."""
    costs = np.unique(np.concatenate([cost for cost, _ in curves]))
    costs = costs[costs >= max(cost[0] for cost, _ in curves)]
    values = [value[np.searchsorted(cost, costs, side="right") - 1] for cost, value in curves]
    return costs, np.mean(values, axis=0)


def _curve(run: Result, cost: str) -> Curve | None:
    """A run's curve, if it has one whose costs of that kind are known."""
    rows = corners(run.curve)
    spent = [getattr(row, cost) for row in rows]
    if not rows or None in spent:
        return None
    return np.array(spent, dtype=np.float64), np.array([row.value for row in rows])


def _curves(results: Results, cost: str, unit: str) -> "Figure":
    figure, panels = _panels(results, 3.5)
    colours = colours_of(results.tuners)
    for (model, data), axes in panels.items():
        axes.set_title(f"{model} on {data}")
        axes.set(xlabel=unit, ylabel="best validation value so far")
        _log_axis(axes)
        ends = []
        for tuner in results.tuners:
            runs = [_curve(run, cost) for run in results.runs(data, model, tuner)]
            curves = [curve for curve in runs if curve is not None]
            if curves:
                mean = mean_curve(curves)
                ends.append(float(mean[1][-1]))
                _draw(axes, curves, mean, colours[tuner], tuner)
        if ends:  # the ends are what is compared: beginnings far from them are cut off
            margin = max(0.3 * (max(ends) - min(ends)), 0.1 * abs(max(ends)))
            axes.set_ylim(min(ends) - margin, max(ends) + margin)
    _legend(figure, list(panels.values()))
    return figure


def _draw(axes: "Axes", curves: list[Curve], mean: Curve, colour: str, tuner: str) -> None:
    """The mean over seeds with its end marked, and every seed faintly."""
    step: Any = "steps-post"
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*curve, drawstyle=step, color=colour, linewidth=0.6, alpha=0.35)
    ours = tuner.startswith("deopt")
    width = 2.2 if ours else 1.3
    axes.plot(*mean, drawstyle=step, color=colour, linewidth=width, label=tuner, zorder=3 + ours)
    axes.plot(mean[0][-1], mean[1][-1], "o", color=colour, markersize=4, zorder=3 + ours)


def _times(results: Results) -> "Figure":
    figure, panels = _panels(results, 0.7 + 0.24 * len(results.tuners))
    colours = list(colours_of(results.tuners).values())
    for (model, data), axes in panels.items():
        runs = [results.runs(data, model, tuner) for tuner in results.tuners]
        wall = [_mean([run.train_seconds for run in found]) for found in runs]
        cpu = [_mean([run.train_cpu_seconds or 0.0 for run in found]) for found in runs]
        axes.barh(results.tuners, wall, height=0.7, color=colours, alpha=0.3)
        bars = axes.barh(results.tuners, cpu, height=0.7, color=colours)
        longest = [f"{max(pair):,.3g}" if max(pair) else "" for pair in zip(wall, cpu, strict=True)]
        for bar, label, width in zip(bars, longest, map(max, wall, cpu), strict=True):
            axes.annotate(
                label,
                (width, bar.get_y() + bar.get_height() / 2),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.invert_yaxis()
        axes.set_title(f"{model} on {data}")
        axes.set_xlabel("seconds, mean over seeds: CPU, and pale to wall")
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
    return figure


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def _panels(results: Results, height: float) -> "tuple[Figure, dict[tuple[str, str], Axes]]":
    """One panel per model and data set: a row per model, or all in rows of three."""
    from matplotlib.figure import Figure

    pairs = [(model, data) for model in results.models for data in results.datasets]
    columns = len(results.datasets) if len(results.datasets) > 1 else min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    width = 7.4 if columns == 1 else 4.6 * columns
    figure = Figure(figsize=(width + 1.6, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[len(pairs) :]:
        unused.remove()
    return figure, dict(zip(pairs, axes, strict=False))


def _legend(figure: "Figure", panels: "list[Axes]") -> None:
    handles: dict[Any, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        place: Any = "outside right upper"
        figure.legend(list(handles.values()), list(handles), loc=place, frameon=False)


def _log_axis(axes: "Axes") -> None:
    """A log axis with round numbers also where it spans less than a decade."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())


def _svg(figure: "Figure", name: str) -> str:
    """The picture; the same runs give the same one, with ids that no other picture has."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
