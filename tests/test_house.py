"""The shape of the repository: imports point one way, and the method stands in front."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# Each line may import from the lines above it and from itself. Commands stand last: nothing imports them.
FLOORS = [
    ["utils"],
    ["configuration"],
    ["compute"],
    ["sub_models"],
    ["environments"],
    ["run_files"],
    ["agents"],
    ["replay_buffer", "env_wrapper"],
    ["evaluation"],
    ["training"],
    ["reporting", "sweeping"],
    ["experiments"],
    ["train"],
    ["eval", "play", "report", "sweep", "benchmark"],
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PRODUCT = [
    path
    for path in sorted(REPOSITORY.rglob("*.py"))
    if path.relative_to(REPOSITORY).parts[0].removesuffix(".py") in FLOOR_OF
]
MOST_ROOMS = 20
MOST_TOP_LEVEL_FILES = 10


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this repository that a file imports anything from, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & set(FLOOR_OF)


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_to_floors_above(path: Path) -> None:
    room = room_of(path)
    upwards = {other for other in imported_rooms(path) if other != room and FLOOR_OF[other] >= FLOOR_OF[room]}
    assert not upwards, f"{path.relative_to(REPOSITORY)} imports from {sorted(upwards)}, which stand below it"


def test_there_are_few_rooms_and_each_has_its_floor() -> None:
    files = {path.stem for path in REPOSITORY.glob("*.py")}
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"tests"}
    assert files | packages | {"experiments"} == set(FLOOR_OF)
    assert len(files) <= MOST_TOP_LEVEL_FILES
    assert len(FLOOR_OF) <= MOST_ROOMS


def test_the_readme_names_every_folder() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    folders = {path.relative_to(REPOSITORY).parts[0] for path in REPOSITORY.glob("[a-z]*/*")}
    made = {"outputs", "runs", "git_storm.egg-info"}  # by runs, and by pip install -e .
    missing = {folder for folder in folders - made if f"{folder}/" not in readme}
    assert not missing


def test_no_two_test_files_share_a_name() -> None:
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))  # pytest would import one for both
