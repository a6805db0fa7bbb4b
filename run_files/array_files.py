"""Named arrays out of files that a stranger may have made: .npz, or STORM's pickled dict of arrays.

Nothing in such a file is run: .npz is read without pickles, and a pickle's calls are noted, not made.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from run_files.tensor_files import reading
from utils import UserError, nearest

PICKLED_ARRAY = re.compile(
    r"numpy (ndarray|dtype)|numpy\._?core\.multiarray _reconstruct|numpy\._?core\.numeric _frombuffer"
    r"|_codecs encode"
)
PLAIN = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")  # dtypes of plain numbers


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Return the arrays `names` of a file, which may hold others too.

    Raise UserError, naming the file and the array, if one is missing, damaged, or not of plain numbers.
    """
    with reading(path):
        if zipfile.is_zipfile(path):
            with np.load(path, allow_pickle=False) as file:
                return {name: file[_known(path, name, file)] for name in names}
        content = _NotingUnpickler(io.BytesIO(path.read_bytes())).load()
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds a {type(content).__name__}, expected a dict of arrays")
        return {name: _array(path, name, content[_known(path, name, content)]) for name in names}


def _known(path: Path, name: str, content: Collection[str]) -> str:
    if name not in content:
        others = [each for each in content if isinstance(each, str)]
        raise UserError(f"{path}: has no array {name!r}{nearest(name, others)}")
    return name


class _Noted:
    """A call that a pickle asks for, noted down instead of made."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NotingUnpickler(pickle._Unpickler):
    """The unpickler that is written in Python: that in C takes whatever memory a damaged file asks for."""

    # A bytearray is read as bytes are, instead of being made before it is known to be there.
    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,
    }

    def find_class(self, module: str, name: str) -> Any:
        if not PICKLED_ARRAY.fullmatch(f"{module} {name}"):
            raise pickle.UnpicklingError(f"asks for {module}.{name}; expected nothing but numpy arrays")
        return type(name, (_Noted,), {})


def _array(path: Path, name: str, note: Any) -> np.ndarray:
    """The array that numpy's own pickle functions would have built from what was noted."""
    kind = type(note).__name__
    if kind == "_frombuffer":
        data, dtype, shape, order, *_ = note.arguments
    elif kind == "_reconstruct":
        _, shape, dtype, is_fortran, data = note.state
        order = "F" if is_fortran else "C"
    else:
        raise UserError(f"{path}: {name!r} is a {kind}, expected a numpy array")
    letters = dtype.arguments[0]
    if not PLAIN.fullmatch(letters):
        raise UserError(f"{path}: {name!r} is {letters!r:.40}, expected plain numbers")
    if isinstance(data, _Noted):  # protocols 0 to 2 write bytes as _codecs.encode(text, "latin1")
        data = data.arguments[0]
    data = data.encode("latin1") if isinstance(data, str) else data
    byte_order = dtype.state[1] if dtype.state else "="
    return np.frombuffer(data, np.dtype(letters).newbyteorder(byte_order)).reshape(shape, order=order)
