"""The pictures of a comparison as SVG: quality over budget, and time."""

import io
from typing import TYPE_CHECKING, Any

from recsys_models.comparison.results import Results
from recsys_models.costs import corners
from recsys_models.report import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUDGETS = {  # attribute of a curve's row, and its unit
    "steps": "gradient steps",
    "passes": "validation passes",
    "cpu_seconds": "CPU seconds of training",
    "seconds": "wall seconds of training",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and set in the page's own font
    "svg.hashsalt": "comparison",  # the same runs give the same picture
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}


def pictures(results: Results) -> list[tuple[str, str]]:
    """Titles and SVG of all pictures; none while nothing is finished."""
    # Imported here: pictures are wanted once, after all cells have run.
    import matplotlib

    if not results.of:
        return []
    with matplotlib.rc_context(STYLE):
        curves = [
            (f"Best validation value over {unit}", _svg(_curves(results, cost, unit)))
            for cost, unit in BUDGETS.items()
        ]
        return [
            *curves,
            ("Time of training (as in Fig. 2 and 3 of the paper)", _svg(_times(results))),
        ]


def _points(run: Result, cost: str) -> tuple[list[float], list[float]]:
    """A run's curve, as far as that cost is known."""
    found = [(getattr(row, cost), row.value) for row in corners(run.curve)]
    known = [(spent, value) for spent, value in found if spent is not None]
    return [spent for spent, _ in known], [value for _, value in known]


def _curves(results: Results, cost: str, unit: str) -> "Figure":
    figure, panels = _panels(results)
    for (model, data), axes in panels.items():
        axes.set_title(f"{model} on {data}")
        axes.set(xlabel=unit, ylabel="validation")
        _log_axis(axes)
        ends = []
        for k, tuner in enumerate(results.tuners):
            for run in results.runs(data, model, tuner):
                axes.plot(
                    *_points(run, cost),
                    drawstyle="steps-post",
                    label=tuner,
                    linewidth=1.4,
                    color=_colour(k),
                    linestyle="--" if k >= 10 else "-",
                )
                ends += [row.value for row in run.curve[-1:]]
        if ends:  # the ends are what is compared: beginnings far from them are cut off
            margin = max(0.3 * (max(ends) - min(ends)), 0.15 * abs(max(ends)))
            axes.set_ylim(min(ends) - margin, max(ends) + margin)
    _legend(figure, list(panels.values()))
    return figure


def _times(results: Results) -> "Figure":
    figure, panels = _panels(results)
    for (model, data), axes in panels.items():
        runs = [results.runs(data, model, tuner) for tuner in results.tuners]
        wall = [sum(run.train_seconds for run in found) / max(len(found), 1) for found in runs]
        cpu = [
            sum(run.train_cpu_seconds or 0.0 for run in found) / max(len(found), 1)
            for found in runs
        ]
        colours = [_colour(k) for k in range(len(runs))]
        axes.barh(results.tuners, wall, height=0.65, color=colours, alpha=0.3)
        bars = axes.barh(results.tuners, cpu, height=0.65, color=colours)
        axes.bar_label(bars, fmt="{:.3g}", padding=3)
        axes.invert_yaxis()
        axes.set_title(f"{model} on {data}")
        axes.set_xlabel("CPU seconds (pale: wall seconds), mean over seeds")
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
    return figure


def _panels(results: Results) -> "tuple[Figure, dict[tuple[str, str], Axes]]":
    """One panel per model and data set: a row per model, or all in rows of three."""
    from matplotlib.figure import Figure

    pairs = [(model, data) for model in results.models for data in results.datasets]
    columns = len(results.datasets) if len(results.datasets) > 1 else min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.6, 3.5 * rows), layout="constrained")
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
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())


def _colour(k: int) -> str:
    return f"C{k % 10}"


def _svg(figure: "Figure") -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
