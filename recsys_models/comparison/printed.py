"""The numbers that the paper prints, beside ours."""

from typing import Any

from recsys_models.comparison.frame import Frame
from recsys_models.comparison.results import Results
from recsys_models.comparison.tables import NOTHING, REFERENCES, Table, number, with_deviation


def printed(results: Results, frame: Frame) -> Table:
    """A row for each printed row, as far as its data set and model are in this comparison."""
    metrics = [*dict.fromkeys(name for row in _rows(frame) for name in row if "@" in name)]
    rows = []
    for row in _rows(frame):
        if row["data"] not in results.datasets or row["model"] not in ("any", *results.models):
            continue
        ours = row.get("tuner")
        cells = [row["data"], row["model"], row["row"], NOTHING if ours is None else ours]
        for metric in metrics:
            cells.append(number(row.get(metric)))
            cells.append(NOTHING if ours is None else _ours(results, row, ours, metric))
        rows.append(cells)
    return Table(
        "Beside what the paper prints",
        f"{frame.printed.get('source', '')} What is left blank is not known to us.",
        ["data", "model", "row of the paper", "row here"]
        + [f"{metric} {whose}" for metric in metrics for whose in ("printed", "here")],
        rows,
        4,
        footnotes=tuple(frame.printed.get("why", ())),
    )


def _rows(frame: Frame) -> list[dict[str, Any]]:
    return list(frame.printed.get("values", []))


def _ours(results: Results, row: dict[str, Any], tuner: str, metric: str) -> str:
    if tuner in REFERENCES:
        return number(results.reference(row["data"], tuner, metric))
    return with_deviation(results.test(row["data"], row["model"], tuner, metric))
