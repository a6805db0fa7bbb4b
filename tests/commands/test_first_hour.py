"""README's first hour, typed as it stands there, with both cores busy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORTER = {  # what is added to a command, so that an hour becomes minutes
    "./train.sh": "JointTrainAgent.SampleMaxSteps=1300",
    "python eval.py": "-num_episodes=1 Environment.MaxEpisodeFrames=400",
}
LEFT_OUT = ("source", "tensorboard", "./test.sh")  # PATH does the first; the second waits for ever; the tests


@pytest.fixture
def busy() -> Iterator[None]:
    """Keep every core busy."""
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    yield
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_first_hour_trips_nobody(tmp_path: Path, busy: None) -> None:
    block = re.search(r"## The first hour\n+```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    clone = tmp_path / "GIT-STORM"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"STORM_PYTHON": sys.executable, "PATH": path, "PWD": str(clone)}
    said = {}
    for line in block[1].splitlines():
        command = line.split("#")[0].strip()
        if not command.startswith(LEFT_OUT):
            command += "".join(f" {more}" for start, more in SHORTER.items() if command.startswith(start))
            result = subprocess.run(
                ["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True
            )
            assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
            said[command.split()[0] + " " + command.split()[1]] = result.stdout + result.stderr
    trained, scored = said["./train.sh Seaquest"], said["python eval.py"]
    assert "finished: outputs/Seaquest-STORM-tiny-seed_0" in trained and "-record_video" in trained
    assert "mean return" in scored and (clone / "outputs" / "report" / "index.html").is_file()
