"""What a run was made with: commit, device, hardware and versions."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from utils import REPOSITORY

PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless", "tensorboard")
AND = " + "  # between what differs in the processes of a run


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Return commit, device, hardware, and versions by package, of this process."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    hardware = gpu or f"{_processor()}, {os.cpu_count()} cores"
    return {"commit": source_commit(), "device": str(device), "hardware": hardware, "versions": _versions()}


def joined_facts(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a run that several processes made: what differs stands side by side.

    Args:
        earlier: run.json of the processes before, {} if it is lost. now: `machine_facts`.
    """
    return {key: _join(earlier.get(key), value) for key, value in now.items()}


def moves(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line if the last process of a run had other hardware, Python or packages; else none."""
    versions = earlier.get("versions")
    known = {"hardware": earlier.get("hardware")} | (versions if isinstance(versions, dict) else {})
    before = {name: str(value).split(AND)[-1] for name, value in known.items() if value}
    after = {"hardware": now["hardware"]} | now["versions"]
    changed = [name for name, value in after.items() if before.get(name, value) != value]
    changes = "; ".join(f"{name} was {before[name]}, is {after[name]}" for name in changed)
    return [f"the run was moved ({changes}): from here on it may differ in the last bits"] if changes else []


def _join(earlier: Any, now: Any) -> Any:
    if isinstance(now, dict):
        before = earlier if isinstance(earlier, dict) else {}
        return before | {key: _join(before.get(key), value) for key, value in now.items()}
    if not earlier or not now:
        return now or earlier
    parts = str(earlier).split(AND)
    return AND.join(parts if parts[-1] == str(now) else [*parts, str(now)])


@cache
def source_commit() -> str | None:
    """The commit of this source when first asked, "-modified" after it if files differ; None without git."""
    git = ["git", "-C", str(REPOSITORY)]
    command = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=-modified"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _processor() -> str:
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
