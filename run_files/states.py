"""Resumable states of a run: the last one and the one before it, whichever moment the run dies.

A state is three kinds of file in one directory, all written aside and renamed, the manifest last:

    manifest_<k>.json             what belongs to save number k, with a checksum of itself
    state_<k>.pt                  everything but the replay rows
    rows_<start>_<stop>_<k>.pt    replay rows [start, stop), first written by save k

Row files are append-only and shared: a save writes only the rows appended since the save before
it and refers to older files by range and checksum. A file goes when no kept manifest needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from run_files.tensor_files import read_archive, regular_file_size, verify_archive, write_archive
from utils import UserError, write_atomically

FORMAT = 1
KEPT_STATES = 2
MERGE_ROWS = 1_000
_MANIFEST_LIMIT = 1 << 24  # bytes
_INTEGER_LIMIT = 1 << 53
_MANIFEST = re.compile(r"manifest_(\d{1,15})\.json")
_OWN_FILE = re.compile(
    r"\.?(manifest_(?P<a>\d{1,15})\.json|state_(?P<b>\d{1,15})\.pt|rows_\d{1,15}_\d{1,15}_(?P<c>\d{1,15})\.pt)"
    r"(\.\w+\.tmp)?"
)


class RowSource(Protocol):
    """The replay memory, seen as a log whose rows are numbered from 0 as they are appended."""

    count: int  # rows appended since the start

    @property
    def oldest(self) -> int:
        """Number of the oldest row still held."""

    def export_rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop), the row axis first."""

    def import_rows(self, start: int, rows: dict[str, np.ndarray]) -> None:
        """Put exported rows back under their numbers, of which `start` is the first."""


@dataclass(frozen=True)
class Segment:
    """One file of replay rows [start, stop), written by save `sequence`, with its checksum."""

    start: int
    stop: int
    sequence: int
    seal: str

    @property
    def file(self) -> str:
        return f"rows_{self.start}_{self.stop}_{self.sequence}.pt"


@dataclass(frozen=True)
class Manifest:
    """What belongs to one saved state: replay rows [oldest, count) lie in `segments`."""

    sequence: int
    step: int
    seal: str
    oldest: int
    count: int
    segments: tuple[Segment, ...]

    @property
    def file(self) -> str:
        return f"manifest_{self.sequence}.json"

    @property
    def state_file(self) -> str:
        return f"state_{self.sequence}.pt"

    def files(self) -> set[str]:
        """Names of all files that this state needs."""
        return {self.file, self.state_file, *(segment.file for segment in self.segments)}


@dataclass(frozen=True)
class SavedState:
    """A state read back.

    step: environment step of the state. state: what was given to `save`.
    notes: one line for each newer state that was found broken and passed over.
    """

    step: int
    state: dict[str, Any]
    notes: tuple[str, ...]
    directory: Path
    manifest: Manifest

    def restore_rows(self, rows: RowSource) -> None:
        """Import the saved replay rows into an empty replay memory of the same capacity.

        Raises UserError if a file broke since it was verified, or does not fit the memory.
        """
        for segment in self.manifest.segments:
            path = self.directory / segment.file
            start = max(segment.start, self.manifest.oldest)
            rows.import_rows(start, _read_rows(path, segment, skip=start - segment.start))
        expected = (self.manifest.oldest, self.manifest.count)
        if (rows.oldest, rows.count) != expected:
            raise UserError(
                f"{self.directory}: the state has replay rows {expected[0]} to {expected[1]}, "
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
        self._kept: list[Manifest] = []  # oldest first

    def exists(self) -> bool:
        """Whether any state, usable or not, is saved here."""
        return bool(self._sequences())

    def save(self, step: int, state: dict[str, Any], rows: RowSource) -> None:
        """Save a state; return when it is on the disk. The state before it is kept as well.

        Args:
            step: environment step. state: nested dicts, lists and tuples of tensors, numbers,
                strings and None. rows: the replay memory.

        Raises UserError if the disk is full or not writable; the states saved before stay
        loadable. Raises TypeError, naming the place, for a state of other types.
        """
        if not self._kept and self.exists():
            raise RuntimeError(f"{self.directory} holds states: load() before save()")
        sequence = self._next_sequence()
        try:
            segments = self._save_rows(sequence, rows)
            seal = write_archive(self.directory / f"state_{sequence}.pt", state)
            manifest = Manifest(sequence, step, seal, rows.oldest, rows.count, segments)
            content = _encode(manifest)
            write_atomically(self.directory / manifest.file, lambda file: file.write(content))
        except UserError as error:
            self._remove_unneeded()
            kept = f"the state of step {self._kept[-1].step} stays" if self._kept else "no state is saved yet"
            raise UserError(f"the state of step {step} was not saved ({kept}): {error}") from error
        self._kept = [*self._kept, manifest][-KEPT_STATES:]
        self._remove_unneeded()

    def load(self) -> SavedState | None:
        """The newest state that is whole, every byte checked; None if none was ever saved.

        Raises UserError, naming each broken file, if states are saved and none is usable.
        """
        notes: list[str] = []
        sequences = self._sequences()
        for sequence in reversed(sequences):
            try:
                manifest = self._read_manifest(sequence)
                state = self._read_state(manifest)
            except UserError as error:
                notes.append(f"saved state {sequence} is not usable: {error}")
                continue
            older = self._readable_manifests(number for number in sequences if number < sequence)
            self._kept = [*older, manifest][-KEPT_STATES:]
            return SavedState(manifest.step, state, tuple(notes), self.directory, manifest)
        if notes:
            raise UserError(
                f"no saved state in {self.directory} is usable; BasicSettings.Restart=True archives the run "
                f"and starts over ({'; '.join(notes)})"
            )
        return None

    def _save_rows(self, sequence: int, rows: RowSource) -> tuple[Segment, ...]:
        """Write the rows that no file holds yet; return the files that cover all rows now held."""
        previous = self._kept[-1].segments if self._kept else ()
        saved = previous[-1].stop if previous else 0
        assert rows.count >= saved, (
            f"{rows.count} rows in the replay memory, {saved} saved: restore them first"
        )
        segments = [segment for segment in previous if segment.stop > rows.oldest]
        if rows.count == saved:
            return tuple(segments)
        start = max(saved, rows.oldest)
        if segments and segments[-1].stop - segments[-1].start < self.merge_rows:
            start = max(segments.pop().start, rows.oldest)
        path = self.directory / Segment(start, rows.count, sequence, "").file
        seal = write_archive(path, _to_tensors(rows.export_rows(start, rows.count)))
        return (*segments, Segment(start, rows.count, sequence, seal))

    def _read_state(self, manifest: Manifest) -> dict[str, Any]:
        for segment in manifest.segments:
            verify_archive(self.directory / segment.file, segment.seal)
        path = self.directory / manifest.state_file
        state = read_archive(path, manifest.seal)
        if not isinstance(state, dict):
            raise UserError(f"{path}: holds a {type(state).__name__}, expected a dict")
        return state

    def _read_manifest(self, sequence: int) -> Manifest:
        path = self.directory / f"manifest_{sequence}.json"
        if (size := regular_file_size(path)) > _MANIFEST_LIMIT:
            raise UserError(f"{path}: has {size} bytes, more than the {_MANIFEST_LIMIT} admitted")
        try:
            manifest = _decode(path.read_bytes())
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path}: is damaged ({type(error).__name__}: {str(error)[:200]})") from error
        if manifest.sequence != sequence:
            raise UserError(f"{path}: is the manifest of state {manifest.sequence}, not of {sequence}")
        return manifest

    def _readable_manifests(self, sequences: Iterable[int]) -> list[Manifest]:
        manifests = []
        for sequence in sequences:
            with contextlib.suppress(UserError):
                manifests.append(self._read_manifest(sequence))
        return manifests

    def _sequences(self) -> list[int]:
        """Numbers of the saved states, ascending."""
        matches = (_MANIFEST.fullmatch(name) for name in self._names())
        return sorted(
            int(match[1]) for match in matches if match and match[0] == f"manifest_{int(match[1])}.json"
        )

    def _next_sequence(self) -> int:
        """A number that no file here has, so that nothing a killed save left behind is in the way."""
        matches = [match for match in map(_OWN_FILE.fullmatch, self._names()) if match]
        used = [int(match["a"] or match["b"] or match["c"]) for match in matches]
        return max(used, default=0) + 1

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"cannot read {self.directory}: {error.strerror}") from error

    def _remove_unneeded(self) -> None:
        """Delete what no kept state needs, manifests first so that none is left without its files."""
        needed = {name for manifest in self._kept for name in manifest.files()}
        unneeded = [name for name in self._names() if _OWN_FILE.fullmatch(name) and name not in needed]
        for name in sorted(unneeded, key=lambda name: not _MANIFEST.fullmatch(name)):
            with contextlib.suppress(OSError):  # what cannot be deleted now is tried again at the next save
                (self.directory / name).unlink()


def _to_tensors(rows: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in rows.items()}


def _read_rows(path: Path, segment: Segment, skip: int) -> dict[str, np.ndarray]:
    rows = read_archive(path, segment.seal)
    length = segment.stop - segment.start
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{path}: holds a {type(rows).__name__}, expected a dict of arrays")
    for name, values in rows.items():
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != length:
            raise UserError(f"{path}: {name!r} is not an array of {length} rows")
    return {name: values.numpy()[skip:] for name, values in rows.items()}


def _encode(manifest: Manifest) -> bytes:
    body = {"format": FORMAT, **asdict(manifest)}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True).encode()


def _decode(data: bytes) -> Manifest:
    """The manifest that encodes to exactly `data`; ValueError, TypeError or KeyError if none does."""
    fields = json.loads(data)
    if _integer(fields, "format") != FORMAT:
        raise ValueError(f"format is {fields['format']}, expected {FORMAT}")
    segments = tuple(
        Segment(_integer(each, "start"), _integer(each, "stop"), _integer(each, "sequence"), _seal(each))
        for each in fields["segments"]
    )
    numbers = {name: _integer(fields, name) for name in ("sequence", "step", "oldest", "count")}
    manifest = Manifest(seal=_seal(fields), segments=segments, **numbers)
    if _encode(manifest) != data:
        raise ValueError("its bytes do not match its checksum")
    _check_cover(manifest)
    return manifest


def _check_cover(manifest: Manifest) -> None:
    """The segments must hold every row from `oldest` to `count`, once and in order."""
    position = min(manifest.segments[0].start, manifest.oldest) if manifest.segments else manifest.oldest
    for segment in manifest.segments:
        if segment.start != position or not position < segment.stop or segment.stop <= manifest.oldest:
            raise ValueError(f"rows {segment.start} to {segment.stop} do not follow row {position}")
        position = segment.stop
    if position != manifest.count:
        raise ValueError(f"count is {manifest.count}, but the row files end at {position}")


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value < _INTEGER_LIMIT:
        raise ValueError(f"{name} is {str(value)[:50]!r}, expected an integer")
    return value


def _seal(fields: dict[str, Any]) -> str:
    value = fields["seal"]
    if type(value) is not str or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"seal is {str(value)[:50]!r}, expected a SHA-256 in hexadecimal")
    return value
