"""Recording a finished run: its small files into results/<model>/<game>/seed_<n>/."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from configuration.checks import check_run_name
from reporting.entries import README, entry_path, find_entries, load_entry, render_readme, shortcomings
from reporting.published import load_published
from reporting.runs import Run, RunFiles, load_run
from run_files.directory import as_outputs
from run_files.manifest import altered, enter, read_manifest
from run_files.metrics import read_metrics, thin
from utils import UserError, disk_errors, nearest, write_atomically

FACTS = ("commit", "hardware", "started", "elapsed_s", "finished_step", "sample_max_steps")
KEPT_LINES = 250  # lines of training metrics in an entry, besides those of training episodes


def record_run(name: str, outputs: Path, results: Path, partial: bool = False) -> Path:
    """Copy the small files of run `name` into its entry of `results`; return the entry's folder.

    A complete run has reached its last step, has metrics up to there, and is evaluated at step
    100,000 (a shorter one at its end). Raise UserError for a run that is not complete unless
    `partial`, for one whose files are not those that training and evaluation wrote, and where an
    entry is in the way that was altered or holds another complete run.
    """
    path = as_outputs(name)
    name = path.name if path.parent.name == outputs.name else name  # its folder, as a shell completes it
    check_run_name(name)
    files = RunFiles.of_output(name, outputs)
    if not (files.folder / "config.yaml").is_file():
        names = [path.parent.name for path in outputs.glob("*/config.yaml")]
        raise UserError(f"no run {name!r} in {outputs.absolute()}{nearest(name, names)}")
    run = load_run(files)
    gaps = _checked(run, files)
    if gaps and not partial:
        raise UserError(f"{name} is not complete: {'; '.join(gaps)}. --partial records it as partial")
    folder = results / entry_path(run)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".recording-", dir=folder.parent) as temporary:
            fresh = Path(temporary) / entry_path(run)
            fresh.mkdir(parents=True)
            _fill(fresh, files)
            _put_in_place(fresh, folder)
    return folder


def refresh_readme(results: Path) -> Path:
    """Rewrite `results`/README.md from its entries; raise UserError if one was altered."""
    text = render_readme(find_entries(results), load_published(), results)
    write_atomically(results / README, text)
    return results / README


def _checked(run: Run, files: RunFiles) -> list[str]:
    """What the run lacks to be complete; UserError if its files cannot be recorded."""
    missing = [key for key in FACTS if not run.info.get(key)]
    if missing:
        raise UserError(
            f"{files.folder / 'run.json'} does not say {', '.join(missing)}: cannot record {run.name}"
        )
    for parts, remedy in (
        (files.trained, "train.py writes it when the run ends or is stopped; type its command again"),
        (files.evaluated, "move it away and evaluate again"),
    ):
        wrong = [str(parts[name]) for name in altered(files.folder, parts)]
        if wrong:
            raise UserError(f"{', '.join(wrong)}: altered, or not whole: {remedy}")
    return shortcomings(run)


def _fill(folder: Path, files: RunFiles) -> None:
    """Write the files of an entry and their manifest into an empty folder."""
    metrics = files.folder / "metrics.jsonl"
    for name, path in (files.trained | files.evaluated).items():
        if path != metrics:
            shutil.copyfile(path, folder / name)
    records = thin(list(read_metrics(metrics)), KEPT_LINES)
    write_atomically(folder / metrics.name, "".join(record.line for record in records))
    enter(folder, {path.name: path for path in folder.iterdir()})


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Move a new entry to its place, over an equal one or a partial one of fewer steps; else UserError."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old, new = load_entry(folder), load_entry(fresh)
    longer = old.gaps and new.run.info["finished_step"] > old.run.info["finished_step"]
    if not longer and read_manifest(fresh) != read_manifest(folder):
        raise UserError(
            f"{folder} already holds {'a partial' if old.gaps else 'another complete'} run, "
            f"started {old.run.info['started']}: remove it first if this one is to replace it"
        )
    folder.rename(fresh.parent / "replaced")
    fresh.rename(folder)
