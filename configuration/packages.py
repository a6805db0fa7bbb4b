"""The first import of every command: ends it in one line where packages are missing, and settles waiting."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# Read when PyTorch is loaded: a thread that waits sleeps. One that spins, as is OpenMP's default, takes a
# core from the thread that it waits for as soon as anything else runs, and all take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MODULES = (  # of requirements.txt
    *("torch", "gymnasium", "ale_py", "numpy", "omegaconf", "yaml", "tensorboard", "cv2", "einops", "tqdm"),
    *("PIL", "matplotlib", "scipy", "pandas", "jinja2"),
)

missing = [name for name in MODULES if find_spec(name) is None]
if missing:
    root = Path(__file__).resolve().parents[1]
    setup = "" if (root / ".venv").is_dir() else f"{root}/setup.sh && "
    way = f"{setup}source {root}/.venv/bin/activate"
    print(f"error: {sys.executable} has no {', '.join(missing)}; type: {way}", file=sys.stderr)
    sys.exit(2)
