"""The one reader of metrics.jsonl: torn ends, damage, and what is made of the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from run_files.metrics import Record, read_history, read_metrics, thin
from utils import UserError

GAME = "sample/Diagnostic/Catch-v0"
LINES = [
    {"step": 90, f"{GAME}_reward": 1.0, f"{GAME}_episode_steps": 9.0},
    {"step": 100, "time/steps_per_s": 5.0, "time/elapsed_s": 20.0, "loss": None},
    {"step": 108, f"{GAME}_reward": -1.0, f"{GAME}_episode_steps": 11.0},
    {"step": 110, "health/KL": 1.0},
]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES)


@pytest.mark.parametrize("torn", ["", '{"step": 12', '{"step"', "{", "\0\0"])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(TEXT + torn)
    records = list(read_metrics(path))
    assert [record.step for record in records] == [90, 100, 108, 110]
    assert "".join(record.line for record in records) == TEXT


def test_history(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(TEXT)
    history = read_history(path)
    assert (history.return_steps.tolist(), history.returns.tolist()) == ([90, 108], [1.0, -1.0])
    assert history.last_step == 110
    assert history.seconds == 20.0


def test_no_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(read_metrics(path)) == []
    history = read_history(path)
    assert (history.last_step, history.seconds) == (0, None)


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[1]", "3", '{"a": 1}', '{"step": "1"}', '{"step": 1, "a": "text"}', "[" * 100_000, "\xff"],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n', encoding="latin1")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: "):
        read_history(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not readable"):
        read_history(tmp_path)


def test_thinning_keeps_episodes_and_the_last_record() -> None:
    records = [Record(step, {"loss": 1.0}) for step in range(3_000)]
    records += [Record(3_000 + index, {f"{GAME}_reward": 1.0}) for index in range(400)]
    records.append(Record(4_000, {"loss": 2.0}))
    kept = thin(records, 250)
    assert len(kept) == 400 + 250 and (kept[0], kept[-1]) == (records[0], records[-1])
    assert kept == sorted(kept, key=lambda record: record.step)
