"""A sweep's command line: the runs of its grid, and what of them is done already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweep_support import CATCH, REPOSITORY, WANTED, plan, write_status

import sweep
from sweeping.options import parse_options
from sweeping.plan import plan_runs
from sweeping.progress import Progress, read_progress
from sweeping.runs import SweepRun
from sweeping.table import describe_progress
from utils import UserError


def grid(*words: str) -> list[tuple[str, int, str]]:
    return list(parse_options(words).grid())


def test_lists_may_stand_in_brackets() -> None:
    plain = grid("games=Boxing,Pong", "seeds=0,1", "configs=STORM,GITSTORM")
    assert plain == grid("games=[Boxing, Pong]", "seeds=[0,1,0]", "configs=[STORM,GITSTORM]")
    assert len(plain) == 8 and plain[:3] == [
        ("Boxing", 0, "STORM"),
        ("Boxing", 0, "GITSTORM"),
        ("Pong", 0, "STORM"),
    ]


def test_atari100k_is_the_26_games() -> None:
    games = parse_options(["games=Pong,atari100k,Freeway"]).games
    assert len(games) == 26 and games[0] == "Pong"


def test_only_evaluating_takes_the_options_of_eval() -> None:
    options = parse_options(["evaluate", "games=Pong", "-num_episodes", "3", "-greedy"])
    assert options.eval_options == ("-num_episodes", "3", "-greedy") and not options.train
    assert options == parse_options(["-num_episodes", "3", "games=Pong", "-greedy", "evaluate"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "games= is missing"),
        (["games="], "at least one"),
        (["games=[Pong"], "one bracket"),
        (["game=Pong"], "did you mean 'games'"),
        (["games=Pong", "Seed"], "name=value"),
        (["games=Pong", "-greedy"], "name=value"),
        (["games=Bxing"], "did you mean 'ALE/Boxing-v5'"),
        (["games=no_such_module:Pong-v0"], "no_such_module"),
        (["games=Pong", "configs=STROM"], "did you mean 'STORM'"),
        (["games=Pong", "seeds=-1"], "'-1': must be a whole number"),
        (["games=Pong", "cpus_per_run=0"], "greater than 0"),
        (["games=Pong", "cpus_per_run=1024"], "cpus_per_run=1024: more than this machine has"),
        (["games=Pong", "gpus_per_run=2"], "from 0 to 1"),
        (["games=Pong", "retries=x"], "whole number"),
        (["games=Pong", "evaluate=perhaps"], "true or false"),
        (["games=Pong", "storage=/no/such/folder"], "no such folder"),
        (["games=Pong", "Models.Agent.Gama=1"], "did you mean 'Models.Agent.Gamma'"),
        (["games=Pong", "Models.Agent.Gamma=2"], "in [0, 1]"),
        (["games=Pong", "BasicSettings.Seed=1"], "seeds="),
        (["games=Pong", "BasicSettings.Restart=true"], "start over"),
        (["evaluate", "games=Pong", "-run_name=x"], "-run_name"),
        (["evaluate", "games=Pong", "--such"], "--such"),
        (["evaluate", "games=Pong", "-num_episodes=0"], "-num_episodes=0: must be a whole number in [1, "),
        (["evaluate", "games=Pong", "Models.Agent.Gamma=0.5"], "saved settings"),
    ],
)
def test_user_errors_are_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run_sweep", lambda *_: pytest.fail("it started"))
    with pytest.raises(UserError, match=r".+") as raised:
        sweep.main(words)
    assert complaint in str(raised.value) and not list(tmp_path.iterdir())


# --- the runs of a grid


def write_checkpoints(run: SweepRun, *steps: int) -> None:
    run.directory.checkpoints.mkdir(parents=True, exist_ok=True)
    for step in steps:
        for model in ("world_model", "agent"):
            (run.directory.checkpoints / f"{model}_{step}.pth").touch()


def write_evaluation(run: SweepRun, *rows: str) -> None:
    table = run.directory.outputs.parent / "eval_result" / f"{run.name}.csv"
    table.parent.mkdir(exist_ok=True, parents=True)
    table.write_text("\n".join(["step,episode_avg_return,episodes,protocol,greedy", *rows]) + "\n")


def test_runs_are_named_and_started_as_train_sh_does(tmp_path: Path) -> None:
    words = ["games=Boxing", "seeds=3", "configs=GITSTORM", f"storage={tmp_path}", "Models.Agent.Gamma=0.9"]
    (run,) = plan_runs(parse_options(words))
    assert run.name == "Boxing-GITSTORM-seed_3" and run.directory.outputs == tmp_path / "outputs" / run.name
    script, *settings = run.command("train")
    assert Path(script) == REPOSITORY / "train.py"
    expected = ["env_name=ALE/Boxing-v5", "Seed=3", "config_path=config_files/GITSTORM.yaml", "n=null"]
    assert settings[:4] == [f"BasicSettings.{text}" for text in expected]
    assert settings[-1] == "Models.Agent.Gamma=0.9"
    assert run.config.Models.Agent.Gamma == 0.9 and run.config.JointTrainAgent.ModelType == "GITSTORM"


def test_paths_are_meant_from_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("BasicSettings:\n  trajectory_path: null\n")
    (tmp_path / "demo.npz").touch()
    words = ["games=Pong", "configs=mine.yaml", "BasicSettings.trajectory_path=demo.npz"]
    (run,) = plan_runs(parse_options(words))
    assert f"BasicSettings.config_path={tmp_path / 'mine.yaml'}" in run.settings
    assert run.settings[-1] == f"BasicSettings.trajectory_path={tmp_path / 'demo.npz'}"


def test_two_configs_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "STORM-catch.yaml"
    path.write_text("Models:\n  Agent:\n    Gamma: 0.5\n")
    with pytest.raises(UserError, match="two runs of the grid would be named"):
        plan(tmp_path, f"configs=STORM-catch,{path}")


def test_a_run_is_trained_once_it_has_the_wanted_steps(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, f"JointTrainAgent.SampleMaxSteps={WANTED}", "evaluate=false")
    assert run.next_stage() == "train"
    for status, step in (("running", WANTED), ("stopped", WANTED), ("finished", WANTED - 1)):
        write_status(run, status, step)
        assert run.next_stage() == "train"
    run.directory.status_file.write_text('{"status": "finished", "finished_step":')
    assert run.next_stage() == "train"
    write_status(run, "finished", WANTED)
    assert run.next_stage() is None


def test_a_run_is_evaluated_once_every_checkpoint_has_its_row(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, f"JointTrainAgent.SampleMaxSteps={WANTED}")
    write_status(run, "finished", WANTED)
    assert run.next_stage() == "evaluate"
    write_checkpoints(run, 20, 40)
    write_evaluation(run, "40,1.0,5")
    assert run.next_stage() == "evaluate"
    write_evaluation(run, "20,1.0,5", "40,1.0,5")
    assert run.next_stage() is None


@pytest.mark.parametrize(
    ("options", "evaluated"),
    [
        (["-checkpoints", "last"], True),
        (["-checkpoints", "20"], False),
        (["-checkpoints", "last", "-num_episodes", "5"], True),
        (["-checkpoints", "last", "-num_episodes", "6"], False),
        (["-checkpoints", "last", "-protocol=fair"], True),
        (["-checkpoints", "last", "-protocol=release"], False),
        (["-checkpoints", "last", "-greedy"], True),
        (["-checkpoints", "last", "-greedy", "-num_episodes=4"], False),
        (["-checkpoints", "last", "-seed=1"], False),
        ([], False),
    ],
)
def test_what_is_evaluated_depends_on_what_is_asked_for(
    tmp_path: Path, options: list[str], evaluated: bool
) -> None:
    words = ["evaluate", CATCH, "configs=STORM-catch", f"storage={tmp_path}", *options]
    (run,) = plan_runs(parse_options(words))
    write_checkpoints(run, 20, 40)
    write_evaluation(run, "40,1.0,5,fair,0", "40,1.0,3,fair,1", "20,1.0,5,fair,1")
    assert (run.next_stage() is None) == evaluated


def test_progress_is_read_from_the_newest_lines(tmp_path: Path) -> None:
    lines = [
        {"step": 90, "sample/Diagnostic/Catch-v0_reward": 1.0, "sample/Diagnostic/Catch-v0_episode_steps": 9},
        {"step": 100, "time/steps_per_s": 5.0, "time/elapsed_s": 20.0},
        {"step": 108, "sample/Diagnostic/Catch-v0_reward": -1.0},
        {"step": 110, "health/KL": 1.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), '{"step": 12']))
    progress = read_progress(path, wanted=160)
    assert progress == Progress(step=110, wanted=160, speed=5.0, last_return=-1.0)
    assert describe_progress(progress) == "step 110/160  5.0 steps/s  ETA 0:00:10  last return -1"
    assert read_progress(tmp_path / "none", wanted=160) == Progress(wanted=160)
