"""manifest.json: the SHA-256 of files by name, so that an edit or a mix-up shows (a forgery does not)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import locked, write_atomically

MANIFEST = "manifest.json"
# The files of a recorded run, by their names in a manifest.
TRAINED = ("config.yaml", "run.json", "metrics.jsonl")
EVALUATED = ("evaluation.csv", "episodes.csv")
CHUNK = 1 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; {} if it is missing or not readable."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_manifest(folder: Path) -> dict[str, str]:
    """Return the checksums by name; {} if there is no manifest that can be read."""
    return read_json(folder / MANIFEST)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def altered(folder: Path, files: Mapping[str, Path]) -> list[str]:
    """Return the names of the files that are missing, or not those that the manifest of `folder` names."""
    known = read_manifest(folder)
    return [name for name in files if not files[name].is_file() or sha256_of(files[name]) != known.get(name)]


def enter(folder: Path, files: Mapping[str, Path]) -> None:
    """Enter files in the manifest of `folder`, those that are there."""
    with locked(folder):
        _enter(folder, files)


def _enter(folder: Path, files: Mapping[str, Path]) -> None:
    new = {name: sha256_of(path) for name, path in files.items() if path.is_file()}
    write_atomically(folder / MANIFEST, json.dumps(read_manifest(folder) | new, indent=1))


def strike(folder: Path, names: Collection[str]) -> None:
    """Take files out of the manifest of `folder`."""
    with locked(folder):
        known = read_manifest(folder)
        if set(known) & set(names):
            left = {name: known[name] for name in known if name not in names}
            write_atomically(folder / MANIFEST, json.dumps(left, indent=1))


@contextlib.contextmanager
def rewriting(folder: Path, files: Mapping[str, Path]) -> Iterator[None]:
    """Enter the files that are rewritten inside; one that somebody altered before stays a wrong one.

    Other processes may do the same meanwhile: they wait. Without such a folder nothing is entered.
    """
    with locked(folder):
        wrong = set(altered(folder, files)) & set(read_manifest(folder))
        yield
        if folder.is_dir():
            _enter(folder, {name: path for name, path in files.items() if name not in wrong})
