"""What users may write in YAML files and on the command line, where a value comes from, and what is saved."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path

import pytest
from config_texts import (
    ORIGINAL_STORM_YAML,
    RELEASE_YAML,
    complaint_about,
    complaint_about_overrides,
    load_text,
)

from configuration import schema as schema_module
from configuration.keys import Range, fixed
from configuration.loading import (
    apply_overrides,
    config_help,
    config_to_yaml,
    differences,
    load_config,
    load_saved_config,
)
from configuration.schema import WIDTH, Config, register_section, schema
from utils import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
YAML_FILES = sorted((REPOSITORY / "config_files").glob("*.yaml"))

# --- the files that come with the repository


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_every_yaml_of_the_repository_loads_and_names_its_runs(path: Path) -> None:
    config = load_config([f"BasicSettings.config_path=config_files/{path.name}", "BasicSettings.Seed=3"])
    kinds = {"catch": "Diagnostic_Catch-v0", "control": "dm_control_cartpole-balance-v0"}
    kinds |= {"pixels": kinds["control"], "video": "clips"}
    game = kinds.get(path.stem.split("-")[-1], "Boxing")
    assert config.BasicSettings.n == f"{game}-{path.stem}-seed_3"
    assert config.JointTrainAgent.ModelType == path.stem.split("-")[0]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_acting_is_at_a_position_that_the_actor_learns_at(path: Path) -> None:
    config = load_config([f"BasicSettings.config_path=config_files/{path.name}"])
    task, has_no_actor = config.JointTrainAgent, config.Task == "VideoPrediction"
    learned = range(task.ImagineContextLength, task.ImagineContextLength + task.ImagineBatchLength)
    assert has_no_actor or task.ActingContextLength in learned


def test_storm_yaml_states_the_schema_defaults() -> None:
    changed = {key for key, *_ in differences(load_config([]), Config())}
    assert changed == {"BasicSettings.n"}


@pytest.mark.parametrize("model", ["STORM", "GITSTORM"])
def test_the_papers_numbers(model: str) -> None:
    config = load_config([f"BasicSettings.config_path=config_files/{model}.yaml"])
    run, world_model, agent = config.JointTrainAgent, config.Models.WorldModel, config.Models.Agent
    assert (run.SampleMaxSteps, run.BatchSize, run.BatchLength) == (102_000, 16, 64)
    assert (run.ImagineBatchSize, run.ImagineContextLength, run.ImagineBatchLength) == (1024, 8, 16)
    assert (world_model.LearningRate, world_model.MaxGradNorm) == (1e-4, 1000)
    assert (agent.LearningRate, agent.AdamEps, agent.EntropyCoef) == (3e-5, 1e-5, 3e-4)


def test_gitstorm_differs_from_storm_in_the_prior_only() -> None:
    storm = load_config([])
    gitstorm = load_config(["BasicSettings.config_path=config_files/GITSTORM.yaml"])
    joint = load_config(["BasicSettings.config_path=config_files/GITSTORM-joint.yaml"])
    names = {"BasicSettings.n", "BasicSettings.config_path"}
    assert {key for key, *_ in differences(storm, gitstorm)} - names == {"JointTrainAgent.ModelType"}
    assert {key for key, *_ in differences(gitstorm, joint)} - names == {
        "Models.MaskGit.T_draft",
        "Models.MaskGit.T_revise",
    }
    maskgit = joint.Models.MaskGit
    assert (maskgit.T_draft, maskgit.T_revise, maskgit.M) == (4, 4, 1)


def test_the_releases_yaml_loads_unchanged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_text(tmp_path, RELEASE_YAML)
    said = [record.getMessage() for record in caplog.records]
    for ignored in ("hydra", "Models.WorldModel.InChannels", "Models.MaskGit.VocabSize"):
        assert len([line for line in said if f"{ignored} is ignored" in line]) == 1
    assert config.BasicSettings.pretrained_path is None
    assert config.BasicSettings.n == "Boxing-custom-seed_0"
    assert config.BasicSettings.config_path == str(tmp_path / "custom.yaml")
    assert config.Models.Agent.EntropyCoef == 3e-4
    assert (config.JointTrainAgent.ModelType, config.JointTrainAgent.BatchLength) == ("GITSTORM", 4)
    assert any("JointTrainAgent.BatchLength=4" in line for line in said)


def test_hydras_own_settings_are_ignored_on_the_command_line(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(["hydra.run.dir=./outputs", "hydra.job.chdir=False", "Models.Agent.Gamma=0.9"])
    assert config.Models.Agent.Gamma == 0.9
    assert caplog.text.count("hydra is ignored") == 1


def test_the_original_storms_yaml_loads_unchanged(tmp_path: Path) -> None:
    config = load_text(tmp_path, ORIGINAL_STORM_YAML, "BasicSettings.env_name=ALE/Pong-v5")
    changed = {key for key, *_ in differences(config, load_config([]))}
    expected = {"n", "config_path", "env_name"}
    assert changed == {f"BasicSettings.{key}" for key in expected} | {"JointTrainAgent.SaveEverySteps"}


# --- where a value comes from


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    text = "Models: {Agent: {Gamma: 0.9, Lambda: 0.8}}"
    config = load_text(tmp_path, text, "Models.Agent.Lambda=0.7", "Models.Agent.Lambda=0.6")
    assert (config.Models.Agent.Gamma, config.Models.Agent.Lambda) == (0.9, 0.6)
    assert config.Models.Agent.EntropyCoef == 3e-4


def test_a_file_starts_from_another_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("Models: {Agent: {Gamma: 0.9, Lambda: 0.8}}")
    (tmp_path / "middle.yaml").write_text("base: low.yaml\nModels: {Agent: {Lambda: 0.7}}")
    config = load_text(tmp_path, "base: middle.yaml\nModels: {Agent: {EntropyCoef: 0.1}}")
    agent = config.Models.Agent
    assert (agent.Gamma, agent.Lambda, agent.EntropyCoef) == (0.9, 0.7, 0.1)


@pytest.mark.parametrize("base", ["none.yaml", "../custom.yaml", "/etc/passwd", "[a, b]", "custom.yaml"])
def test_a_base_that_is_not_there_or_goes_in_circles_is_refused(tmp_path: Path, base: str) -> None:
    assert "custom.yaml" in complaint_about(tmp_path, f"base: {base}")


def test_relative_paths_are_looked_up_here_then_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argument = "BasicSettings.config_path=config_files/STORM-tiny.yaml"
    assert load_config([argument]).Models.WorldModel.NumLatents == 16
    (tmp_path / "config_files").mkdir()
    (tmp_path / "config_files" / "STORM-tiny.yaml").write_text("Models: {WorldModel: {NumLatents: 8}}")
    assert load_config([argument]).Models.WorldModel.NumLatents == 8


def test_a_hidden_state_that_is_seen_whole_need_not_be_cut_into_slices() -> None:
    config = load_config(
        [
            "JointTrainAgent.ModelType=GITSTORM",
            "Models.WorldModel.NumLatents=24",
            "Models.MaskGit.Condition=whole",
        ]
    )
    assert config.Models.WorldModel.TransformerHiddenDim % config.Models.WorldModel.NumLatents


def test_a_config_path_inside_the_file_does_not_redirect(tmp_path: Path) -> None:
    config = load_text(tmp_path, "BasicSettings: {config_path: config_files/STORM-tiny.yaml}")
    assert config.Models.WorldModel.NumLatents == 32
    assert config.BasicSettings.config_path == str(tmp_path / "custom.yaml")


# --- types


@pytest.mark.parametrize("text", ["100_000", "100000", "1e5", "1E+5", "100000.0"])
def test_whole_numbers_may_be_written_in_any_way(text: str) -> None:
    steps = load_config([f"JointTrainAgent.SampleMaxSteps={text}"]).JointTrainAgent.SampleMaxSteps
    assert steps == 100_000 and type(steps) is int


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", "always"), ("on", "always"), ("False", "never"), ("off", "never"), ("auto", "auto")],
)
def test_compile_takes_yaml_booleans(tmp_path: Path, text: str, value: str) -> None:
    assert load_text(tmp_path, f"BasicSettings: {{Compile: {text}}}").BasicSettings.Compile == value
    assert load_config([f"BasicSettings.Compile={text}"]).BasicSettings.Compile == value


@pytest.mark.parametrize("text", ["True", "true", "yes", "on", "1"])
def test_booleans(text: str) -> None:
    assert load_config([f"BasicSettings.silent={text}"]).BasicSettings.silent is True


def test_a_saved_configuration_of_another_encoding_is_refused(tmp_path: Path) -> None:
    saved = tmp_path / "saved.yaml"
    saved.write_text(config_to_yaml(Config()), encoding="utf-16")
    with pytest.raises(UserError, match="not a run's whole configuration"):
        load_saved_config(saved)


@pytest.mark.parametrize("name", ["1e5", "007", "true", "2024-01-01", "0x10", "my run", "a=b", "λ"])
def test_run_names_stay_text(tmp_path: Path, name: str) -> None:
    assert load_config([f"BasicSettings.n={name}"]).BasicSettings.n == name
    saved = tmp_path / "saved.yaml"
    saved.write_text(config_to_yaml(load_text(tmp_path, f"BasicSettings:\n  n: '{name}'\n")))
    assert load_saved_config(saved).BasicSettings.n == name


def test_a_number_in_a_file_is_no_text(tmp_path: Path) -> None:
    assert "BasicSettings.n=7: must be plain text" in complaint_about(tmp_path, "BasicSettings: {n: 007}")


def test_lists_and_mappings(tmp_path: Path) -> None:
    arguments = {"mode": 2, "empty": "", "name": "1", "deep": {"list": [1.5, True, None]}}
    text = "{mode: 2, empty: '', name: '1', deep: {list: [1.5, true, null]}}"
    from_file = load_text(tmp_path, f"Environment: {{Arguments: {text}}}\nBasicSettings: {{Loggers: [a, b]}}")
    typed = load_config([f"Environment.Arguments={text}", "BasicSettings.Loggers=a, b"])
    for config in (from_file, typed):
        assert (config.Environment.Arguments, config.BasicSettings.Loggers) == (arguments, ["a", "b"])
        saved = tmp_path / "saved.yaml"
        saved.write_text(config_to_yaml(config))
        assert load_saved_config(saved) == config
    assert load_text(tmp_path, "BasicSettings: {Loggers: 'a,b'}").BasicSettings.Loggers == ["a", "b"]
    emptied = load_config(["Environment.Arguments={}", "BasicSettings.Loggers=null"])
    assert (emptied.Environment.Arguments, emptied.BasicSettings.Loggers) == ({}, [])
    Config().BasicSettings.Loggers.append("x")
    assert Config().BasicSettings.Loggers == ["tensorboard", "jsonl"]


@dataclasses.dataclass
class MyPrior:
    Width: int = fixed(64, "hidden width", WIDTH)
    Plain: float = 0.5


def test_a_model_of_ones_own_brings_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Config()
    monkeypatch.setattr(schema_module, "ModelsConfig", schema_module.ModelsConfig)  # so that it is undone
    register_section("Models.MyPrior", MyPrior)
    try:
        config = load_text(tmp_path, "Models: {MyPrior: {Width: 32}}", "Models.MyPrior.Plain=1e-3")
        assert (config.Models.MyPrior.Width, config.Models.MyPrior.Plain) == (32, 1e-3)
        assert "[1, 65_536]" in complaint_about_overrides("Models.MyPrior.Width=0")
        assert "did you mean 'Models.MyPrior.Width'" in complaint_about_overrides("Models.MyPrior.Widht=1")
        saved = tmp_path / "saved.yaml"
        saved.write_text(config_to_yaml(config))
        assert load_saved_config(saved) == config == pickle.loads(pickle.dumps(config))
        assert ("Models.MyPrior.Width", 64, 32) in differences(Config(), config)
        assert "Models.MyPrior.Width=64  (a whole number in [1, 65_536])" in config_help()
        with pytest.raises(ValueError, match=r"Models\.MyPrior"):
            register_section("Models.MyPrior", MyPrior)
    finally:
        schema.cache_clear()
    assert not hasattr(before.Models, "MyPrior")


@pytest.mark.parametrize("text", ["null", "None", "~"])
def test_null_unsets_a_key_that_may_be_unset(text: str) -> None:
    settings = load_config([f"BasicSettings.n={text}", f"BasicSettings.pretrained_path={text}"]).BasicSettings
    assert (settings.n, settings.pretrained_path) == ("Boxing-STORM-seed_0", None)
    assert "BasicSettings.Seed" in complaint_about_overrides(f"BasicSettings.Seed={text}")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ("ALE/KungFuMaster-v5", "KungFuMaster-STORM-seed_0"),
        ("CarRacing-v3", "CarRacing-v3-STORM-seed_0"),
        ("my/Strange Id:x-v0", "my_Strange_Id_x-v0-STORM-seed_0"),
        ("../../etc", "_etc-STORM-seed_0"),
    ],
)
def test_unset_run_names(environment: str, name: str) -> None:
    assert load_config([f"BasicSettings.env_name={environment}"]).BasicSettings.n == name


def test_a_name_is_taken_literally_unless_a_file_names_a_kind_of_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = "BasicSettings.n=first-experiment"
    text = "BasicSettings: {n: STORM-experiment}"
    assert load_text(tmp_path, text, given).BasicSettings.n == "first-experiment"
    assert load_text(tmp_path, text).BasicSettings.n == "Boxing-custom-seed_0"
    assert "custom.yaml: BasicSettings.n=STORM-experiment names no single run" in caplog.text
    saved = tmp_path / "saved.yaml"
    saved.write_text(config_to_yaml(load_config([given])))
    assert load_saved_config(saved).BasicSettings.n == "first-experiment"
    assert apply_overrides(load_config([]), [given]).BasicSettings.n == "first-experiment"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("BasicSettings: {trajectory_path: ~/demo.npz}")
    settings = load_config(["BasicSettings.config_path=~/mine.yaml", "BasicSettings.pretrained_path=~/a"])
    assert settings.BasicSettings.trajectory_path == str(tmp_path / "demo.npz")
    assert settings.BasicSettings.pretrained_path == str(tmp_path / "a")
    assert settings.BasicSettings.config_path == str(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["STORM-tiny", "config_files/STORM-tiny.yaml"])
def test_a_config_of_the_repository_is_recorded_alike_however_it_is_named(text: str) -> None:
    for given in (text, str(REPOSITORY / "config_files" / "STORM-tiny.yaml")):
        config = load_config([f"BasicSettings.config_path={given}"])
        assert config.BasicSettings.config_path == "config_files/STORM-tiny.yaml"


# --- help, saving, resuming


def test_help_lists_every_key_with_default_allowed_values_meaning_and_symbol() -> None:
    text = config_help()
    for name, key in schema().items():
        line = f"{'*' if key.may_change else ' '} {name}={key.shown_default}  ({key.expected})"
        assert f"{line}\n      {key.meaning}" in text
        assert not key.symbol or f"{key.meaning}  [{key.symbol}]" in text
    assert max(map(len, text.splitlines())) <= 110


def test_every_default_is_allowed_and_every_number_has_a_range() -> None:
    for name, key in schema().items():
        assert key.meaning and key.read(key.default) == key.default, name
        assert key.allowed is not None or key.type not in (int, float), name
        given = key.read(key.shown_default) if key.type is not list or key.default else []
        assert given == key.default, name


def test_no_range_claims_an_infinite_end() -> None:
    ranges = {name: key.allowed for name, key in schema().items() if isinstance(key.allowed, Range)}
    claimed = {name: str(each) for name, each in ranges.items() if re.search(r"\[-inf|inf\]", str(each))}
    assert ranges and not claimed  # infinity is never accepted


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_a_saved_configuration_is_read_back_unchanged(tmp_path: Path, path: Path) -> None:
    config = load_config([f"BasicSettings.config_path={path}", "BasicSettings.n=null-ish: #1 'x'"])
    saved = tmp_path / "config.yaml"
    saved.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_saved_config(saved) == config


def test_a_saved_configuration_must_be_whole_and_known(tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    text = config_to_yaml(load_config([]))
    for broken in (text[: len(text) // 2], text.replace("Gamma:", "Gama:"), text + "hydra: {a: 1}\n"):
        saved.write_text(broken)
        with pytest.raises(UserError, match=r"config\.yaml"):
            load_saved_config(saved)
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_saved_config(tmp_path / "missing" / "config.yaml")


def test_apply_overrides_returns_a_checked_copy() -> None:
    config = load_config([])
    changed = apply_overrides(config, ["BasicSettings.Seed=5"])
    assert differences(config, changed) == [("BasicSettings.Seed", 0, 5)]
    assert config == load_config([])
    with pytest.raises(UserError, match="BatchLength"):
        apply_overrides(config, ["JointTrainAgent.BatchLength=65"])


def test_what_shapes_a_run_stays_when_it_is_resumed() -> None:
    kept = {name for name, key in schema().items() if not key.may_change}
    shaping = {"Seed", "env_name", "ReleaseQuirks", "ImageSize"}
    assert kept >= {f"BasicSettings.{name}" for name in shaping}
    assert kept >= {name for name in schema() if name.startswith("Models.")}
    assert kept >= {"JointTrainAgent.ModelType", "JointTrainAgent.BatchLength", "Environment.ClipRewards"}
    assert "Environment.Arguments" in kept and "JointTrainAgent.SampleMaxSteps" not in kept
