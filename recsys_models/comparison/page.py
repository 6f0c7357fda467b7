"""The page of a comparison: one HTML file that needs nothing beside it, and its Markdown."""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from recsys_models.comparison.cells import Cell
from recsys_models.comparison.figures import pictures
from recsys_models.comparison.results import Results
from recsys_models.comparison.tables import Table, all_tables, cells_as_csv

# One sentence for all: the tuners do not mean the same by "lambda".
PENALTIES = (
    "Weight decay of the optimizer is dense: every parameter shrinks in every step. It is what "
    "DE-Opt and all sweeps set. SGDA and lambda-opt learn an L2 penalty on the rows of each batch "
    "instead, which is how their papers define it, and leave weight decay at 0."
)
LOOK = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 76rem;
       padding: 0 1rem; }
h1 { font-weight: 650; margin-bottom: 0; } h2 { font-weight: 600; margin-top: 2.5rem; }
p { max-width: 48rem; color: #555; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .8rem; text-align: right; } td.label, th.label { text-align: left; }
th { border-bottom: 2px solid #444; font-weight: 600; } tr:hover td { background: #f4f7fb; }
tr.block td { border-top: 1px solid #bbb; } td.best { font-weight: 700; color: #0b5394; }
svg { max-width: 100%; height: auto; font-family: inherit; } .failed { color: #a00; }
"""


def write_report(
    folder: Path, title: str, results: Results, withdrawn: Iterable[str], failed: Iterable[Cell]
) -> None:
    """Write report.md, cells.csv and report.html of what is finished."""
    tables = all_tables(results, withdrawn)
    gaps = _gaps(results, list(failed))
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}\n\n{_summary(results)}\n\n{PENALTIES}\n", *(t.markdown() for t in tables)]
    parts += ["## Not finished\n\n" + "\n".join(f"- {line}" for line in gaps) + "\n"] * bool(gaps)
    (folder / "report.md").write_text("\n".join(parts))
    (folder / "cells.csv").write_text(cells_as_csv(results))
    (folder / "report.html").write_text(_html(title, results, tables, gaps))


def _summary(results: Results) -> str:
    versions = next((result.versions for result in results.of.values()), {})
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{len(results.of)} of {len(results.cells)} runs finished. {used}"


def _gaps(results: Results, failed: list[Cell]) -> list[str]:
    lines = [f"{cell.name} failed: {cell.last_words()}" for cell in failed]
    return lines + [f"{cell.name}" for cell in results.missing if cell not in failed]


def _html(title: str, results: Results, tables: list[Table], gaps: list[str]) -> str:
    figures = "".join(
        f"<h2>{escape(name)}</h2>\n<div class=scroll>{svg}</div>\n"
        for name, svg in pictures(results)
    )
    body = "".join(_html_table(table) for table in tables[:1])
    body += figures + "".join(_html_table(table) for table in tables[1:])
    if gaps:
        items = "".join(f"<li>{escape(line)}</li>" for line in gaps)
        body += f"<h2>Not finished</h2><ul class=failed>{items}</ul>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f'</title>\n<meta name="viewport" content="width=device-width"><style>{LOOK}</style>'
        f"</head>\n<body><h1>{escape(title)}</h1><p>{escape(_summary(results))}</p>"
        f"<p>{escape(PENALTIES)}</p>\n{body}</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(
        f"<th{' class=label' if k < table.labels else ''}>{escape(name)}</th>"
        for k, name in enumerate(table.header)
    )
    lines = []
    for r, row in enumerate(table.rows):
        block = " class=block" if r and table.rows[r - 1][0] != row[0] else ""
        cells = "".join(
            f"<td{_class(table, r, k)}>{escape(cell)}</td>" for k, cell in enumerate(row)
        )
        lines.append(f"<tr{block}>{cells}</tr>")
    return (
        f"<h2>{escape(table.title)}</h2><p>{escape(table.note)}</p>\n<div class=scroll><table>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table></div>\n"
    )


def _class(table: Table, row: int, column: int) -> str:
    if column < table.labels:
        return " class=label"
    return " class=best" if (row, column) in table.best else ""
