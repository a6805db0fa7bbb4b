"""What users may write in YAML files and on the command line, where a value comes from, and what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_texts import (
    ORIGINAL_STORM_YAML,
    RELEASE_YAML,
    complaint_about,
    complaint_about_overrides,
    load_text,
)

from configuration import loading as configuration
from configuration.checks import CHOICES, PATTERNS, RANGES
from configuration.loading import (
    apply_overrides,
    config_help,
    config_to_yaml,
    differences,
    load_config,
    load_saved_config,
)
from configuration.schema import Config
from utils import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
YAML_FILES = sorted((REPOSITORY / "config_files").glob("*.yaml"))

# --- the files that come with the repository


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_every_yaml_of_the_repository_loads_and_names_its_runs(path: Path) -> None:
    config = load_config([f"BasicSettings.config_path=config_files/{path.name}", "BasicSettings.Seed=3"])
    game = "Diagnostic_Catch-v0" if path.stem.endswith("-catch") else "Boxing"
    assert config.BasicSettings.n == f"{game}-{path.stem}-seed_3"
    assert config.JointTrainAgent.ModelType == path.stem.split("-")[0]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_acting_is_at_a_position_that_imagination_visits(path: Path) -> None:
    task = load_config([f"BasicSettings.config_path=config_files/{path.name}"]).JointTrainAgent
    imagined = task.ImagineContextLength + task.ImagineBatchLength
    assert task.ImagineContextLength <= task.ActingContextLength <= imagined


def test_storm_yaml_states_the_schema_defaults() -> None:
    changed = {key for key, *_ in differences(load_config([]), Config())}
    assert changed == {"BasicSettings.n", "Models.MaskGit.VocabSize"}


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
    hydra = [record.getMessage() for record in caplog.records if "hydra" in record.getMessage()]
    assert len(hydra) == 1
    assert config.BasicSettings.pretrained_path is None
    assert config.BasicSettings.n == "Boxing-custom-seed_0"
    assert config.BasicSettings.config_path == str(tmp_path / "custom.yaml")
    assert config.Models.Agent.EntropyCoef == 3e-4
    assert (config.JointTrainAgent.ModelType, config.JointTrainAgent.BatchLength) == ("GITSTORM", 4)
    assert any("JointTrainAgent.BatchLength=4" in record.getMessage() for record in caplog.records)


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


@pytest.mark.parametrize("name", ["1e5", "007", "true", "2024-01-01", "0x10", "my run", "a=b", "λ"])
def test_run_names_stay_text(tmp_path: Path, name: str) -> None:
    assert load_config([f"BasicSettings.n={name}"]).BasicSettings.n == name
    saved = tmp_path / "saved.yaml"
    saved.write_text(config_to_yaml(load_text(tmp_path, f"BasicSettings:\n  n: {name}\n")))
    assert load_saved_config(saved).BasicSettings.n == name


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
@pytest.mark.parametrize("given_name", [None, "STORM-experiment"])
def test_unset_run_names(environment: str, name: str, given_name: str | None) -> None:
    overrides = [f"BasicSettings.env_name={environment}"]
    overrides += [f"BasicSettings.n={given_name}"] if given_name else []
    assert load_config(overrides).BasicSettings.n == name


# --- help, saving, resuming


def test_help_lists_every_key_with_default_type_meaning_and_symbol() -> None:
    text = config_help()
    for name, key in configuration.schema().items():
        default = "null" if key.default is None else key.default
        assert f"  {name}={default}  ({key.type_name})\n      {key.meaning}" in text
        assert not key.symbol or f"{key.meaning}  [{key.symbol}]" in text
    assert max(map(len, text.splitlines())) <= 110


def test_every_key_has_a_meaning_and_every_number_a_range() -> None:
    free_text = {"n", "config_path", "env_name", "trajectory_path", "pretrained_path"}
    free = {f"BasicSettings.{name}" for name in free_text}
    for name, key in configuration.schema().items():
        assert key.meaning
        if key.type in (int, float):
            assert name in RANGES and (key.default is None or key.default in RANGES[name])
        if key.type is str:
            assert (name in free) + (name in CHOICES) + (name in PATTERNS) == 1


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


def test_what_may_change_when_a_run_is_resumed() -> None:
    keys = set(configuration.schema())
    assert keys > configuration.RESUME_MAY_CHANGE
    shapes_of_the_run = {key for key in keys if key.startswith("Models.")} | {
        "BasicSettings.Seed",
        "BasicSettings.env_name",
        "BasicSettings.ReleaseQuirks",
        "Environment.StickyActions",
        "JointTrainAgent.ModelType",
        "JointTrainAgent.BatchLength",
        "JointTrainAgent.BufferMaxLength",
    }
    assert not shapes_of_the_run & configuration.RESUME_MAY_CHANGE
