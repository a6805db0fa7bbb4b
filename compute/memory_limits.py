"""Memory: whether a replay buffer fits, and one line instead of a traceback where something does not."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from utils import UserError

# How PyTorch words it: refused by the system, a size beyond what 64 bits count, a full card, its libraries.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|overflow|ALLOC_FAILED|CUBLAS_STATUS_NOT_INIT",
    re.IGNORECASE,
)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a new tensor on the device may take; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = []  # what the system has, and what a container leaves of it
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        limits.append(1024 * int(re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[0]))
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.findall(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        limits.append(limit - used + int(cached[0]))  # of files, given up when it is needed
    return min(limits, default=None)


def check_replay_fits(length: int, needed: int, device: torch.device) -> None:
    """Refuse a replay buffer that the device cannot hold.

    The system would grant the memory and end the run hours later, when the buffer fills.

    Args:
        length: JointTrainAgent.BufferMaxLength. needed: bytes that so many steps take.
        device: where the buffer will live.

    Raises:
        UserError: names the setting, what it needs and what there is.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"JointTrainAgent.BufferMaxLength={length}: a replay buffer of so many steps takes "
            f"{needed / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB free"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is too little memory: Python's, PyTorch's, or a card's."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn a failed allocation inside into a UserError that says which settings ask for less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip() or "MemoryError").splitlines()[0]
        raise UserError(
            "not enough memory: give smaller JointTrainAgent.BatchSize, BatchLength, ImagineBatchSize, "
            f"NumEnvs or Models sizes ({reason})"
        ) from error
