"""The page of a comparison: one HTML file that needs nothing beside it, and its Markdown."""

from html import escape
from pathlib import Path

from recsys_models.comparison.budget import equal_cost, time_to_match
from recsys_models.comparison.colours import colours_of
from recsys_models.comparison.figures import budget_pictures, time_picture
from recsys_models.comparison.frame import Frame
from recsys_models.comparison.look import LOOK
from recsys_models.comparison.printed import printed
from recsys_models.comparison.results import Results
from recsys_models.comparison.tables import (
    Table,
    cells_as_csv,
    costs,
    per_user,
    quality,
    signed_ranks,
)

# One statement for all: the tuners do not mean the same by "lambda".
PENALTIES = (
    "For every tuner but SGDA and lambda-opt, λ is the optimizer's weight decay, which is dense. "
    "In every step it adds λθ to the gradient of every parameter θ, looked up or not: a penalty "
    "of λ/2 θ². Grid, random search, Optuna, PBT and all forms of DE-Opt set it, within the same "
    "bounds. SGDA and lambda-opt learn an L2 penalty over the rows of each batch instead, as "
    "their papers have it: a row that c of a batch's P pairs look up gets 2λθ c/P, any other "
    "nothing, and weight decay stays 0. SGDA has a λ per group and factor and steps it by SGD, "
    "lambda-opt up to one per parameter and steps it by AMSGrad. Hence their λ are no numbers to "
    "set beside the others'; only what they reach is."
)


def write_report(folder: Path, frame: Frame, results: Results) -> None:
    """Write report.md, cells.csv and report.html of what is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(_markdown(frame, results))
    (folder / "cells.csv").write_text(cells_as_csv(results))
    (folder / "report.html").write_text(_html(frame, results))


def _tables(frame: Frame, results: Results) -> dict[str, Table]:
    """The tables that have rows, by the part of the page that they belong to."""
    tables = {"costs": costs(results, frame.withdrawn)}
    if not frame.time_only:
        tables = {
            "quality": quality(results, frame.withdrawn),
            "printed": printed(results, frame),
            "signed_ranks": signed_ranks(results),
            "per_user": per_user(results),
            "equal_cost": equal_cost(results),
            "time_to_match": time_to_match(results),
            **tables,
        }
    return {name: table for name, table in tables.items() if table.rows}


def _summary(results: Results) -> str:
    versions = next((result.versions for result in results.of.values()), {})
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in results.cells}))
    done = f"{len(results.of)} of {len(results.cells)} runs finished, seeds {seeds}."
    return f"{done} {used}".strip()


def _gaps(results: Results) -> list[str]:
    return [
        f"{cell.name}: no result; it ended with: {cell.last_words()}"
        if cell.has_begun
        else f"{cell.name}: not run"
        for cell in results.missing
    ]


def _markdown(frame: Frame, results: Results) -> str:
    parts = [f"# {frame.title}\n\n{_summary(results)}\n"]
    parts += [f"```bash\n{frame.command}\n```\n"] * bool(frame.command)
    parts += [table.markdown() for table in _tables(frame, results).values()]
    parts += [f"## What λ means\n\n{PENALTIES}\n"] * (not frame.time_only)
    if gaps := _gaps(results):
        parts.append("## Not finished\n\n" + "\n".join(f"- {line}" for line in gaps) + "\n")
    return "\n".join(parts)


def _html(frame: Frame, results: Results) -> str:
    colours = colours_of(results.tuners)
    tables = {name: _table(t, colours) for name, t in _tables(frame, results).items()}
    curves = "" if frame.time_only else _tabs(budget_pictures(results))
    times = time_picture(results)
    sections = [
        tables.get("quality", ""),
        tables.get("printed", ""),
        curves and f"<h2>Quality over budget</h2>{_paragraph(CURVES_NOTE)}{curves}",
        tables.get("equal_cost", ""),
        tables.get("time_to_match", ""),
        times and f"<h2>Time of training (Fig. 2 and 3 of the paper)</h2>{_picture(times)}",
        tables.get("costs", ""),
        tables.get("signed_ranks", ""),
        tables.get("per_user", ""),
        "" if frame.time_only else f"<h2>What λ means</h2>{_paragraph(PENALTIES)}",
        _list("Not finished", _gaps(results)),
    ]
    command = f"<pre>{escape(frame.command)}</pre>" if frame.command else ""
    title = escape(frame.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{LOOK}</style></head>\n'
        f"<body><header><h1>{title}</h1>{_paragraph(_summary(results))}{command}</header>\n<main>"
        + "".join(f"<section>{section}</section>\n" for section in sections if section)
        + "</main></body></html>\n"
    )


CURVES_NOTE = (
    "Each line is the mean over seeds of the best value on validation so far, over everything that "
    "was spent until then, settings that were given up included; its dot is where the last run "
    "ended. Faint lines are single seeds."
)


def _tabs(pictures: list[tuple[str, str]]) -> str:
    """Pictures of which one is seen at a time, chosen without a script."""
    parts = []
    for k, (name, _) in enumerate(pictures):
        checked = " checked" if k == 0 else ""
        parts.append(f"<input type=radio name=budget id=budget{k}{checked}>")
        parts.append(f"<label for=budget{k}>{escape(name)}</label>")
    shown = "".join(f"<div class=tab>{_picture(svg)}</div>" for _, svg in pictures)
    return f"<div class=tabs>{''.join(parts)}{shown}</div>" if pictures else ""


def _picture(svg: str) -> str:
    return f"<div class=scroll>{svg}</div>"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _list(title: str, lines: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{title}</h2><ul>{items}</ul>" if lines else ""


def _table(table: Table, colours: dict[str, str]) -> str:
    head = "".join(
        f"<th{' class=label' if k < table.labels else ''}>{escape(name)}</th>"
        for k, name in enumerate(table.header)
    )
    lines = []
    for r, row in enumerate(table.rows):
        block = " class=block" if r and table.rows[r - 1][0] != row[0] and table.labels > 1 else ""
        cells = "".join(_cell(table, r, k, colours) for k in range(len(row)))
        lines.append(f"<tr{block}>{cells}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.footnotes)
    return (
        f"<h2>{escape(table.title)}</h2>{_paragraph(table.note)}\n<div class=scroll><table>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table></div>\n"
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _cell(table: Table, row: int, column: int, colours: dict[str, str]) -> str:
    text = table.rows[row][column]
    if column < table.labels:
        # A model is named where its rows begin, and a tuner has the colour of its curves.
        repeated = column == 0 and row and table.rows[row - 1][0] == text and table.labels == 2
        dot = f"<i style=background:{colours[text]}></i>" if text in colours else ""
        return f"<td class=label>{dot}{'' if repeated else escape(text)}</td>"
    strength = table.shades.get((row, column))
    style = "" if strength is None else f" style=--s:{strength:.2f}"
    kind = " class=best" if (row, column) in table.best else ""
    return f"<td{kind}{style}>{escape(text)}</td>"
