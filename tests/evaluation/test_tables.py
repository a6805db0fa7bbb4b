"""The evaluation CSVs: what is written is read, and nothing is destroyed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.tables import (
    Episode,
    Evaluation,
    append,
    best_rows,
    episode_table,
    read_episodes,
    read_evaluations,
)
from utils import UserError

FAIR = Evaluation(
    step=100, mean=247.0, std=108.0, normalised=0.5, episodes=20, seed=0, protocol="fair", num_envs=5
)
OTHERS = {
    "step": 50,
    "episodes": 5,
    "seed": 1,
    "protocol": "release",
    "greedy": 1,
    "num_envs": 1,
    "settings": "Environment.StickyActions=0.0",
}


def played(row: Evaluation) -> list[Episode]:
    return [Episode(row.mean, length) for length in range(row.episodes)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table = tmp_path / "run.csv"
    row = dataclasses.replace(FAIR, settings="ckpt_dir=a, b")
    append(table, row, played(row))
    assert read_evaluations(table) == [row]
    assert read_episodes(episode_table(table)) == {row.key: played(row)}
    assert table.read_text().startswith("step,episode_avg_return,episode_std_return,human_normalised_score,")


@pytest.mark.parametrize("field", OTHERS)
def test_only_the_same_evaluation_is_replaced(tmp_path: Path, field: str) -> None:
    table = tmp_path / "run.csv"
    other = dataclasses.replace(FAIR, mean=96.0, **{field: OTHERS[field]})
    again = dataclasses.replace(FAIR, mean=248.0)
    for row in (FAIR, other, again):
        append(table, row, played(row))
    assert {row.key: row for row in read_evaluations(table)} == {again.key: again, other.key: other}
    assert read_episodes(episode_table(table)) == {row.key: played(row) for row in (again, other)}


def test_the_fair_sampled_largest_evaluation_counts() -> None:
    unlike = [
        dataclasses.replace(FAIR, episodes=99, **{field: OTHERS[field]})
        for field in ("protocol", "greedy", "settings")
    ]
    small, later = dataclasses.replace(FAIR, episodes=5), dataclasses.replace(FAIR, seed=1)
    assert best_rows([*unlike, FAIR, small]) == [FAIR]
    assert best_rows([FAIR, later, *unlike]) == [later]
    (only,) = best_rows(unlike[1:2])
    assert only.how == "greedily"
    assert [row.step for row in best_rows([FAIR, dataclasses.replace(FAIR, step=50)])] == [50, 100]


def test_older_tables_are_read_and_kept_as_they_are_written(tmp_path: Path) -> None:
    table = tmp_path / "run.csv"
    table.write_text(
        "step,episode_avg_return,episode_std_return,human_normalised_score,episodes,seed\n50,1.50,0,,1,0\n"
    )
    episode_table(table).write_text("step,episode,return,length,seed\n50,0,1.50,9,0\n")
    (old,) = read_evaluations(table)
    assert (old.step, old.mean, old.episodes, old.how) == (50, 1.5, 1, "")
    assert read_episodes(episode_table(table)) == {old.key: [Episode(1.5, 9)]}
    append(table, FAIR, played(FAIR))
    assert read_evaluations(table) == [old, FAIR]
    assert read_episodes(episode_table(table))[old.key] == [Episode(1.5, 9)]
    assert "\n50,1.50,0,,1,0,,,,\n" in table.read_text()
    table.write_text("step,episode_avg_return\n97500,11.5\n97500,12.5\n")  # the STORM release's
    assert read_evaluations(table) == [Evaluation(97_500, 12.5)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"my,own,table\n1,2,3\n",
        b"\xff\xfe\0",
        *(
            b"step,episode_avg_return" + rest
            for rest in (b"\nx,y\n", b"\n1e999,1\n", b"\n1\n", b",note\n1,2,mine\n", b"\n1,2,3\n")
        ),
    ],
)
def test_what_is_no_such_table_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "run.csv"
    table.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.csv"):
        append(table, FAIR, played(FAIR))
    assert table.read_bytes() == content


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    code = """
import sys, dataclasses
from evaluation.tables import *
for seed in range(20):
    append(Path(sys.argv[1]), Evaluation(int(sys.argv[2]), 1.0, seed=seed), [Episode(1.0, 1)])
"""
    table = tmp_path / "run.csv"
    command = [sys.executable, "-c", code, str(table)]
    processes = [subprocess.Popen([*command, str(step)]) for step in (1, 2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert len(read_evaluations(table)) == 40
