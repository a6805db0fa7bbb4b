"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(*arguments: str, cwd: Path) -> str:
    """What a Python process prints; it has to end well."""
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_python_of_the_readme_runs_as_it_stands() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = "".join(blocks)
    assert len(blocks) == 2
    said = run("-c", code + "print(imagined.observation.shape, imagined.value.shape)", cwd=ROOT)
    assert said == "(15, 64, 64, 3) (15,)\n"


def test_the_notebook_looks_inside_a_model() -> None:
    cells = json.loads((EXAMPLES / "look_inside.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 4 and not any(cell.get("outputs") for cell in cells)
    said = run("-c", "\n".join(code), cwd=EXAMPLES)
    assert "actions: ['LEFT', 'NOOP', 'RIGHT']" in said
    assert float(re.search(r"mean return (.*)", said)[1]) > 0.5
    assert float(re.search(r"difference of a pixel: (.*)", said)[1]) < 0.01
    real, imagined = re.search(r"real (.*), imagined (.*)", said).groups()
    assert float(imagined) == pytest.approx(float(real), abs=0.3)


def test_someone_elses_agent_is_trained_in_the_dream(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    script = str(EXAMPLES / "dream_with_sb3.py")
    said = run(script, "--steps=6144", "--episodes=60", cwd=tmp_path)
    before, after = (float(number) for number in re.findall(r"mean return (\S+) over", said))
    assert before < 0 < 0.3 < after


def test_without_its_package_that_example_says_so(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['stable_baselines3'] = None"
    code = f"{hide}; import runpy; runpy.run_path({str(EXAMPLES / 'dream_with_sb3.py')!r})"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: stable_baselines3 is missing: pip install stable-baselines3\n"
