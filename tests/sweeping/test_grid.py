"""A sweep's command line: the runs of its grid, and what of them is done already."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_support import CATCH, REPOSITORY, WANTED, plan, write_status

import sweep
from configuration.loading import config_to_yaml, load_config
from configuration.schema import Config
from sweeping.options import OPTIONS, help_text, parse_options
from sweeping.runs import SweepRun, plan_runs
from utils import UserError


def grid(*words: str) -> list[tuple[str, str, str]]:
    return parse_options(words).grid()


def test_a_grid_is_every_game_seed_and_config() -> None:
    plain = grid("games=Boxing,Pong", "seeds=0,1", "configs=STORM,GITSTORM")
    assert plain == grid("games=[Boxing, Pong]", "seeds=[0,1,0]", "configs=[STORM,GITSTORM]")
    assert len(plain) == 8 and plain[:3] == [
        ("Boxing", "0", "STORM"),
        ("Boxing", "0", "GITSTORM"),
        ("Pong", "0", "STORM"),
    ]


def test_atari100k_is_the_26_games() -> None:
    games = [game for game, _, _ in grid("games=Pong,atari100k,Freeway")]
    assert len(games) == 26 and games[0] == "Pong"


def test_the_help_names_every_option() -> None:
    assert all(f"  {name}=" in help_text() for name in OPTIONS)


def test_a_world_model_of_clips_is_trained_and_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    clips = f"BasicSettings.trajectory_path={tmp_path / 'clips'}"
    assert {run.stages for run in plan(tmp_path, "Task=VideoPrediction", clips)} == {("train",)}
    assert {run.stages for run in plan(tmp_path)} == {("train", "evaluate")}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "games=, seeds= and configs="),
        (["games= "], "games=' ': must be a list"),
        (["game=Pong"], "did you mean 'games'"),
        (["games=Pong", "Seed"], "did you mean 'seeds'"),
        (["games=Pong", "-greedy"], "'-greedy'"),
        (["games=Bxing"], "did you mean 'ALE/Boxing-v5'"),
        (["games=no_such_module:Pong-v0"], "no_such_module"),
        (["games=Pong", "configs=STROM"], "did you mean 'STORM'"),
        (["games=Pong", "seeds=-1"], "BasicSettings.Seed='-1'"),
        (["games=Pong", "cpus_per_run=0"], "in [0.01, 1_024]"),
        (["games=Pong", "cpus_per_run=1024"], "cpus_per_run=1024: this machine has"),
        (["games=Pong", "gpus_per_run=2"], "in [0, 1]"),
        (["games=Pong", "retries=x"], "retries='x': must be a whole number"),
        (["games=Pong", "evaluate=perhaps"], "evaluate='perhaps': must be true or false"),
        (["games=Pong", "storage=/no/such/folder"], "no such folder"),
        (["games=Pong", "address=127.0.0.1:9"], "no Ray cluster answers there"),
        (["games=Pong", "Models.Agent.Gama=1"], "did you mean 'Models.Agent.Gamma'"),
        (["games=Pong", "Models.Agent.Gamma=2"], "in [0, 1]"),
        (["games=Pong", "BasicSettings.Seed=1"], "seeds="),
        (["games=Pong", "BasicSettings.Restart=true"], "start over"),
        (["games=Pong,Boxing", "BasicSettings.n=mine"], "would be named mine"),
        (["games=Pong", "BasicSettings.device=cuda:1"], "CUDA_VISIBLE_DEVICES"),
        (["evaluate", "games=Pong", "-run_name=x"], "-run_name"),
        (["evaluate", "games=Pong", "--such"], "--such"),
        (["evaluate", "games=Pong", "-num_episodes=0"], "-num_episodes=0: must be a whole number in [1, "),
        (["games=Pong,Boxing", "task=only"], "task=only: must be from 0 to 1"),
        (["games=Pong,Boxing", "task=2"], "--array=0-1"),
        (["games=Pong", "task=-1"], "task=-1: must be from 0 to 0"),
    ],
)
def test_user_errors_are_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    if "address=127.0.0.1:9" in words:
        pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "carry_out", lambda *_: pytest.fail("it started"))
    with pytest.raises(UserError, match=r".+") as raised:
        sweep.main(words)
    assert complaint in str(raised.value) and not list(tmp_path.iterdir())


# --- the runs of a grid


def test_paths_are_meant_from_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my config.yaml").write_text("BasicSettings:\n  trajectory_path: null\n")
    (tmp_path / "demo.npz").touch()
    words = ["games=Pong", "configs=my config.yaml", "BasicSettings.trajectory_path=demo.npz"]
    (run,) = plan_runs(parse_options(words))
    assert f"BasicSettings.config_path={tmp_path / 'my config.yaml'}" in run.settings
    assert run.settings[-1] == f"BasicSettings.trajectory_path={tmp_path / 'demo.npz'}"


@pytest.mark.parametrize(
    ("game", "environment"),
    [("Pong", "ALE/Pong-v5"), ("ALE/Pong-v5", "ALE/Pong-v5"), ("Pong-v4", "Pong-v4")],
)
def test_train_py_is_given_what_the_sweep_planned(tmp_path: Path, game: str, environment: str) -> None:
    words = [f"games={game}", "seeds=3", "configs=GITSTORM", f"storage={tmp_path}", "Models.Agent.Gamma=0.9"]
    (run,) = plan_runs(parse_options(words))
    script, *settings = run.job("train").command
    assert Path(script) == REPOSITORY / "train.py" and load_config(settings) == run.config
    assert "BasicSettings.config_path=config_files/GITSTORM.yaml" in settings
    assert run.config.BasicSettings.env_name == environment and run.config.Models.Agent.Gamma == 0.9


def test_two_configs_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "STORM-catch.yaml"
    path.write_text("Models:\n  Agent:\n    Gamma: 0.5\n")
    with pytest.raises(UserError, match="two runs of the grid would be named"):
        plan(tmp_path, f"configs=STORM-catch,{path}")


def test_a_run_is_trained_once_it_has_the_wanted_steps(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, f"JointTrainAgent.SampleMaxSteps={WANTED}")
    assert not run.is_done("train")
    for status, step in (("running", WANTED), ("stopped", WANTED), ("finished", WANTED - 1)):
        write_status(run, status, step)
        assert not run.is_done("train")
    run.directory.status_file.write_text('{"status": "finished", "finished_step":')
    assert not run.is_done("train")
    write_status(run, "finished", WANTED)
    assert run.is_done("train")
    (other,) = plan(tmp_path, f"JointTrainAgent.SampleMaxSteps={WANTED}", "Models.Agent.Gamma=0.5")
    assert not other.is_done("train")  # train.py refuses it, and says why


def write_evaluation(run: SweepRun, *rows: str) -> None:
    run.directory.checkpoints.mkdir(parents=True)
    for path in (f"{model}_{step}.pth" for model in ("world_model", "agent") for step in (20, 40)):
        (run.directory.checkpoints / path).touch()
    run.directory.config_file.write_text(config_to_yaml(run.config))
    table = run.directory.outputs.parent / "eval_result" / f"{run.name}.csv"
    table.parent.mkdir(exist_ok=True, parents=True)
    table.write_text("\n".join(["step,episode_avg_return,episodes,protocol,greedy,settings", *rows]) + "\n")


def test_a_run_is_evaluated_once_every_checkpoint_has_its_row(tmp_path: Path) -> None:
    for seed, rows in enumerate(([], ["40,1.0,20"], ["20,1.0,20", "40,1.0,20"])):
        (run,) = plan(tmp_path, f"seeds={seed}")
        assert not run.is_done("evaluate")
        write_evaluation(run, *rows)
        assert run.is_done("evaluate") == (len(rows) == 2)


FIVE = ["-checkpoints", "last", "-num_episodes", "5"]


@pytest.mark.parametrize(
    ("options", "evaluated"),
    [
        (["-checkpoints", "last"], False),  # the config asks for 20 episodes
        (["-checkpoints", "20"], False),
        (FIVE, True),
        (["-checkpoints", "last", "-num_episodes", "6"], False),
        ([*FIVE, "-protocol=fair"], True),
        ([*FIVE, "-protocol=release"], False),
        ([*FIVE, "-greedy"], False),
        ([], False),
        ([*FIVE, "Environment.RewardScale=2"], False),
        ([*FIVE, "Evaluation.NumEnvs=1"], True),
        ([*FIVE, "-record_video"], False),
        (["-checkpoints", "last", "-world_model"], False),
    ],
)
def test_what_is_evaluated_depends_on_what_is_asked_for(
    tmp_path: Path, options: list[str], evaluated: bool
) -> None:
    words = ["evaluate", CATCH, "configs=STORM-catch", f"storage={tmp_path}", *options]
    (run,) = plan_runs(parse_options(words))
    write_evaluation(run, "40,1.0,5,fair,0,")
    assert run.is_done("evaluate") == evaluated


def test_an_evaluation_under_other_settings_is_done_once_it_is_in_the_table(tmp_path: Path) -> None:
    words = ["evaluate", CATCH, "configs=STORM-catch", f"storage={tmp_path}", *FIVE]
    (run,) = plan_runs(parse_options([*words, "Environment.RewardScale=2"]))
    write_evaluation(run, "40,1.0,5,fair,0,Environment.RewardScale=2.0")
    assert run.is_done("evaluate")
    (plain,) = plan_runs(parse_options(words))
    assert not plain.is_done("evaluate")


# --- one run of a grid, for the tasks of a job array


def trained(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Config, Path]:
    """The config that would be trained, and the folder it would be trained in."""
    given: list[Config] = []
    monkeypatch.setattr(sweep, "start_or_continue", lambda config: given.append(config) or 0)
    assert sweep.main(list(words)) == 0
    (config,) = given
    return config, Path.cwd()


def test_the_tasks_of_an_array_are_the_grid_each_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["games=Boxing,Pong", "seeds=0,7", "configs=STORM,STORM-tiny"]
    runs = [load_config(list(run.settings)) for run in plan_runs(parse_options(words))]
    assert len(runs) == 8
    assert [trained(monkeypatch, *words, f"task=0{task}")[0] for task in range(8)] == runs


def test_a_single_run_needs_no_number_and_may_have_a_name_and_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    settings = ["BasicSettings.n=a b", "BasicSettings.Restart=True"]
    config, folder = trained(monkeypatch, "games=Pong", "task=only", f"storage={tmp_path}", *settings)
    assert (config.BasicSettings.n, config.BasicSettings.Restart, folder) == ("a b", True, tmp_path)


def test_a_warning_about_a_single_run_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(monkeypatch, "games=Pong", "task=only", "JointTrainAgent.BatchLength=4")
    assert len([line for line in caplog.messages if "JointTrainAgent.BatchLength=4" in line]) == 1
