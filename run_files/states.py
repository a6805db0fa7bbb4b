"""Resumable states of a run: the last one and the one before it, whichever moment the run dies.

A state is three kinds of file in one directory, all written aside and renamed, the manifest last:

    manifest_<k>.json             SHA-256 by name of the files that belong to save number k
    state_<k>.pt                  everything but the replay rows
    rows_<start>_<stop>_<k>.pt    replay rows [start, stop), first written by save k

Row files are shared: a save writes only the rows appended since the save before it. A file goes when
no kept manifest needs it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from run_files.manifest import sha256_of
from run_files.tensor_files import read_tensors, reading, write_tensors
from utils import UserError, write_atomically

KEPT_STATES = 2
MERGE_ROWS = 1_000
_MANIFEST = re.compile(r"manifest_(0|[1-9]\d{0,14})\.json")
_ROWS = re.compile(r"rows_(\d{1,15})_(\d{1,15})_\d{1,15}\.pt")
_OWN_FILE = re.compile(r"\.?(?:manifest|state|rows)_(?:\d+_\d+_)?(\d{1,15})\.(?:json|pt)(?:\.\w+\.tmp)?")


class RowSource(Protocol):
    """The replay memory, seen as a log whose rows are numbered from 0 as they are appended.

    Its `count` rows so far are held from number `oldest` on.
    """

    count: int
    oldest: int

    def export_rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return rows [start, stop), the row axis first."""

    def import_rows(self, start: int, rows: dict[str, np.ndarray]) -> None:
        """Put exported rows back under their numbers, of which `start` is the first."""


@dataclass(frozen=True)
class SavedState:
    """A state read back.

    step: environment step of the state. state: what was given to `save`. path: of its file.
    oldest, count: of its replay rows. files: the checksums in its manifest.
    notes: one line for each newer state that was found broken and passed over.
    """

    step: int
    state: dict[str, Any]
    oldest: int
    count: int
    path: Path
    files: dict[str, str]
    notes: tuple[str, ...] = ()

    def restore_rows(self, rows: RowSource) -> None:
        """Import the saved replay rows into an empty replay memory of the same capacity.

        Raise UserError if a file broke since it was verified, or does not fit the memory.
        """
        for name, first, _ in _row_files(self.files):
            path, skipped = self.path.with_name(name), max(0, self.oldest - first)
            stored = read_tensors(path, self.files[name])
            with reading(path):
                rows.import_rows(first + skipped, {k: each.numpy()[skipped:] for k, each in stored.items()})
        if (rows.oldest, rows.count) != (self.oldest, self.count):
            raise UserError(
                f"{self.path.parent}: the state has replay rows {self.oldest} to {self.count}, "
                f"this run's replay memory holds {rows.oldest} to {rows.count} of them"
            )


class StateStore:
    """The directory of a run's resumable states.

    Call `load` before the first `save` if the directory may hold states.

    Args:
        directory: made at the first save; files of other names in it are left alone.
        merge_rows: a last row file with fewer rows than this is written anew, together with
            the rows that follow, so that frequent saves do not leave thousands of files.
    """

    def __init__(self, directory: Path, merge_rows: int = MERGE_ROWS) -> None:
        self.directory = directory
        self.merge_rows = merge_rows
        self._kept: list[tuple[int, dict[str, str]]] = []  # step and files, manifest included, oldest first

    def exists(self) -> bool:
        """Return whether any state, usable or not, is saved here."""
        return bool(self._numbers())

    def save(self, step: int, state: dict[str, Any], rows: RowSource) -> None:
        """Save a state; return when it is on the disk. The state before it is kept as well.

        Args:
            step: environment step. state: nested dicts, lists and tuples of tensors, numbers,
                strings and None. rows: the replay memory.

        Raise UserError if the disk is full or not writable; the states saved before stay
        loadable. Raise TypeError, naming the place, for a state of other types.
        """
        if not self._kept and self.exists():
            raise RuntimeError(f"{self.directory} holds states: load() before save()")
        used = [int(match[1]) for match in map(_OWN_FILE.fullmatch, self._names()) if match]
        number = max(used, default=0) + 1  # so that what a killed save left is not in the way
        name, manifest = f"state_{number}.pt", f"manifest_{number}.json"
        whole = {"step": step, "state": state, "oldest": rows.oldest, "count": rows.count}
        try:
            files = self._save_rows(number, rows)
            files[name] = write_tensors(self.directory / name, whole)
            write_atomically(self.directory / manifest, json.dumps(files, indent=1))
        except UserError as error:
            kept = f"the state of step {self._kept[-1][0]} stays" if self._kept else "no state is saved yet"
            raise UserError(f"the state of step {step} was not saved ({kept}): {error}") from error
        self._kept = [*self._kept, (step, files | {manifest: ""})][-KEPT_STATES:]
        self._remove_unneeded()

    def load(self) -> SavedState | None:
        """Return the newest state that is whole, every byte checked; None if none was ever saved.

        Raise UserError, naming each broken file, if states are saved and none is usable.
        """
        notes: list[str] = []
        for number in reversed(self._numbers()):
            try:
                saved = self._read(number, tuple(notes))
            except UserError as error:
                notes.append(f"saved state {number} is not usable: {error}")
                continue
            self._kept = [(saved.step, saved.files | {f"manifest_{number}.json": ""})]
            return saved
        if notes:
            raise UserError(
                f"no saved state in {self.directory} is usable; BasicSettings.Restart=True archives the run "
                f"and starts over ({'; '.join(notes)})"
            )
        return None

    def _read(self, number: int, notes: tuple[str, ...]) -> SavedState:
        manifest, path = (self.directory / name for name in (f"manifest_{number}.json", f"state_{number}.pt"))
        with reading(manifest):
            files = json.loads(manifest.read_bytes())
            for name, _, _ in _row_files(files):
                with reading(file := self.directory / name):
                    if sha256_of(file) != files[name]:
                        raise UserError(f"{file}: is damaged (its bytes do not match {manifest.name})")
            whole = copy.deepcopy(read_tensors(path, files[path.name]))  # out of the file, which goes one day
            return SavedState(**whole, path=path, files=files, notes=notes)

    def _save_rows(self, number: int, rows: RowSource) -> dict[str, str]:
        """Write the rows that no file holds yet; return the files, with checksums, of all rows now held."""
        earlier = self._kept[-1][1] if self._kept else {}
        needed = _row_files(earlier)
        saved = needed[-1][2] if needed else 0
        assert rows.count >= saved, (
            f"{rows.count} rows in the replay memory, {saved} saved: restore them first"
        )
        needed = [each for each in needed if each[2] > rows.oldest]
        start = max(saved, rows.oldest)
        if rows.count > saved and needed and needed[-1][2] - needed[-1][1] < self.merge_rows:
            start = max(needed.pop()[1], rows.oldest)
        files = {name: earlier[name] for name, _, _ in needed}
        if rows.count > saved:
            name = f"rows_{start}_{rows.count}_{number}.pt"
            arrays = rows.export_rows(start, rows.count)
            tensors = {key: torch.from_numpy(np.ascontiguousarray(each)) for key, each in arrays.items()}
            files[name] = write_tensors(self.directory / name, tensors)
        return files

    def _numbers(self) -> list[int]:
        """Numbers of the saved states, ascending."""
        return sorted(int(match[1]) for match in map(_MANIFEST.fullmatch, self._names()) if match)

    def _names(self) -> list[str]:
        return [path.name for path in self.directory.glob("*")]

    def _remove_unneeded(self) -> None:
        """Delete what no kept state needs, manifests first so that none is left without its files."""
        needed = {name for _, files in self._kept for name in files}
        unneeded = [name for name in self._names() if _OWN_FILE.fullmatch(name) and name not in needed]
        for name in sorted(unneeded, key=lambda name: not _MANIFEST.fullmatch(name)):
            with contextlib.suppress(OSError):  # what cannot be deleted now is tried again at the next save
                (self.directory / name).unlink()


def _row_files(files: dict[str, str]) -> list[tuple[str, int, int]]:
    """Name, start and stop of each file of rows, in their order."""
    matches = (_ROWS.fullmatch(name) for name in files)
    return [(match[0], int(match[1]), int(match[2])) for match in matches if match]
