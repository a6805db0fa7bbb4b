"""Writing a report: what templates/ shows, as one HTML page, Markdown, CSV files and figures."""

from __future__ import annotations

import base64
import datetime
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from reporting import figures, grid, tables
from reporting.published import REFERENCE, Published
from reporting.runs import Run
from utils import UserError, as_file_name, write_atomically

PAGE = "index.html"
FIGURES, TABLES = "figures", "tables"  # folders of a report
LARGEST_VIDEO = 8_000_000  # bytes; a larger one would make the page unwieldy
GENERATOR = '<meta name="generator" content="report.py">'  # tells our pages from others


def build_report(runs: Sequence[Run], left_out: Sequence[str], published: Published, out: Path) -> list[str]:
    """Write index.html, report.md, tables/*.csv and figures/* about `runs` into `out`; return the findings.

    An earlier report in `out` is replaced. Raise UserError if `out` is not writable.
    """
    kept, repeated = grid.without_duplicates(runs)
    parts = Parts(kept, [*left_out, *repeated], published)
    try:
        _clear(out)
        for name, figure in parts.figures.items():
            figures.save(figure, out / FIGURES / name)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror}") from error
    tables.write_csv(out / TABLES, "evaluations", parts.scores)
    for table in parts.tables.values():
        tables.write_csv(out / TABLES, table.name, table.frame)
    for form, name in (("md", "report.md"), ("html", PAGE)):
        write_atomically(out / name, render(form, vars(parts), out))
    return [*parts.summary, *parts.left_out]


def file_names(texts: Sequence[str]) -> dict[str, str]:
    """Return a file's name, without its ending, for each text; no two share one on any system."""
    names: dict[str, str] = {}
    for text in texts:
        name = as_file_name(text)
        while name.lower() in {other.lower() for other in names.values()}:
            name += "_"
        names[text] = name
    return names


def _clear(out: Path) -> None:
    """Remove the figures and tables of an earlier report, so that none of another set of runs stays."""
    page = out / PAGE
    if page.is_file() and GENERATOR in page.read_text(encoding="utf-8", errors="replace"):
        for folder in (out / FIGURES, out / TABLES):
            shutil.rmtree(folder, ignore_errors=True)


def as_address(content: bytes, media_type: str) -> str:
    """Return a data: address of a file's content."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def render(form: str, parts: Mapping[str, Any], out: Path) -> str:
    """Return the report as "html" or "md": templates/sections.jinja with the macros of templates/forms.*."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"), encoding="utf-8")
    environment = Environment(loader=loader, autoescape=form == "html", trim_blocks=True, lstrip_blocks=True)
    environment.filters["address"] = as_address
    forms = environment.get_template(f"forms.{form}").make_module({"folder": out / FIGURES})
    body = environment.get_template("sections.jinja").render(form=forms, **parts)
    facts = {"date": datetime.date.today().isoformat(), "generator": GENERATOR}
    facts["links"] = re.findall(r'<h2 id="(.*?)">(.*?)</h2>', body)
    page = environment.get_template(f"page.{form}").render(body=body, **facts, **parts)
    return re.sub(r"\n{3,}", "\n\n", page)


class Parts:
    """What the templates show of `runs`; `missing` says which runs a figure leaves out, and why."""

    def __init__(self, runs: Sequence[Run], left_out: Sequence[str], published: Published) -> None:
        self.runs, self.published = runs, published
        self.is_atari = any(run.is_atari for run in runs)
        self.is_benchmark = any(run.benchmarked for run in runs)
        self.scores = grid.score_frame(runs)
        self.palette = figures.colours(run.label for run in runs)
        self.figures: dict[str, figures.Figure] = {}
        self.missing: dict[str, list[str]] = {}
        self.tables = {
            "per_game": tables.game_table(self.scores, published),
            "speed": tables.speed_table(runs),
        }
        games, labels = sorted({run.game for run in runs}), ", ".join(grid.by_label(runs))
        self.summary = [f"Training runs: {len(runs)}, of {labels}; games: {len(games)}."]
        if self.is_atari:
            counted = sum(run.benchmarked for run in runs)
            self.summary += [f"Runs with an Atari-100k score (an evaluation at step 100,000): {counted}."]
        self.comparisons = grid.comparisons(self.scores, published) if self.is_atari else []
        for comparison in self.comparisons:
            self._add_averages(comparison)
        self.curves = {game: f"curves/{name}" for game, name in file_names(games).items()}
        self.missing["curves"] = [line for game in games for line in self._add_learning_curves(game)]
        self.videos = newest_videos(runs)
        self.left_out = [f"left out: {line}" for line in left_out]
        self.limits = [*grid.remarks(runs, published), *self.left_out]

    def _add_averages(self, comparison: grid.Comparison) -> None:
        suffix = comparison.suffix
        table = self.tables[f"aggregates{suffix}"] = tables.aggregate_table(comparison)
        if not comparison.ours:
            return
        self.figures[f"performance_profiles{suffix}"] = figures.draw_profiles(comparison, self.palette)
        self.missing[f"aggregates{suffix}"] = grid.absent_from(comparison, self.runs)
        rows = {(row.method, row.origin): row for row in table.frame.itertuples()}
        self.summary += [
            f"{label} here, {comparison.scope}{' only' * bool(suffix)}: IQM "
            f"{_in_words(rows[label, tables.OURS])}; {REFERENCE} as published, on the same games: "
            f"{_in_words(rows[REFERENCE, 'published'])}."
            for label in comparison.ours
        ]

    def _add_learning_curves(self, game: str) -> list[str]:
        """Draw one game; return which runs are left out."""
        runs = [run for run in self.runs if run.game == game]
        scores = self.scores[self.scores.game == game]
        grids, missing = grid.seed_grids(runs, scores)
        reference = self.published.seed_range(game) if any(run.benchmarked for run in runs) else None
        self.figures[self.curves[game]] = figures.draw_game(game, grids, runs, reference, self.palette)
        return missing


def newest_videos(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return caption -> GIF of the newest imagination of one run per game and method that left any."""
    shown: dict[tuple[str, str], tuple[str, bytes]] = {}
    for run in runs:
        steps = {
            path: int((re.findall(r"\d+", path.stem) or [0])[-1]) for path in run.folder.glob("videos/*.gif")
        }
        path = max(steps, key=steps.__getitem__, default=None)
        content = path.read_bytes() if path and os.access(path, os.R_OK) else b""
        if content.startswith(b"GIF8") and len(content) <= LARGEST_VIDEO:
            caption = f"{run.game}, {run.label}, seed {run.seed}, step {steps[path]:,}"
            shown.setdefault((run.game, run.label), (caption, content))
    return dict(shown[place] for place in sorted(shown))


def _in_words(row: Any) -> str:
    low, high = (tables.show(bound, 3) for bound in (row.iqm_low, row.iqm_high))
    bounds = "too few runs for an interval" if low == tables.MISSING else f"95 % interval {low} to {high}"
    return f"{row.iqm:.3f} ({bounds})"
