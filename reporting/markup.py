"""A table and its three forms: CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from reporting.statistics import Interval

OURS = "here"  # origin of a row that is not from the literature
MISSING = "–"

Value = str | int | float | Interval | None


@dataclass(frozen=True)
class Column:
    title: str
    key: str  # its name in the CSV
    digits: int = 0  # behind the decimal point
    interval: bool = False  # its values are Intervals: three columns in the CSV


@dataclass(frozen=True)
class Table:
    name: str  # file name without ending
    columns: Sequence[Column]
    rows: list[list[Value]] = field(default_factory=list)


def to_csv(table: Table) -> str:
    """The table as CSV; an interval takes three columns, a missing value an empty field."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([key for column in table.columns for key in _csv_keys(column)])
    for row in table.rows:
        pairs = zip(table.columns, row, strict=True)
        writer.writerow([text for column, value in pairs for text in _csv_values(column, value)])
    return file.getvalue()


def _csv_keys(column: Column) -> list[str]:
    return [column.key, *([f"{column.key}_low", f"{column.key}_high"] if column.interval else [])]


def _csv_values(column: Column, value: Value) -> list[str]:
    if column.interval:
        value = value if isinstance(value, Interval) else Interval(value)  # type: ignore[arg-type]
        return ["" if part is None else str(part) for part in (value.value, value.low, value.high)]
    return ["" if value is None else str(value)]


def show(value: Value, digits: int) -> str:
    """A value as a reader wants it: 0.561 [0.510, 0.616], 1,234.5, or – if missing."""
    if isinstance(value, Interval):
        bounds = "" if value.low is None else f" [{show(value.low, digits)}, {show(value.high, digits)}]"
        return show(value.value, digits) + bounds
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:,.{digits}f}"


def to_markdown(table: Table) -> str:
    """The table as GitHub's Markdown."""
    heads = [column.title for column in table.columns]
    rules = [
        "---:" if any(isinstance(row[index], (int, float, Interval)) for row in table.rows) else "---"
        for index in range(len(heads))
    ]
    body = [
        [
            show(value, column.digits).replace("|", "\\|")
            for column, value in zip(table.columns, row, strict=True)
        ]
        for row in table.rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rules, *body]) + "\n"


def to_html(table: Table) -> str:
    """The table as HTML whose cells carry the value they sort by."""
    heads = "".join(
        f'<th scope="col"><button type="button">{html.escape(column.title)}</button></th>'
        for column in table.columns
    )
    rows = []
    for row in table.rows:
        mark = ' class="ours"' if OURS in row else ""
        rows.append(f"<tr{mark}>{''.join(map(_html_cell, table.columns, row))}</tr>")
    return (
        f'<div class="scroll"><table id="{html.escape(table.name)}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _html_cell(column: Column, value: Value) -> str:
    if isinstance(value, Interval) and value.low is not None:
        low, high = show(value.low, column.digits), show(value.high, column.digits)
        text = f"{show(value.value, column.digits)} <small>[{low}, {high}]</small>"
        return f'<td class="number" data-sort="{value.value}">{text}</td>'
    number = value.value if isinstance(value, Interval) else value
    text = html.escape(show(number, column.digits))
    if isinstance(number, (int, float)):
        return f'<td class="number" data-sort="{number}">{text}</td>'
    return f"<td>{text}</td>"
