"""What every command of this repository shares: one-line errors, devices and atomic files."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import fcntl
import importlib
import io
import os
import re
import signal
import stat
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parent
DEVICE_PATTERN = r"auto|cuda(:\d{1,3})?|mps|cpu"
SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)+=")  # Section.Key=value, as it begins
LONGEST_NAME = 180  # of a file, its ending left out; systems take 255 bytes
SMI_TIMEOUT_S = 20  # of nvidia-smi
NVIDIA_FIX = (
    "install the PyTorch build for its driver as https://pytorch.org/get-started/locally says, "
    "or choose the CPU with BasicSettings.device=cpu"
)
CARD_FIXES = {  # by what CUDA says; NVIDIA_FIX for all else
    "out of memory": "other programs fill it",
    "busy": "another program has it for itself",
    "invalid device ordinal": "there are fewer cards, counted from 0",
}
USER_ERROR = 2  # exit code: something to be put right by whoever typed the command
NOT_FINISHED = 75  # exit code (EX_TEMPFAIL): stopped by a signal and saved; the same command continues
OUTPUT_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)
PATH_REFUSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


class UserError(Exception):
    """Something that whoever typed the command can put right, said in one line."""


class Interrupt(KeyboardInterrupt):
    """Ctrl-C; an environment may raise a KeyboardInterrupt of its own."""


def raise_interrupt(number: int, frame: object) -> NoReturn:
    """Handle SIGINT by leaving at once."""
    raise Interrupt


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception comes from Ctrl-C, as far as can be told."""
    handler = signal.getsignal(signal.SIGINT)
    plain = type(error) is KeyboardInterrupt and handler is signal.default_int_handler
    return plain or isinstance(error, Interrupt)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors, and that takes arguments in any order.

    `~` in an argument of type Path is the home folder.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register("type", Path, typed_path)

    def option(self, name: str, meaning: str, **settings: Any) -> None:
        """Add an option that is written with one dash or with two."""
        self.add_argument(f"-{name}", f"--{name}", help=meaning, **settings)

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Positional arguments may stand before, between and after the options.

        Settings come first, so that an option of many values, as --seeds 0 1, does not take them for some.
        """
        args = sorted(sys.argv[1:] if args is None else args, key=lambda text: not SETTING.match(text))
        known, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            option = unknown[0].partition("=")[0]
            self.error(f"unrecognized argument {unknown[0]}{nearest(option, self._option_string_actions)}")
        return known

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python {self.prog.removeprefix('python ')} --help")


def run_cli(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a command line's `main(arguments)` and exit with its code (None means 0).

    A UserError, an output that nobody takes (a full disk, a pipe into `head`), or a file that nobody
    may open, becomes one line on stderr and exit code 2, Ctrl-C exit code 130; any other exception is
    a defect of the program and keeps its traceback.
    """
    _open_streams()
    handled_by_python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled_by_python:
        signal.signal(signal.SIGINT, raise_interrupt)
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print("error:", _one_line(str(error)), file=sys.stderr)
        code = USER_ERROR
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        if error.errno in OUTPUT_LOST:
            print(f"error: cannot write the output of this command: {error.strerror}", file=sys.stderr)
            silence()  # for what is still to be flushed
        elif error.errno in PATH_REFUSED and error.filename is not None:
            print("error:", _one_line(f"{error.filename}: {error.strerror}"), file=sys.stderr)
        else:
            raise
        code = USER_ERROR
    finally:
        if handled_by_python:  # a notebook goes on
            signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(code or 0)


def _open_streams() -> None:
    """Give a process without standard streams silent ones, and let none stop at a letter that it lacks."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, as by `2>&-`; else the next file that is opened would get its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (open until the process ends)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # those of a notebook are not
            stream.reconfigure(errors="backslashreplace")


def silence(only_terminal: bool = False) -> None:
    """Let what this process prints from here on, or what of it goes to a terminal, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if not only_terminal or stat.S_ISCHR(os.fstat(number).st_mode):
            os.dup2(nowhere, number)


def _one_line(text: str) -> str:
    """`text` without line breaks, and without characters that could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def nearest(
    name: str, names: Iterable[str], cutoff: float = 0.6, key: Callable[[str], str] = str.lower
) -> str:
    """Text to append to a complaint about `name`: " (did you mean 'X'?)", or "" if nothing is near.

    Args:
        key: what of a name is compared; of names that share it the last one is suggested.
    """
    by_key = {key(candidate): candidate for candidate in names}
    matches = difflib.get_close_matches(key(name)[:200], by_key, 1, cutoff)
    return f" (did you mean '{by_key[matches[0]]}'?)" if matches else ""


def typed_path(text: str | Path) -> Path:
    """Return a path as it was typed; `~` is the home folder, and the `~name` of nobody stays as it is."""
    return Path(os.path.expanduser(text))


def as_file_name(text: str) -> str:
    """Return `text` as the name of a file or folder on any system.

    What may not stand in one becomes `_`; the end of what is too long becomes a checksum.
    """
    name = re.sub(r"(\.{2,}|[^A-Za-z0-9_.-])+", "_", text).lstrip(".-") or "_"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9].rstrip('.')}-{zlib.crc32(text.encode()):08x}"


def load_class(text: str) -> type:
    """Return the class that `module:Class` names, importing the module.

    Raises:
        UserError: it is not of that form, there is no such class, or its module cannot be imported.
    """
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        if not isinstance(found, type):
            raise ValueError(f"{name} is none")
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{text!r} names no class as module:Class ({error})") from error
    except Exception as error:  # of the module's own code
        raise UserError(f"{text!r}: {module} cannot be imported ({type(error).__name__}: {error})") from error
    return found


def nvidia_card_present() -> bool:
    """Whether this machine shows an NVIDIA card, whatever PyTorch can do with it."""
    if any(Path("/dev").glob("nvidia[0-9]*")) and Path("/proc/driver/nvidia/version").exists():
        return True
    try:  # Windows' Linux shows its card in no other way
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


def resolve_device(text: str) -> torch.device:
    """The device that `auto`, `cuda`, `cuda:N`, `mps` or `cpu` names.

    `auto` is the first CUDA card, else Apple's MPS, else the CPU. A CUDA device is tried with
    one small addition. Raises UserError if the text is none of these, if the device is not
    there, or if an NVIDIA card is there that the installed PyTorch cannot use.
    """
    import torch

    if not re.fullmatch(DEVICE_PATTERN, text, re.ASCII):
        raise UserError(f"BasicSettings.device={text!r}: must be auto, cuda, cuda:N, mps or cpu")
    kind, _, index = text.partition(":")
    if kind == "auto":
        kind = _choose_device()
    if kind == "cuda":
        return _checked_cuda_device(text, int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"BasicSettings.device={text}: PyTorch {torch.__version__} finds no MPS device here")
    return torch.device(kind)


def _choose_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden and nvidia_card_present():
        raise UserError(
            f"an NVIDIA card is here, but PyTorch {torch.__version__} cannot use it: {NVIDIA_FIX}"
        )
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked_cuda_device(text: str, index: int) -> torch.device:
    import torch

    try:
        device = torch.device("cuda", index)
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        advice = next((fix for word, fix in CARD_FIXES.items() if word in reason), NVIDIA_FIX)
        raise UserError(
            f"BasicSettings.device={text}: PyTorch {torch.__version__} cannot use it ({reason}): {advice}"
        ) from error
    return device


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, if it exists and its file system has locks; others that ask for it wait."""
    if not folder.is_dir():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError inside into a UserError that names what could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space on, or make writable, "
            f"{Path(path).parent.absolute()} and run the same command again"
        ) from error


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes | memoryview | Callable[[BinaryIO], object]
) -> None:
    """Write a file that appears at `path` whole, or not at all.

    Written beside `path`, flushed to the disk, then renamed over it. Missing folders are made.

    Args:
        content: text (UTF-8), bytes, or what writes to the file that it is called with.

    Raise UserError if the disk is full, the path read-only or otherwise not writable; what was
    at `path` before is then still there.
    """
    path = Path(path)
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    write = data if callable(data) else lambda file: file.write(data)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace_file(path, write)


def _replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
