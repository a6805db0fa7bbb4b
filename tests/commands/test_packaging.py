"""What has to be installed: said where it is missing, pinned as a whole, and enough from any folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from configuration.packages import MODULES

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ["train.py", "eval.py", "play.py", "report.py", "sweep.py", "benchmark.py"]
MISSING = re.compile(r"error: .* has no torch, .*; type: .*source \S+/activate\n")


def requirements(*names: str) -> dict[str, Requirement]:
    """The requirements of files and of those that they include, by name."""
    wanted: dict[str, Requirement] = {}
    for line in (line for name in names for line in (REPOSITORY / name).read_text().splitlines()):
        if line.startswith("-r "):
            wanted |= requirements(line[3:])
        elif re.match(r"\w", line):
            wanted[canonicalize_name(Requirement(line).name)] = Requirement(line)
    return wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_packages_are_one_line_with_what_to_type(command: str) -> None:
    bare = [sys.executable, "-S", str(REPOSITORY / command)]  # -S: without site-packages
    result = subprocess.run(bare, capture_output=True, text=True, cwd="/")
    assert result.returncode == 2 and result.stdout == ""
    assert MISSING.fullmatch(result.stderr)


def test_an_experiment_needs_no_installation_of_the_repository_and_says_which_packages_it_needs() -> None:
    command = [sys.executable, "-S", "-m", "experiments.acting"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2 and MISSING.fullmatch(result.stderr)


def test_the_modules_looked_for_are_those_of_the_requirements() -> None:
    homes = packages_distributions()
    found = {module: {canonicalize_name(name) for name in homes[module]} for module in MODULES}
    wanted = set(requirements("requirements.txt"))
    assert all(names & wanted for names in found.values())
    assert wanted <= set().union(*found.values())


def test_the_lock_pins_all_that_the_requirements_bring() -> None:
    pins = requirements("requirements.lock")
    left = list(requirements("requirements-dev.txt", "requirements-sweep.txt").values())
    seen: set[str] = set()
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        assert name in pins, f"{name} is not in requirements.lock: type ./setup.sh --lock"
        version = str(pins[name].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"requirements.lock: {name}=={version}, wanted {wanted}"
        try:
            needed = [Requirement(text) for text in distribution(name).requires or []]
        except PackageNotFoundError:
            needed = []
        extras = [{"extra": extra} for extra in ["", *wanted.extras]]
        applies = [each for each in needed if each.marker is None or any(map(each.marker.evaluate, extras))]
        if name not in seen and name != "torch":  # a CUDA build's libraries depend on the machine
            left += applies
        seen.add(name)


def test_commands_work_from_any_folder_where_the_package_is_installed() -> None:
    try:
        distribution("git-storm")
    except PackageNotFoundError:
        pytest.skip("this environment was not made by setup.sh")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in (["-m", "experiments.quick_start"], [str(REPOSITORY / "tests/kill_and_compare.py")]):
        helped = [sys.executable, *command, "--help"]
        assert subprocess.run(helped, cwd="/", env=environment, capture_output=True).returncode == 0
    imports = "import agents, utils, sub_models, experiments, sweeping, reporting"
    subprocess.run([sys.executable, "-c", imports], cwd="/", env=environment, check=True)
