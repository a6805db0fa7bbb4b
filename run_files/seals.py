"""Seals: checksums that tell whether a run's files are those that training and evaluation wrote.

outputs/<run>/seal.json               file → SHA-256; written when training ends or stops in order,
                                      removed when it goes on
outputs/eval_result/<run>_seal.json   step → its rows of both tables, the config, and the weights

They tell an edit or a mix-up, not a forgery.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from run_files.tensor_files import sha256_of
from run_files.weights import checkpoint_files
from utils import UserError, write_atomically

SEAL = "seal.json"
CONFIG = "config.yaml"
SEALED = (CONFIG, "run.json", "metrics.jsonl")  # besides the checkpoints


def seal_run(folder: Path, metrics: str | None = None) -> None:
    """Seal the run in `folder`; quick, as weight files carry a checksum already.

    metrics: SHA-256 of what was logged to metrics.jsonl; None: what the file holds counts.
    """
    seal = {name: _checksum(folder / name) for name in _present(folder)}
    _write(folder / SEAL, seal if metrics is None else seal | {"metrics.jsonl": metrics})


def check_run(folder: Path) -> None:
    """Raise UserError, naming the file, if the run in `folder` is not sealed or not as it was sealed."""
    if not (folder / SEAL).is_file():
        raise UserError(
            f"{folder} has no {SEAL}: its training runs, was killed, or is older than seals; its train.py "
            f"command, typed again, seals it when it ends or is stopped by Ctrl-C"
        )
    seal, present = _read(folder / SEAL), _present(folder)
    if not seal:
        raise UserError(f"{folder / SEAL} was altered: it cannot be read")
    for name in sorted({*seal, *present}):
        if name not in present:
            raise UserError(f"{folder / name} is missing: {SEAL} names it")
        if name not in seal or _checksum(folder / name) != seal[name]:
            raise UserError(f"{folder / name} was altered: it is not the file that {SEAL} names")


def evaluation_seal(table: Path) -> Path:
    """Where the seal of an evaluation table lies."""
    return table.with_name(f"{table.stem}_{SEAL}")


def seal_evaluation(table: Path, episodes: Path, checkpoints: Path, step: int) -> None:
    """Seal a step's rows of both tables, together with the weights that played them."""
    path = evaluation_seal(table)
    entry = {"table": _rows(table).get(str(step)), "episodes": _rows(episodes).get(str(step))}
    for weights in checkpoint_files(checkpoints, step):
        entry[weights.name] = _checksum(weights)
    config = checkpoints.parent / CONFIG
    if config.is_file():
        entry[CONFIG] = _checksum(config)
    _write(path, _read(path) | {str(step): entry})


def check_evaluation(table: Path, episodes: Path, folder: Path) -> None:
    """Raise UserError, naming the file and step, if a row is not what eval.py wrote.

    Config and weights that played must be those of the sealed run in `folder`.
    """
    seal, weights = _read(evaluation_seal(table)), _read(folder / SEAL)
    for path, kind in ((table, "table"), (episodes, "episodes")):
        rows = _rows(path)
        for step in sorted({*seal, *rows}):
            if step not in rows or rows[step] != _entry(seal, step).get(kind):
                raise UserError(
                    f"{path} was altered, or is older than seals: step {step[:40]} is not what eval.py "
                    f"wrote; evaluate that step again"
                )
    for step in sorted(seal):
        for name in (f"world_model_{step}.pth", f"agent_{step}.pth"):
            if _entry(seal, step).get(name) != weights.get(f"ckpt/{name}", ""):
                raise UserError(
                    f"{table}: step {step[:40]} was played with other weights than {folder / 'ckpt' / name}; "
                    f"evaluate that step again"
                )
        if _entry(seal, step).get(CONFIG) != weights.get(CONFIG, ""):
            raise UserError(
                f"{table}: step {step[:40]} was played with another {CONFIG} than {folder} has; "
                f"evaluate that step again"
            )


def _present(folder: Path) -> list[str]:
    """The files of a run that a seal covers."""
    paths = [folder / name for name in SEALED] + sorted(folder.glob("ckpt/*.pth"))
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _checksum(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _rows(table: Path) -> dict[str, str]:
    """step → SHA-256 of the table's header and that step's rows; {} if there is no table."""
    try:
        header, *lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines() or [""]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from error
    rows: dict[str, list[str]] = {}
    for line in lines:
        rows.setdefault(line.partition(",")[0], [header]).append(line)
    return {
        step: hashlib.sha256("\n".join(each).encode("utf-8", "surrogateescape")).hexdigest()
        for step, each in rows.items()
    }


def _read(path: Path) -> dict[str, Any]:
    """A seal; {} if there is none that can be read."""
    try:
        seal = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return seal if isinstance(seal, dict) else {}


def _entry(seal: dict[str, Any], step: str) -> dict[str, Any]:
    entry = seal.get(step)
    return entry if isinstance(entry, dict) else {}


def _write(path: Path, seal: dict[str, Any]) -> None:
    content = json.dumps(seal, indent=1).encode()
    write_atomically(path, lambda file: file.write(content))
