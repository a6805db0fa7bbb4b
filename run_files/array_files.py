"""Named arrays out of files that a stranger may have made: .npz, or a pickled dict of arrays.

Nothing in such a file is run, and no array is allocated before its shape, dtype and size are
known and checked against what the file really holds.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from run_files.tensor_files import guarded, regular_file_size
from utils import UserError

LARGEST_BYTES = 2 << 30  # of one array, and of a pickle; a trajectory of 100,000 frames has 1.2 GB
PLAIN_KINDS = "biuf"  # bool, integers, floats
PLAIN_DTYPE = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
PICKLED_NUMPY = re.compile(
    r"numpy (ndarray|dtype)|numpy\._?core\.multiarray _reconstruct|numpy\._?core\.numeric _frombuffer"
    r"|_codecs encode"
)


@dataclass(frozen=True)
class StoredArray:
    """An array that has not been read yet; `read` allocates it and may raise anything on a bad file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def open_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of an .npz file, or of a pickle that holds a dict of plain numpy arrays.

    Raises UserError, naming the file and the reason, for whatever else it is.
    """
    size = regular_file_size(path)
    return guarded(path, lambda: _open_npz(path) if zipfile.is_zipfile(path) else _open_pickle(path, size))


def read_array(path: Path, array: StoredArray) -> np.ndarray:
    """One array of `open_arrays(path)`; UserError if the file is damaged there."""
    return guarded(path, array.read)


def _open_npz(path: Path) -> dict[str, StoredArray]:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        return {entry.filename.removesuffix(".npy"): _open_npy(path, archive, entry) for entry in entries}


def _open_npy(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> StoredArray:
    key = entry.filename.removesuffix(".npy")[:120]
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADER_READERS:
            raise UserError(f"{path}: array {key!r} has format {version}, expected 1.0 or 2.0")
        shape, _, dtype = HEADER_READERS[version](file)
        _check_size(path, key, shape, dtype, entry.file_size - file.tell())
    return StoredArray(dtype, shape, partial(_read_npy, path, entry.filename))


def _read_npy(path: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_size(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype, held: int) -> None:
    """Refuse an array that is not plain, is too large, or claims what the file does not hold."""
    if dtype.kind not in PLAIN_KINDS:
        raise UserError(f"{path}: array {key!r} is {dtype}, expected plain numbers")
    if any(not isinstance(size, int) or size < 0 for size in shape):
        raise UserError(f"{path}: array {key!r} claims the shape {str(shape)[:120]}")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > LARGEST_BYTES:
        raise UserError(f"{path}: array {key!r} announces {nbytes} bytes, more than {LARGEST_BYTES} allowed")
    if nbytes != held:
        raise UserError(f"{path}: array {key!r} announces {nbytes} bytes, the file holds {held}")


@dataclass
class _Recorded:
    """What a pickle asked to call, noted down instead of called."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _RecordingUnpickler(pickle.Unpickler):
    """Builds containers of plain values and notes of numpy calls; runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if not PICKLED_NUMPY.fullmatch(f"{module} {name}"):
            raise UserError(f"asks for {module}.{name}"[:200] + "; expected nothing but numpy arrays")
        return lambda *arguments: _Recorded(name, arguments)


def _open_pickle(path: Path, size: int) -> dict[str, StoredArray]:
    if size > LARGEST_BYTES:
        raise UserError(f"{path}: has {size} bytes, more than {LARGEST_BYTES} allowed")
    data = path.read_bytes()
    _scan_pickle(path, data)
    try:
        content = _RecordingUnpickler(io.BytesIO(data)).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dict of named arrays")
    return {key: _recorded_array(path, key[:120], value) for key, value in content.items()}


def _scan_pickle(path: Path, data: bytes) -> None:
    """Refuse lengths beyond the file's end and memo slots beyond use: the unpickler would allocate both."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), start=1):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise UserError(f"{path}: is not a pickle that Python wrote (memo slot {argument})")


def _recorded_array(path: Path, key: str, value: Any) -> StoredArray:
    """The array that numpy's own pickle functions would have built from what was noted."""
    if not isinstance(value, _Recorded) or value.name not in ("_reconstruct", "_frombuffer"):
        kind = value.name if isinstance(value, _Recorded) else type(value).__name__
        raise UserError(f"{path}: {key!r} is a {kind}, expected a numpy array")
    if value.name == "_frombuffer":
        data, dtype_note, shape, order = value.arguments
    else:
        _, shape, dtype_note, is_fortran, data = value.state
        order = "F" if is_fortran else "C"
    if isinstance(data, _Recorded):  # protocols 0 to 2 write bytes as _codecs.encode(text, "latin1")
        data = data.arguments[0]
    dtype = _recorded_dtype(path, key, dtype_note)
    _check_size(path, key, shape, dtype, len(data))
    return StoredArray(dtype, shape, partial(_build, data, dtype, shape, order))


def _build(data: bytes | str, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    buffer = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _recorded_dtype(path: Path, key: str, note: Any) -> np.dtype:
    name = note.arguments[0]
    if not PLAIN_DTYPE.fullmatch(name):
        raise UserError(f"{path}: array {key!r} is {name[:40]!r}, expected plain numbers")
    dtype = np.dtype(name)
    return dtype.newbyteorder(note.state[1]) if note.state is not None else dtype
