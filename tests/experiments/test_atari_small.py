"""experiments/atari_small.py: a small grid, and what is drawn of the one that it makes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch
from sweep_support import REPOSITORY, wait_for
from tiny_runs import SMALL, STEPS

from evaluation.tables import Episode, Evaluation, append
from experiments import atari_small, grid, training
from experiments.curves_figure import draw
from experiments.figures import colours_of
from experiments.grid import Run, cells, grid_parser
from run_files import provenance
from run_files.directory import RunDirectory
from utils import UserError, write_atomically

GRIDS = ("acting", "atari_small", "control", "control_ablation", "quick_start", "scale_of")
GAMES = ("Boxing", "Breakout", "KungFuMaster", "Krull", "MsPacman", "Pong", "RoadRunner")


def test_a_grid_is_run_recorded_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--tasks", "KungFuMaster", "--models", "GITSTORM-small", "--variant", "short"]
    arguments += [
        "--episodes",
        "2",
        "--at-a-time",
        "3",
        "--out",
        "records",
        *SMALL[1:],  # the first names the environment, as --tasks does
        f"JointTrainAgent.SaveEverySteps={STEPS}",
    ]
    arguments += [
        "BasicSettings.ReleaseQuirks=True",
        "Evaluation.Greedy=True",
    ]  # of a run; scores stay comparable
    assert atari_small.main(arguments) == 0
    monkeypatch.setattr(grid, "train", lambda *_: None)
    monkeypatch.setattr(training, "check_end", lambda *_: pytest.fail("it was evaluated before"))
    arguments.append("BasicSettings.Precision=bfloat16")  # not what it was trained with
    assert atari_small.main(arguments) == 0  # from what is there
    record = json.loads(Path("records/KungFuMaster.json").read_text())
    (run,) = record["runs"]
    assert (record["task"], run["model"], run["seed"]) == ("KungFuMaster", "GITSTORM-small short", 0)
    assert record["levels"] == {"random play": 258.5, "a person": 22736.3}
    assert run["agent_steps"] == run["trained_steps"] == STEPS and len(run["evaluation_returns"]) == 2
    assert run["command"].startswith("python -m experiments.atari_small --tasks KungFuMaster --models")
    assert (run["device"], run["runs_at_a_time"], run["threads_per_run"]) == ("cpu", 3, 1)
    assert run["hardware"] and run["versions"]["torch"] == torch.__version__
    assert "--out" not in run["command"] and "records" not in run["command"]
    assert [step for step, _ in run["evaluations"]] == [STEPS]
    assert all(len(returns) == 2 for _, returns in run["evaluations"])
    table = pandas.read_csv("records/KungFuMaster.csv")
    assert list(table.columns) == ["model", "seed", "agent_steps", "episode", "return"]
    assert list(table["return"]) == run["evaluation_returns"] and set(table.agent_steps) == {STEPS}
    assert run["training_cpu_minutes"] > 0 and run["changed"]["BasicSettings.ImageSize"] == 16
    assert run["changed"]["BasicSettings.Precision"] == "float32"
    assert len(run["health"]["ActorCritic/S"]) == len(run["health"]["step"]) > 1
    for name in ("atari_small", "KungFuMaster_health"):
        assert (tmp_path / "records" / f"{name}.png").stat().st_size > 10_000


def test_a_card_trains_and_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(training, "start", lambda command, *_: commands.append(command))
    monkeypatch.setattr(training, "check_end", lambda *_: None)
    monkeypatch.setattr(grid, "saved_steps", lambda *_: [7])
    run = Run("Pong", "STORM-small", "", 0)
    with pytest.raises(FileNotFoundError):  # nothing was trained
        grid.measure(atari_small.SUITE, run, [], 2, tmp_path, "cuda:1")
    assert [Path(command[0]).name for command in commands] == ["train.py", "eval.py"]
    devices = [[word for word in command if "device" in word] for command in commands]
    assert devices[0][-1] == "BasicSettings.device=cuda:1" and not devices[1]  # as the run was trained


@pytest.mark.parametrize("name", ["Seed", "env_name", "config_path", "n", "Restart"])
def test_what_the_grid_gives_is_no_setting(name: str) -> None:
    with pytest.raises(UserError, match=f"BasicSettings.{name}: the grid gives it"):
        atari_small.main(["--tasks", "Boxing", f"BasicSettings.{name}=1"])


@pytest.mark.parametrize("text", ["{", "[]", '{"task": "Boxing"}'])
def test_a_file_that_is_no_record_is_found_before_training(text: str, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text(text)
    with pytest.raises(UserError, match=r"notes.json: not a record of runs"):
        atari_small.main(["--tasks", "Boxing", "--out", str(tmp_path)])


def test_a_commit_while_an_experiment_runs_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.experiment_parser("twins", "")
    before = provenance.source_commit()
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    training.write_record(tmp_path / "record.json", "twins", [], {})
    assert json.loads((tmp_path / "record.json").read_text())["commit"] == before


def test_two_commands_record_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any) -> None:
        time.sleep(0.1)
        write_atomically(*arguments)

    row = {"agent_steps": 1, "evaluation_returns": [1.0], "evaluations": [[1, [1.0]]]}
    monkeypatch.setattr(grid, "measure", lambda suite, run, *_: row | {"model": run.label, "seed": run.seed})
    monkeypatch.setattr(grid, "write_atomically", slowly)
    monkeypatch.setattr(grid, "draw", lambda *_: None)
    monkeypatch.setattr(grid, "draw_health", lambda *_: None)
    common = ["--tasks", "Boxing", "--models", "STORM-small", "--out", str(tmp_path), "--seeds"]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(atari_small.main, ([*common, "0", "1"], [*common, "2", "3"]))) == [0, 0]
    runs = json.loads((tmp_path / "Boxing.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1, 2, 3]


def test_each_model_has_a_colour_of_its_own() -> None:
    names = ["STORM-tiny", "STORM-small", "GITSTORM-small", "GITSTORM-small slice", "my_config"]
    assert len(set(colours_of(names).values())) == len(names)


def test_a_failed_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed = SimpleNamespace(wait=lambda: 2, returncode=2)
    monkeypatch.setattr(training, "start", lambda *_: failed)
    arguments = ["--tasks", "KungFuMaster", "--models", "STORM-small", "--out", "records"]
    with pytest.raises(UserError, match="KungFuMaster-STORM-small-seed_0 ended with code 2"):
        atari_small.main(arguments)


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*gone/a.log"):
        training.start(["train.py"], "a", tmp_path / "gone")


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_runs_of_a_grid_that_is_killed_save_and_go_on_when_it_is_typed_again(tmp_path: Path) -> None:
    endless = [*SMALL, "BasicSettings.env_name=Diagnostic/Catch-v0", "JointTrainAgent.SampleMaxSteps=1000000"]
    code = "import pathlib; from experiments import training; "
    code += f"training.train('run', 'STORM-tiny', {endless!r}, pathlib.Path({str(tmp_path)!r}))"
    command, log = [sys.executable, "-c", code], tmp_path / "run.log"
    with subprocess.Popen(command, cwd=REPOSITORY) as parent:
        wait_for(lambda: RunDirectory("run", tmp_path).metrics_file.is_file())
        parent.kill()
    short = [*endless[:-1], "JointTrainAgent.SampleMaxSteps=1"]  # less than there is: it is finished at once
    training.train("run", "STORM-tiny", short, tmp_path)
    assert "stopped by SIGTERM" in log.read_text() and "in use" not in log.read_text()


def test_the_grid_is_three_games_and_a_second_seed_of_boxing() -> None:
    runs = cells(atari_small.SUITE, grid_parser(atari_small.SUITE, "").parse_args([]))
    expected = [(game, 0) for game in ("Boxing", "KungFuMaster", "Krull")] + [("Boxing", 1)]
    models = ("STORM-small", "GITSTORM-small")
    assert runs == [Run(game, model, "", seed) for game, seed in expected for model in models]


@pytest.mark.parametrize("suite", GRIDS)
def test_every_record_of_a_grid_has_a_table_of_its_episodes(suite: str) -> None:
    records = sorted((REPOSITORY / "results" / suite).glob("*.json"))
    assert records
    for path in records:
        table = pandas.read_csv(path.with_suffix(".csv"))
        pandas.testing.assert_frame_equal(table, grid.evaluated_episodes(json.loads(path.read_text())))


@pytest.mark.parametrize("game", GAMES)
def test_every_game_of_the_plan_has_published_curves(game: str) -> None:
    published = json.loads(atari_small.SUITE.published.read_text())
    assert published["steps"][-1] == 100_000
    for seeds in (published["methods"][name][game] for name in ("DreamerV3", "PPO")):
        assert len(seeds) == 5 and {len(curve) for curve in seeds.values()} == {len(published["steps"])}


def test_levels_and_evaluations_are_drawn(tmp_path: Path) -> None:
    run = {"model": "STORM-small", "seed": 0, "agent_steps": 100_000}
    run |= {"training_returns": [(10_000, -2), (90_000, 40)], "evaluations": [(100_000, [50, 60])]}
    record = {"task": "Boxing", "step": "agent_steps", "levels": atari_small.levels("Boxing"), "runs": [run]}
    (tmp_path / "Boxing.json").write_text(json.dumps(record))
    draw([tmp_path / "Boxing.json"], atari_small.SUITE.published, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 20_000


def test_a_record_without_finished_episodes_and_of_other_models_is_drawn(tmp_path: Path) -> None:
    names = ["STORM-small", "my_config", *(f"STORM-small {index}" for index in range(5))]
    runs = [
        {
            "model": name,
            "seed": 0,
            "agent_steps": 2_000,
            "training_returns": [],
            "evaluations": [(2_000, [1.0])],
        }
        for name in names
    ]
    (tmp_path / "Pong.json").write_text(json.dumps({"task": "Pong", "step": "agent_steps", "runs": runs}))
    draw([tmp_path / "Pong.json"], atari_small.SUITE.published, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_curves_are_of_updates_of_all_models(tmp_path: Path) -> None:
    file = RunDirectory("run", tmp_path).metrics_file
    file.parent.mkdir(parents=True)
    lines = [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0, "b": 3.0}, {"step": 3, "a": 2.0, "b": None}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training.training_curves("run", ["a", "b"], tmp_path) == {"step": [2], "a": [2.0], "b": [3.0]}


def test_only_a_fair_evaluation_is_recorded(tmp_path: Path) -> None:
    table = RunDirectory("run", tmp_path).table
    table.parent.mkdir(parents=True)
    episodes = [Episode(1.0, 10), Episode(3.0, 10)]
    rows = [
        Evaluation(5, 2.0, 1.0, None, 2, 0, protocol, greedy, 1, settings)
        for protocol, greedy, settings in (
            ("fair", 1, ""),
            ("release", 0, ""),
            ("fair", 0, "Environment.StickyActions=0"),
        )
    ]
    for row in rows:
        append(table, row, episodes)
    assert training.evaluated_returns("run", 5, 2, tmp_path) == []
    append(table, replace(rows[0], greedy=0), episodes)
    assert training.evaluated_returns("run", 5, 2, tmp_path) == [1.0, 3.0]
