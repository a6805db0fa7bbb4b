"""experiments/control.py: what is its own of a grid; tests/experiments/test_atari_small.py runs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments import acting, atari_small, control, curves_figure, grid, quick_start
from utils import REPOSITORY, UserError, as_file_name


@pytest.mark.parametrize(
    ("task", "environment"),
    [("walker-stand", "dm_control/walker-stand-v0"), ("Pendulum-v1", "Pendulum-v1")],
)
def test_tasks_without_a_version_are_of_dm_control(task: str, environment: str) -> None:
    assert control.environment_of(task) == environment


@pytest.mark.parametrize(
    ("suite", "task", "short"),
    [
        (control.SUITE, "dm_control/walker-stand-v0", "walker-stand"),
        (control.SUITE, "Pendulum-v1", "Pendulum-v1"),
        (control.SUITE, "a:b/C-v1", "a:b/C-v1"),
        (atari_small.SUITE, "ALE/Pong-v5", "Pong"),
        (quick_start.SUITE, "Diagnostic/Catch-v0", "Catch"),
        (acting.SUITE, "Diagnostic/WindyCatch-v0", "WindyCatch"),
        (acting.SUITE, "Diagnostic/Catch-v0", "Diagnostic/Catch-v0"),
    ],
)
def test_a_task_is_named_by_its_full_id_too(suite: grid.Suite, task: str, short: str) -> None:
    runs = grid.cells(suite, grid.grid_parser(suite, "").parse_args(["--tasks", task]))
    assert {run.task for run in runs} == {short} and suite.environment(short) == task
    assert all(run.name == as_file_name(run.name) for run in runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "CartPole-v1", "Pendulum-v11"], "'Pendulum-v11' .did you mean 'Pendulum-v1'"),
        (["--models", "STORM-contrl"], "'STORM-contrl': no such file .did you mean 'STORM-control'"),
        (["Models.WorldModel.NumClasses=1"], "NumClasses='1': must be a whole number"),
        (["--episodes", "0"], "--episodes: Evaluation.NumEpisodes=0"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(grid, "train", lambda *_: pytest.fail("a run started"))
    tasks = [] if "--tasks" in arguments else ["--tasks", "Pendulum-v1"]
    with pytest.raises(UserError, match=message):
        control.main([*tasks, *arguments])


def test_steps_are_of_the_simulator_or_in_a_game_of_the_agent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = {
        "train": None,
        "training_returns": [(500, 1.0), (45_100, 2.0), (50_000, 6.0)],
        "saved_steps": [5_000, 50_000],
        "evaluate": [3.0, 5.0],
        "run_facts": {"trained_steps": 50_000, "training_minutes": 100.0},
        "training_curves": {"step": []},
    }
    for name, value in known.items():
        monkeypatch.setattr(grid, name, lambda *_, value=value, **__: value)
    run = grid.Run("walker-stand", "STORM-control", "", 1)
    row = grid.measure(control.SUITE, run, [], 2, tmp_path, "cpu")
    assert row["simulator_steps"] == 100_000 and row["decisions_per_s"] == 8.33
    assert row["training_returns"] == [(1_000, 1.0), (90_200, 2.0), (100_000, 6.0)]
    assert row["final_training_return"] == 4.0 and row["evaluation_returns"] == [3.0, 5.0]
    assert "evaluations" not in row
    row = grid.measure(atari_small.SUITE, grid.Run("Pong", "STORM-small", "", 1), [], 2, tmp_path, "cpu")
    assert row["agent_steps"] == 50_000 and row["training_returns"][0] == (500, 1.0)
    assert row["evaluations"] == [(5_000, [3.0, 5.0]), (50_000, [3.0, 5.0])]  # of every checkpoint


def test_every_task_has_a_panel_and_every_line_a_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(curves_figure, "save", lambda figure, path: drawn.append(figure))
    tasks = ["CartPole-v1", "cartpole-balance", "cartpole-swingup", "reacher-easy", "walker-stand"]
    files = [REPOSITORY / "results" / "control" / f"{task}.json" for task in tasks]
    curves_figure.draw(files, control.SUITE.published, tmp_path / "control.png")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == tasks
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named >= {"STORM-control", "GITSTORM-control", "DreamerV3 (mean, range)"}


def test_a_model_has_one_colour_in_all_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(curves_figure, "save", lambda figure, path: drawn.append(figure))
    for task, variants in (("a", ["late"]), ("b", ["early", "late"])):
        runs = [
            {"model": f"STORM-tiny {variant}", "agent_steps": 9, "training_returns": [(5, 1), (9, 2)]}
            for variant in variants
        ]
        (tmp_path / f"{task}.json").write_text(
            json.dumps({"task": task, "step": "agent_steps", "runs": runs})
        )
    curves_figure.draw([tmp_path / "a.json", tmp_path / "b.json"], None, tmp_path / "both.png")
    lines = [line for axes in drawn[0].axes for line in axes.lines]
    late = {line.get_color() for line in lines if line.get_label() == "STORM-tiny late"}
    early = {line.get_color() for line in lines if line.get_label() == "STORM-tiny early"}
    assert len(late) == len(early) == 1 and late != early


def test_of_many_seeds_the_mean_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(curves_figure, "save", lambda figure, path: drawn.append(figure))
    starts = (10, 20, 10, 10, 10)
    runs = [
        {"model": "STORM", "agent_steps": 100, "training_returns": [(s, seed) for s in range(start, 101)]}
        for seed, start in enumerate(starts)
    ]
    for kept in (4, 5):
        record = {"task": "a", "step": "agent_steps", "runs": runs[:kept]}
        (tmp_path / "a.json").write_text(json.dumps(record))
        curves_figure.draw([tmp_path / "a.json"], None, tmp_path / "a.png")
    few, many = (figure.axes[0].lines for figure in drawn)
    assert len(few) == 4 and len(many) == 6
    steps, values = many[-1].get_data()
    assert steps[0] >= 20 and steps[-1] == 100  # where all seeds have a point
    assert set(values) == {2.0}
