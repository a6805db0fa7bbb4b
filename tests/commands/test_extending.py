"""docs/extending.md: every example is run as it is printed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import REPOSITORY

import train
from configuration import schema as schema_module

TEXT = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLE = r"```python\n# (\w+)\.py(.*?)```\n+```bash\npython train\.py (.*?)\n```"
EXAMPLES = re.findall(EXAMPLE, TEXT, re.DOTALL)
LONGEST = 40  # lines


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to train in, from which modules are imported; what they register is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(schema_module, "ModelsConfig", schema_module.ModelsConfig)
    yield tmp_path
    schema_module.schema.cache_clear()
    for name, _, _ in EXAMPLES:
        sys.modules.pop(name, None)


def test_all_examples_are_found() -> None:
    assert len(EXAMPLES) == TEXT.count("```python") == TEXT.count("```bash") == TEXT.count("\n## ")


@pytest.mark.parametrize(("name", "code", "command"), EXAMPLES, ids=[name for name, _, _ in EXAMPLES])
def test_an_example_runs_as_printed(place: Path, name: str, code: str, command: str) -> None:
    source = f"# {name}.py{code}"
    assert len([line for line in source.splitlines() if line.strip()]) <= LONGEST
    (place / f"{name}.py").write_text(source, encoding="utf-8")
    assert train.main([*shlex.split(command), "BasicSettings.silent=True", "BasicSettings.NumThreads=1"]) == 0
    run = place / "outputs" / name.replace("_", "-")
    assert (run / "ckpt" / "world_model_210.pth").is_file()
    if name == "my_loss":
        assert '"WorldModel/latent_reward_loss"' in (run / "metrics.jsonl").read_text()
    if name == "my_logger":
        assert (run / "returns.txt").read_text().startswith("9 ")
