"""Files of tensors: written whole, sealed by a checksum, and read as if a stranger had made them.

An archive is what `torch.save` writes, with the SHA-256 of its bytes added as the zip file's
comment: `torch.load(path, weights_only=True)` reads it like any other, and one flipped bit
anywhere shows. Archives without a seal (those of the original STORM) are checked by the CRCs
of the zip format. Before anything is unpickled or allocated, the layout, the declared sizes and
the names that the pickle refers to are checked; only plain tensors and values are let through.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickletools
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils import UserError, nearest, write_atomically

_SEAL_PREFIX = b"sha256:"
_SEAL_BYTES = len(_SEAL_PREFIX) + 64
_END = struct.Struct("<4s4H2LH")  # zip: end of central directory; its last field is the comment's length
_LOCATOR = struct.Struct("<4sLQL")  # zip64: where the next one lies
_END_64 = struct.Struct("<4sQ2H2L4Q")  # zip64: end of central directory
_TAIL_BYTES = _END_64.size + _LOCATOR.size + _END.size
_PICKLE_LIMIT = 1 << 24  # bytes of structure (names, numbers), tensors not counted
_DEPTH_LIMIT = 64
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ADMITTED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in _STORAGES),
}


def write_archive(path: Path, content: Any) -> str:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None; return the seal.

    The seal is the SHA-256 of the archive, in hexadecimal. Tensors are stored on the CPU and
    share no memory. Raises TypeError, naming the place, for any other type (nothing is saved
    that could not be loaded), and UserError if the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(_to_plain(content, path.name, set()), buffer)
    view = buffer.getbuffer()
    seal = hashlib.sha256(view).hexdigest()

    def write(file: BinaryIO) -> None:
        file.write(view[:-2])
        file.write(struct.pack("<H", _SEAL_BYTES) + _SEAL_PREFIX + seal.encode())

    try:
        write_atomically(path, write)
    except UserError as error:
        raise UserError(f"{error} ({len(view) / 1e6:.1f} MB needed)") from error
    return seal


def read_archive(path: Path, seal: str | None = None) -> Any:
    """What an archive holds, its tensors on the CPU in memory of their own.

    Args:
        path: a file of `write_archive` or of `torch.save`.
        seal: what `write_archive` returned, if the file must be that very one.

    Raises UserError, naming the file and the reason, if it is missing, damaged, hostile or
    holds anything but tensors and plain values.
    """

    def read() -> Any:
        size = verify_archive(path, seal)
        structure_bytes, tensor_bytes = _check_entries(path, size)
        mapped = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return _Copier(path, structure_bytes, tensor_bytes).copy(mapped)

    return guarded(path, read)


def guarded(path: Path, action: Callable[[], Any]) -> Any:
    """`action()`, with every failure a UserError: damaged or hostile files make libraries raise anything."""
    try:
        return action()
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {reason})") from error


def verify_archive(path: Path, seal: str | None = None) -> int:
    """Check an archive's bytes against its seal, and the seal against `seal`; return its size.

    Reads the file but interprets nothing of it. An archive without a seal passes unless `seal`
    is given. Raises UserError, naming the file and the reason.
    """
    size = regular_file_size(path)
    try:
        with open(path, "rb") as file:
            found = _read_seal(file, path, size)
            if seal is not None and found != seal:
                raise UserError(f"{path}: is not the file that was saved (checksum {found}, expected {seal})")
            if found is not None and _digest(file, size) != found:
                raise UserError(f"{path}: is damaged (its bytes do not match its checksum)")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return size


def archive_seal(path: Path) -> str | None:
    """The checksum that an archive carries, not compared with its bytes; None if it carries none.

    Raises UserError if the file is not an archive.
    """
    size = regular_file_size(path)
    try:
        with open(path, "rb") as file:
            return _read_seal(file, path, size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def regular_file_size(path: Path) -> int:
    """Bytes of a regular file; UserError if there is none at `path` (a pipe could block for ever)."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist{nearest(path.name, _names_in(path.parent))}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{path}: is not a regular file")
    return info.st_size


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read_seal(file: BinaryIO, path: Path, size: int) -> str | None:
    """The checksum in the archive's comment; None if there is no comment at all.

    The central directory must end where torch.save ends it, so that every zip reader sees the
    same entries and none is asked to allocate more than the file holds.
    """
    file.seek(max(0, size - _TAIL_BYTES - _SEAL_BYTES))
    tail = file.read(_TAIL_BYTES + _SEAL_BYTES)
    sealed = tail[-_SEAL_BYTES:].startswith(_SEAL_PREFIX)
    comment = tail[-_SEAL_BYTES:] if sealed else b""
    tail = tail[: len(tail) - len(comment)][-_TAIL_BYTES:]
    if len(tail) < _TAIL_BYTES or not _is_directory_end(tail, size - len(comment), len(comment)):
        raise UserError(f"{path}: is damaged, or not a file that torch.save wrote (torch 1.6 or newer)")
    return comment[len(_SEAL_PREFIX) :].decode("ascii", "replace") if sealed else None


def _is_directory_end(tail: bytes, archive_bytes: int, comment_bytes: int) -> bool:
    """Whether `tail`, up to byte `archive_bytes` of the file, closes a zip64 archive consistently."""
    end_64 = _END_64.unpack_from(tail)
    locator = _LOCATOR.unpack_from(tail, _END_64.size)
    end = _END.unpack_from(tail, _END_64.size + _LOCATOR.size)
    start = archive_bytes - _TAIL_BYTES
    directory_bytes, directory_offset = end_64[-2:]
    return (
        (end_64[0], locator[0], end[0]) == (b"PK\x06\x06", b"PK\x06\x07", b"PK\x05\x06")
        and locator[2] == start
        and directory_offset + directory_bytes == start
        and end[-1] == comment_bytes
    )


def _digest(file: io.BufferedReader, size: int) -> str:
    """SHA-256 of a sealed archive as it was before its seal was added."""
    digest = hashlib.sha256()
    remaining = size - _SEAL_BYTES - 2
    chunk = memoryview(bytearray(1 << 20))
    file.seek(0)
    while remaining and (count := file.readinto(chunk[: min(remaining, len(chunk))])):
        digest.update(chunk[:count])
        remaining -= count
    digest.update(b"\0\0")
    return digest.hexdigest()


def _check_entries(path: Path, size: int) -> tuple[int, int]:
    """Check the entries' sizes and, without a seal, CRCs, and scan the pickle.

    Returns the bytes of the pickle and those of all tensors together.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError(f"{path}: has compressed entries, which torch.save does not write")
        if sum(max(entry.file_size, entry.compress_size) for entry in entries) > size:
            raise UserError(f"{path}: its entries claim more than the file's {size} bytes")
        names = [entry.filename.lower() for entry in entries]
        pickles = [entry for entry in entries if entry.filename.lower().endswith("/data.pkl")]
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise UserError(f"{path}: is not a file that torch.save wrote")
        if pickles[0].file_size > _PICKLE_LIMIT:
            raise UserError(f"{path}: describes its content in more than {_PICKLE_LIMIT} bytes")
        if not archive.comment and (damaged := archive.testzip()) is not None:
            raise UserError(f"{path}: is damaged (entry {_short(damaged)} does not match its checksum)")
        _scan_pickle(path, archive.read(pickles[0]))
    return pickles[0].file_size, sum(entry.file_size for entry in entries if "/data/" in entry.filename)


def _scan_pickle(path: Path, data: bytes) -> None:
    """Refuse, without running it, a pickle that names anything but tensors."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL" and argument in _ADMITTED:
            continue
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            name = _short(str(argument).replace(" ", "."))
            raise UserError(f"{path}: asks for {name}; expected nothing but tensors and plain values")


class _Copier:
    """Copies what torch.load mapped, within limits that an honest file does not reach.

    Args:
        path: for messages.
        nodes: values there may be; each takes at least a byte of the pickle.
        nbytes: bytes of all tensors together; each has its own place in the file.
    """

    def __init__(self, path: Path, nodes: int, nbytes: int) -> None:
        self.path = path
        self.nodes = nodes
        self.nbytes = nbytes

    def copy(self, value: Any, depth: int = 0) -> Any:
        """`value` with its tensors copied; UserError for types that write_archive does not write."""
        self.nodes -= 1
        if self.nodes < 0 or depth > _DEPTH_LIMIT:
            raise UserError(f"{self.path}: is nested too deeply, or repeats itself")
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if isinstance(value, dict):
            return {self._key(key): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.copy(item, depth + 1) for item in value)
        if value is None or isinstance(value, (str, int, float)):
            return value
        raise UserError(f"{self.path}: holds {_kind(value)}, expected tensors and plain values")

    def _key(self, key: Any) -> str | int:
        if not isinstance(key, (str, int)):
            raise UserError(f"{self.path}: a key is {_kind(key)}, expected a string")
        return key

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise UserError(f"{self.path}: holds a {tensor.layout} tensor, expected plain ones")
        nbytes = tensor.numel() * tensor.element_size()
        self.nbytes -= nbytes
        if nbytes > tensor.untyped_storage().nbytes() or self.nbytes < 0:
            raise UserError(
                f"{self.path}: a tensor of shape {tuple(tensor.shape)} claims more than the file holds"
            )
        return tensor.detach().clone()


def _to_plain(value: Any, where: str, storages: set[int]) -> Any:
    """`value` as plain containers of CPU tensors, each with a storage of its own and of its own size."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.numel() * tensor.element_size() or storage.data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        return tensor
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{where}: key {key!r} is {type(key).__name__}, expected str or int")
        return {key: _to_plain(item, f"{where}[{key!r}]", storages) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to_plain(item, f"{where}[{index}]", storages) for index, item in enumerate(value))
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError(f"{where} is {type(value).__name__}; only tensors and plain values are saved")


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _short(text: Any) -> str:
    return repr(text)[:120]
