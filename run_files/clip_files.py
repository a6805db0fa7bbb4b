"""Clips of video in files of others: .npz, .hdf5, .mp4 and .gif, read piece by piece, never whole."""

from __future__ import annotations

import importlib
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from run_files.array_files import read_arrays
from run_files.tensor_files import reading
from utils import UserError

ARRAYS, HDF5, FILMS = (".npz",), (".hdf5", ".h5"), (".mp4", ".gif")
VIDEOS, ACTIONS = ("video", "obs", "observations"), ("actions", "action")  # TECO's, ours and Minari's names
READERS = {".gif": {"plugin": "pillow", "mode": "RGB"}, ".mp4": {"plugin": "FFMPEG"}}  # of imageio
PIECE = 64  # frames that are read at once
TAIL = 2**16  # bytes at the end of a file; those of a zip have the checksums of what is in it


@dataclass(frozen=True)
class ClipFile:
    """One clip: a file, or a group of an HDF5 file that holds many."""

    path: Path
    group: str = ""

    def actions(self) -> np.ndarray | None:
        """Return the actions, one for each frame or for each but the last; None if there are none."""
        name = None
        with reading(self.path):
            if _ending(self.path) in ARRAYS:
                with zipfile.ZipFile(self.path) as file:
                    name = _first(ACTIONS, [each.removesuffix(".npy") for each in file.namelist()])
                return read_arrays(self.path, [name])[name] if name else None
            if _ending(self.path) in HDF5:
                with _h5py().File(self.path) as file:
                    name = _first(ACTIONS, file[f"/{self.group}"])
                    return file[f"/{self.group}"][name][()] if name else None
        return None

    def frames(self) -> Iterator[np.ndarray]:
        """Yield pieces, uint8 (n, H, W, 3), of all frames in their order."""
        with reading(self.path):
            if _ending(self.path) in ARRAYS:
                yield from _npz_frames(self.path)
            elif _ending(self.path) in HDF5:
                with _h5py().File(self.path) as file:
                    group = file[f"/{self.group}"]
                    yield from _hdf5_frames(self.path, group[_named(self.path, group)])
            else:
                yield from (frame[None] for frame in _film(self.path))


def find_clips(source: Path) -> list[ClipFile]:
    """Return the clips of a file, or of all files of a folder and the folders in it, in a fixed order.

    Raises:
        UserError: there are none, or a package that reads them is missing.
    """
    found = sorted(source.rglob("*")) if source.is_dir() else [source]
    endings = (*ARRAYS, *HDF5, *FILMS)
    paths = [path for path in found if path.is_file() and _ending(path) in endings]
    if not source.exists():
        raise UserError(f"{source}: does not exist")
    if not paths:
        raise UserError(f"{source}: no clips here, that is files of {', '.join(endings)}")
    return [clip for path in paths for clip in _clips_of(path)]


def fingerprint(path: Path) -> str:
    """Return what tells a file from one that takes its name."""
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - TAIL))
        return f"{size}-{zlib.crc32(file.read()):08x}"


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _clips_of(path: Path) -> list[ClipFile]:
    if _ending(path) not in HDF5:
        return [ClipFile(path)]
    with reading(path), _h5py().File(path) as file:
        groups = [name for name in file if "observations" in getattr(file[name], "keys", list)()]
        return [ClipFile(path, name) for name in groups] or [ClipFile(path)]


def _npz_frames(path: Path) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(path) as file:
        name = _named(path, [each.removesuffix(".npy") for each in file.namelist()])
        with file.open(f"{name}.npy") as member:
            is_first = np.lib.format.read_magic(member) == (1, 0)
            read_header = getattr(np.lib.format, f"read_array_header_{1 if is_first else 2}_0")
            shape, is_fortran, dtype = read_header(member)
            _check(path, dtype, () if is_fortran else shape)
            size = int(np.prod(shape[1:]))
            for start in range(0, shape[0], PIECE):
                count = min(PIECE, shape[0] - start)
                yield np.frombuffer(member.read(count * size), np.uint8).reshape(count, *shape[1:])


def _hdf5_frames(path: Path, video: Any) -> Iterator[np.ndarray]:
    form = (str(getattr(video, "dtype", None)), getattr(video, "ndim", 0))
    if form in (("object", 1), ("uint8", 2)):  # Minari's JPEG files, also of one length all
        for encoded in video:
            frame = cv2.imdecode(np.asarray(encoded, np.uint8), cv2.IMREAD_COLOR)
            if frame is None:
                raise UserError(f"{path}: one of its pictures is not a JPEG file")
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)[None]
        return
    if not hasattr(video, "dtype"):
        raise UserError(f"{path}: its observations are several arrays ({', '.join(video)}), not pictures")
    _check(path, video.dtype, video.shape)
    yield from (video[start : start + PIECE] for start in range(0, len(video), PIECE))


def _film(path: Path) -> Iterator[np.ndarray]:
    iio, kind = import_optional("imageio.v3"), _ending(path)
    if not (_gif_is_whole if kind == ".gif" else _mp4_is_whole)(path):
        raise UserError(f"{path}: is damaged or cut off")  # decoders return the frames that are left
    for frame in iio.imiter(path, **READERS[kind]):
        _check(path, frame.dtype, (1, *frame.shape))
        yield frame


def _gif_is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().rstrip(b"\0").endswith(b";")


def _mp4_is_whole(path: Path) -> bool:
    """Return whether its boxes, each of which begins with its length, fill the file."""
    place, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            length, wide = struct.unpack(">I4xQ", file.read(16).ljust(16))
            length = {0: size - place, 1: wide}.get(length, length)  # 0: up to the end
            place += max(length, 8)
    return place == size


def _check(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise UserError(f"{path}: its video is {dtype} {shape}, expected uint8 (T, H, W, 3) in C order")


def _first(wanted: Collection[str], names: Collection[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _named(path: Path, names: Collection[str]) -> str:
    name = _first(VIDEOS, names)
    if name is None:
        raise UserError(f"{path}: has no array {' or '.join(map(repr, VIDEOS))}")
    return name


def _h5py() -> Any:
    return import_optional("h5py")


def import_optional(module: str, package: str | None = None) -> Any:
    """Return a module of requirements-video.txt; raise UserError if its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the package {package or module.split('.')[0]} is missing: pip install -r requirements-video.txt"
        ) from error
