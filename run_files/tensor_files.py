"""Files of tensors, and what all files that others may have made are read with.

They are what `torch.save` writes, and are read with `weights_only`: no code runs from a file. Damage
shows by the SHA-256 that a manifest names, else by the CRCs of the zip format.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from run_files.manifest import sha256_of
from utils import UserError, nearest, write_atomically


def write_tensors(path: Path, content: Any) -> str:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None; return the SHA-256.

    Raise TypeError, naming the place, for any other type (it could not be loaded), and UserError if
    the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(_to_plain(content, path.name), buffer)
    data = buffer.getbuffer()
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, sha256: str | None = None) -> Any:
    """Return what a file of `torch.save` holds, its tensors on the CPU and mapped from the file.

    Args:
        path: the file may be anybody's. sha256: of its bytes, if it must be that very file.

    Raise UserError, naming the file and the reason, if it is missing, damaged, or holds anything
    but tensors and plain values.
    """
    with reading(path):
        if sha256 is None:
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise UserError(f"{path}: is damaged (entry {damaged!r:.80} does not match its checksum)")
        elif (found := sha256_of(path)) != sha256:
            raise UserError(f"{path}: is not the file that was saved (SHA-256 {found}, expected {sha256})")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a UserError that names the regular file `path`.

    Libraries raise anything on damaged or hostile files.
    """
    try:
        if not path.exists():
            names = os.listdir(path.parent) if path.parent.is_dir() else []
            raise UserError(f"{path}: does not exist{nearest(path.name, names)}")
        if not path.is_file():  # a pipe could block for ever
            raise UserError(f"{path}: is not a regular file")
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for {asked[1]}; expected nothing but tensors and plain values"
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {reason[:200]})") from error


def _to_plain(value: Any, where: str) -> Any:
    """`value` with its tensors on the CPU, those that are part of a larger storage copied out of it."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        is_part = tensor.untyped_storage().nbytes() != tensor.nbytes
        return tensor.clone() if is_part else tensor
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        return {key: _to_plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError(f"{where} is {type(value).__name__}; only tensors and plain values are saved")
