"""Entries of results/: the small files of one run, with a manifest of their checksums."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting.files import read_json
from reporting.published import BENCHMARK_STEP
from reporting.runs import Run, RunFiles, load_run
from utils import UserError, as_file_name

MANIFEST = "manifest.json"
NOTES = "notes.md"  # written by hand to explain a score; the only file without a checksum
COMPLETE, PARTIAL = "complete", "partial"


@dataclass(frozen=True)
class Entry:
    folder: Path
    run: Run
    state: str  # COMPLETE or PARTIAL
    step: int  # environment steps of training
    notes: str

    @property
    def counts(self) -> bool:
        """Whether its score may stand in the score table: a complete run, evaluated at step 100,000."""
        return self.state == COMPLETE and self.run.benchmarked


def entry_path(run: Run) -> Path:
    """Where under results/ the entry of a run lies: <model>/<game>/seed_<n>."""
    return Path(as_file_name(run.label), as_file_name(run.game), f"seed_{run.seed}")


def make_manifest(run: Run, state: str, folder: Path) -> str:
    """The manifest of the files in `folder`, as JSON text."""
    files = {path.name: checksum(path) for path in sorted(folder.iterdir())}
    content = {"run": run.name, "state": state, "step": run.info["finished_step"], "files": files}
    return json.dumps(content, indent=1) + "\n"


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_entry(folder: Path) -> Entry:
    """Read an entry whose files are those of its manifest; UserError naming what is not."""
    manifest = verified_manifest(folder)
    run = load_run(RunFiles.of_entry(folder))
    state = state_of(run)
    if manifest.get("state") != state or manifest.get("step") != run.info.get("finished_step"):
        raise UserError(
            f"{folder / MANIFEST} was altered: its files are of a {state} run of another step or state"
        )
    if folder.absolute().parts[-3:] != entry_path(run).parts:
        raise UserError(f"{folder} was altered: its run belongs into {entry_path(run)}")
    notes = folder / NOTES
    text = notes.read_text(encoding="utf-8").strip() if notes.is_file() else ""
    return Entry(folder, run, state, run.info["finished_step"], text)


def verified_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an entry, after every file was compared with its checksum."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{folder} has no {MANIFEST} with checksums: restore it, or remove the folder")
    found = {path.name for path in folder.iterdir()} - {MANIFEST, NOTES}
    wrong = sorted(found ^ set(files))
    wrong += [name for name in sorted(found & set(files)) if checksum(folder / name) != files[name]]
    if wrong:
        raise UserError(
            f"{folder} was altered after it was recorded: {', '.join(wrong)}; restore it from version "
            f"control, or remove the folder and record the run again"
        )
    return manifest


def state_of(run: Run) -> str:
    """COMPLETE if nothing speaks against it, else PARTIAL."""
    return PARTIAL if shortcomings(run) else COMPLETE


def shortcomings(run: Run) -> list[str]:
    """Why a run is not complete, [] if it is: unfinished, metrics that end early, or not evaluated."""
    assert run.config is not None
    task = run.config.JointTrainAgent
    target, reached = task.SampleMaxSteps, int(run.info.get("finished_step") or 0)
    lines = []
    if run.info.get("status") != "finished" or reached < target:
        lines.append(
            f"it stopped at step {reached:,} of {target:,} ({run.info.get('status') or 'no status'})"
        )
    if run.history.last_step + task.LogEverySteps + task.NumEnvs <= target:
        lines.append(f"its metrics end at step {run.history.last_step:,} of {target:,}")
    needed = min(target, BENCHMARK_STEP)
    if needed not in {each.step for each in run.evaluations}:
        lines.append(f"its evaluation does not cover the checkpoint of step {needed:,}")
    return lines


def find_entries(results: Path) -> list[Entry]:
    """All entries under `results`, verified, by model, game and seed; UserError for an altered one."""
    entries = [load_entry(folder) for folder in results.glob("*/*/seed_*") if folder.is_dir()]
    return sorted(entries, key=lambda entry: (entry.run.label, entry.run.game, entry.run.seed))
