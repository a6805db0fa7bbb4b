"""Writing a whole report into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from reporting.blocks import Material
from reporting.figures import colours
from reporting.files import write_text
from reporting.grid import without_duplicates
from reporting.markup import to_csv
from reporting.page import GENERATOR, render_markdown, render_page
from reporting.published import Published
from reporting.runs import Run
from reporting.sections import build_sections
from utils import UserError

PAGE = "index.html"
FIGURES, TABLES = "figures", "tables"  # folders of a report


def build_report(runs: Sequence[Run], left_out: Sequence[str], published: Published, out: Path) -> list[str]:
    """Write index.html, report.md, tables/*.csv and figures/* about `runs` into `out`; the findings in words.

    An earlier report in `out` is replaced. Raises UserError if `out` is not writable.
    """
    kept, repeated = without_duplicates(runs)
    try:
        _clear(out)
        palette = colours(run.label for run in kept)
        sections = build_sections(Material(kept, [*left_out, *repeated], published, out / FIGURES, palette))
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror}") from error
    for table in (table for section in sections for table in section.data):
        write_text(out / TABLES / f"{table.name}.csv", to_csv(table))
    write_text(out / "report.md", render_markdown(sections, out))
    write_text(out / PAGE, render_page(sections))
    return [line for block in sections[0].blocks for line in block.lines]


def _clear(out: Path) -> None:
    """Remove the figures and tables of an earlier report, so that none of another set of runs stays."""
    page = out / PAGE
    if page.is_file() and GENERATOR in page.read_text(encoding="utf-8", errors="replace"):
        for folder in (out / FIGURES, out / TABLES):
            shutil.rmtree(folder, ignore_errors=True)
