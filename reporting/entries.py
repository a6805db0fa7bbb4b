"""Entries of results/: the small files of one run with their checksums, and the README that lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template

from reporting.published import BENCHMARK_STEP, Published
from reporting.runs import SECONDS_PER_HOUR, Run, RunFiles, load_run
from reporting.tables import make_table
from run_files.manifest import MANIFEST, altered, read_manifest
from utils import UserError, as_file_name

README = "README.md"
TEMPLATES = Path(__file__).with_name("templates")
COLUMNS = "method game seed step mean_return:1 evaluated episodes published settings hours:2 hardware commit"


@dataclass(frozen=True)
class Entry:
    """One recorded run under results/."""

    folder: Path
    run: Run
    gaps: tuple[str, ...]  # why the run is not complete


def entry_path(run: Run) -> Path:
    """Return where under results/ the entry of a run lies: <model>/<game>/seed_<n>."""
    return Path(as_file_name(run.label), as_file_name(run.game), f"seed_{run.seed}")


def shortcomings(run: Run) -> list[str]:
    """Return why a run is not complete, [] if it is: unfinished, metrics that end early, or not evaluated."""
    assert run.config is not None
    task = run.config.JointTrainAgent
    target, reached = task.SampleMaxSteps, int(run.info.get("finished_step") or 0)
    lines = []
    if run.info.get("status") != "finished" or reached < target:
        status = run.info.get("status") or "no status"
        lines.append(f"it stopped at step {reached:,} of {target:,} ({status})")
    if run.history.last_step + task.LogEverySteps + task.NumEnvs <= target:
        lines.append(f"its metrics end at step {run.history.last_step:,} of {target:,}")
    needed = min(target, BENCHMARK_STEP)
    if needed not in {each.step for each in run.evaluations if not each.settings}:
        lines.append(f"its evaluation does not cover the checkpoint of step {needed:,}")
    return lines


def load_entry(folder: Path) -> Entry:
    """Read an entry whose files are those of its manifest; raise UserError naming what is not."""
    files = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
    wrong = sorted({*altered(folder, files), *(set(read_manifest(folder)) - set(files))})
    if wrong or not files:
        raise UserError(
            f"{folder} was altered after it was recorded: {', '.join(wrong) or 'it is empty'}; restore it "
            f"from version control, or remove the folder and record the run again"
        )
    run = load_run(RunFiles.of_entry(folder))
    if folder.absolute().parts[-3:] != entry_path(run).parts:
        raise UserError(f"{folder} was altered: its run belongs into {entry_path(run)}")
    return Entry(folder, run, tuple(shortcomings(run)))


def find_entries(results: Path) -> list[Entry]:
    """Return all entries under `results` by model, game and seed; raise UserError for an altered one."""
    entries = [load_entry(folder) for folder in results.glob("*/*/seed_*") if folder.is_dir()]
    return sorted(entries, key=lambda entry: (entry.run.label, entry.run.game, entry.run.seed))


def render_readme(entries: Sequence[Entry], published: Published, results: Path) -> str:
    """Return the text of the README of `results`."""
    table = make_table("runs", COLUMNS, [_row(entry, published, results) for entry in entries])
    template = Template((TEMPLATES / "results.md").read_text(encoding="utf-8"), trim_blocks=True)
    return template.render(table=table.markdown, entries=entries)


def _row(entry: Entry, published: Published, results: Path) -> list[Any]:
    run, score = entry.run, entry.run.scored
    link = f"[{run.label}]({entry.folder.relative_to(results).as_posix()}/)"
    evaluation = [score.step, score.mean, score.how, score.episodes] if score else [None] * 4
    seeds = published.seed_range(run.game) if run.benchmarked and not entry.gaps else None
    note = f"; {published.note(run.game)}" if published.note(run.game) else ""
    reference = "{:,.1f} ({:,.1f} to {:,.1f}{})".format(*seeds, note) if seeds else None
    settings = ", ".join(re.sub(r"^[\w.]*\.", "", text) for text in run.deviations)
    facts = [run.info["elapsed_s"] / SECONDS_PER_HOUR, run.info["hardware"], run.short_commit]
    return [link, run.game, run.seed, *evaluation, reference, settings, *facts]
