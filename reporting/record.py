"""Recording a finished run: its small files, checked, into results/<model>/<game>/seed_<n>/."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path

import numpy as np

from configuration.checks import check_run_name
from evaluation.tables import read_episodes, read_evaluations
from reporting.entries import (
    MANIFEST,
    NOTES,
    PARTIAL,
    entry_path,
    load_entry,
    make_manifest,
    shortcomings,
    state_of,
)
from reporting.runs import ENTRY_FILES, Run, RunFiles, load_run
from run_files.metrics import read_metrics, thin
from run_files.seals import check_evaluation, check_run
from utils import UserError, nearest

FACTS = ("commit", "hardware", "started", "elapsed_s", "finished_step", "sample_max_steps")
KEPT_LINES = 250  # lines of training metrics in an entry, besides those of training episodes
TOLERANCE = 1e-3  # relative, between a CSV's mean and that of its episodes; CSVs may be rounded


def record_run(name: str, outputs: Path, results: Path, partial: bool = False) -> Path:
    """Copy the small files of run `name` into its entry of `results`; the entry's folder.

    A complete run has reached its last step, has metrics up to there, and is evaluated at step
    100,000 (a shorter one at its end). Raises UserError for a run that is not complete unless
    `partial`, for one whose files contradict each other or their seals, and where an entry is in
    the way that was altered or holds another complete run.
    """
    check_run_name(name)
    files = RunFiles.of_output(name, outputs)
    run = _load(files)
    _check_consistency(run, files)
    gaps = shortcomings(run)
    if gaps and not partial:
        raise UserError(f"{name} is not complete: {'; '.join(gaps)}. --partial records it as partial")
    check_run(files.folder)
    check_evaluation(files.evaluation, files.episodes, files.folder)
    folder = results / entry_path(run)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".recording-", dir=folder.parent) as temporary:
            fresh = Path(temporary) / entry_path(run)
            fresh.mkdir(parents=True)
            _fill(fresh, run, files)
            _put_in_place(fresh, folder)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    return folder


def _load(files: RunFiles) -> Run:
    if not (files.folder / "config.yaml").is_file():
        names = [path.parent.name for path in files.folder.parent.glob("*/config.yaml")]
        raise UserError(
            f"no run {files.name!r} in {files.folder.parent.absolute()}{nearest(files.name, names)}"
        )
    run = load_run(files)
    missing = [key for key in FACTS if not run.info.get(key)]
    if missing:
        raise UserError(
            f"{files.folder / 'run.json'} does not say {', '.join(missing)}: cannot record {files.name}"
        )
    return run


def _check_consistency(run: Run, files: RunFiles) -> None:
    """Raise UserError if the run's files contradict each other, as they do after an alteration."""
    assert run.config is not None
    target, reached = run.config.JointTrainAgent.SampleMaxSteps, run.info["finished_step"]
    for key, value, expected in (
        ("config.yaml: BasicSettings.n", run.config.BasicSettings.n, run.name),
        ("run.json: sample_max_steps", run.info["sample_max_steps"], target),
    ):
        if value != expected:
            raise UserError(f"{files.folder} was altered: {key} is {value}, not {expected}")
    last = max([run.history.last_step, *(each.step for each in run.evaluations)])
    if last > reached:
        raise UserError(
            f"{files.folder} was altered: it has results of step {last:,}, after its end at {reached:,}"
        )
    if np.any(np.diff([record.step for record in read_metrics(files.folder / "metrics.jsonl")]) < 0):
        raise UserError(f"{files.folder / 'metrics.jsonl'} was altered: its steps go backwards")
    _check_evaluations(files)


def _check_evaluations(files: RunFiles) -> None:
    episodes = read_episodes(files.episodes)
    for each in read_evaluations(files.evaluation):
        returns = [episode.score for episode in episodes.get(each.key, [])]
        agrees = returns and math.isclose(np.mean(returns), each.mean, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        if not agrees or len(returns) != (each.episodes or len(returns)):
            raise UserError(
                f"{files.evaluation} was altered, or its episodes are missing: step {each.step:,} says "
                f"{each.mean:g}, {files.episodes.name} has {len(returns)} episodes of that step"
                + (f" with mean {np.mean(returns):g}" if returns else "")
            )


def _fill(folder: Path, run: Run, files: RunFiles) -> None:
    """Write the files of an entry and their manifest into an empty folder."""
    for name in ("config.yaml", "run.json"):
        shutil.copyfile(files.folder / name, folder / name)
    for source, name in ((files.evaluation, "evaluation"), (files.episodes, "episodes")):
        if source.is_file():
            shutil.copyfile(source, folder / ENTRY_FILES[name])
    records = thin(list(read_metrics(files.folder / "metrics.jsonl")), KEPT_LINES)
    text = "".join(record.line for record in records)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    manifest = make_manifest(run, state_of(run), folder)
    (folder / MANIFEST).write_text(manifest, encoding="utf-8")


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Move a new entry to its place, over an equal one or a partial one of fewer steps; else UserError."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = load_entry(folder)
    same = (fresh / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    further = load_entry(fresh).step > old.step
    if not same and not (old.state == PARTIAL and further):
        raise UserError(
            f"{folder} already holds {'a partial' if old.state == PARTIAL else 'another complete'} run, "
            f"started {old.run.info['started']}: remove it first if this one is to replace it"
        )
    if (folder / NOTES).is_file():
        shutil.copyfile(folder / NOTES, fresh / NOTES)
    folder.rename(fresh.parent / "replaced")
    fresh.rename(folder)
