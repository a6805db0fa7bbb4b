"""What users are told about a wrong or hostile configuration: one line, whatever the input."""

from __future__ import annotations

import dataclasses
import logging
import time
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from config_texts import complaint_about, complaint_about_overrides
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configuration.checks import check_run_name
from configuration.loading import load_config
from configuration.schema import Config, schema
from utils import UserError

REPOSITORY = Path(__file__).resolve().parents[2]

# --- complaints: one line that names the key, the value and what would be right


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("JointTrainAgent", ["'JointTrainAgent'", "Section.Key=value"]),
        ("--silent", ["'--silent'", "Section.Key=value", "BasicSettings.silent"]),
        ("-n", ["'-n'", "did you mean 'BasicSettings.n'"]),  # the original STORM's options
        ("-seed=0", ["'-seed'", "did you mean 'BasicSettings.Seed'"]),
        ("-env_name=ALE/Pong-v5", ["'-env_name'", "did you mean 'BasicSettings.env_name'"]),
        ("SampleMaxSteps=5", ["'SampleMaxSteps'", "JointTrainAgent.SampleMaxSteps"]),
        ("JointTrainAgent.Gamma=0.9", ["did you mean 'Models.Agent.Gamma'"]),
        ("JointTrainAgent.SampleMaxStep=5", ["did you mean 'JointTrainAgent.SampleMaxSteps'"]),
        ("Models.WorldModl.Dropout=0", ["did you mean 'Models.WorldModel.Dropout'"]),
        ("Models.Agent=3", ["Models.Agent is a section"]),
        ("JointTrainAgent.BatchSize=many", ["JointTrainAgent.BatchSize='many'", "whole number"]),
        ("JointTrainAgent.BatchSize=1.5", ["JointTrainAgent.BatchSize='1.5'", "whole number"]),
        ("JointTrainAgent.BatchSize=", ["JointTrainAgent.BatchSize=''", "whole number"]),
        ("JointTrainAgent.BatchSize=0", ["JointTrainAgent.BatchSize='0'", "in [1, 1_048_576]"]),
        ("JointTrainAgent.BatchSize=1e99", ["JointTrainAgent.BatchSize=", "in [1, 1_048_576]"]),
        ("Models.Agent.Gamma=1.01", ["Models.Agent.Gamma='1.01'", "a number in [0, 1]"]),
        ("Models.Agent.Gamma=nan", ["Models.Agent.Gamma='nan'", "a number"]),
        ("Models.Agent.LearningRate=inf", ["Models.Agent.LearningRate='inf'", "a number"]),
        ("Models.Agent.AdamEps=0", ["Models.Agent.AdamEps='0'", "in (0, inf)"]),
        ("Models.WorldModel.Dropout=1", ["Models.WorldModel.Dropout='1'", "in [0, 1)"]),
        ("BasicSettings.silent=perhaps", ["BasicSettings.silent='perhaps'", "true or false"]),
        ("BasicSettings.device=gpu", ["BasicSettings.device='gpu'", "cuda:N"]),
        ("BasicSettings.Precision=half", ["BasicSettings.Precision='half'", "bfloat16"]),
        ("BasicSettings.Compile=sometimes", ["BasicSettings.Compile='sometimes'", "auto or never or always"]),
        ("JointTrainAgent.ModelType=gitstorm", ["'gitstorm'", "did you mean 'GITSTORM'"]),
        ("Models.MaskGit.MaskSchedule=pow", ["'pow'", "pow<d>"]),
        ("Models.MaskGit.MaskSchedule=pow0", ["'pow0'", "pow<d>"]),
        ("Models.MaskGit.MaskSchedule=pow0.5.5", ["'pow0.5.5'", "pow<d>"]),
        ("Task=Other", ["Task='Other'", "JointTrainAgent"]),
        ("BasicSettings.n=${oc.env:HOME}", ["BasicSettings.n='${oc.env:HOME}'", "plain text"]),
        ("BasicSettings.env_name=", ["BasicSettings.env_name=''", "plain text"]),
        ("BasicSettings.Loggers=a,,b", ["BasicSettings.Loggers='a,,b'", "a list, as a,b"]),
        ("Environment.Arguments=fast", ["Environment.Arguments='fast'", "a mapping, as {name: value}"]),
        ("Environment.Arguments={a: 1, a: 2}", ["Environment.Arguments='{a: 1, a: 2}'", "a mapping"]),
        ("Environment.Arguments={a", ["Environment.Arguments='{a'", "a mapping"]),
        ("Environment.Arguments={a: '${oc.env:HOME}'}", ["Environment.Arguments=", "a mapping"]),
        ("Environment.Arguments={a: [{b: '${c}'}]}", ["Environment.Arguments=", "a mapping"]),
        ("Environment.Arguments={a: '???'}", ["Environment.Arguments=", "a mapping"]),
        ("Environment.Arguments={a: 2020-01-01}", ["Environment.Arguments=", "a mapping"]),
        ("Environment.Arguments={a: !!set {b}}", ["Environment.Arguments=", "a mapping"]),
        ("Environment.Arguments={1.5: a}", ["Environment.Arguments=", "a mapping"]),
        ("Environment.Arguments={null: a}", ["Environment.Arguments=", "a mapping"]),
        ("BasicSettings.config_path=STORM-tny", ["'STORM-tny'", "did you mean 'STORM-tiny'"]),
        ("BasicSettings.config_path=" + "x" * 900, ["BasicSettings.config_path", "no such file"]),
        ("BasicSettings.config_path=/", ["BasicSettings.config_path='/'", "no such file"]),
        ("BasicSettings.config_path=/dev/zero", ["BasicSettings.config_path='/dev/zero'", "no such file"]),
    ],
)
def test_what_is_wrong_with_an_override(override: str, words: list[str]) -> None:
    complaint = complaint_about_overrides(override)
    assert all(word in complaint for word in words), complaint
    assert "\n" not in complaint and len(complaint) < 400


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["BasicSettings.ImageSize=65"], ["BasicSettings.ImageSize=65", "4·2^n"]),
        (["BasicSettings.ImageSize=8"], ["BasicSettings.ImageSize='8'"]),
        (["Models.WorldModel.TransformerNumHeads=7"], ["TransformerNumHeads=7", "TransformerHiddenDim=512"]),
        (["Models.MaskGit.TmfArgs.NumHeads=7"], ["TmfArgs.NumHeads=7", "EmbedDim=128"]),
        (["Models.MaskGit.T_draft=33"], ["T_draft=33", "NumLatents=32"]),
        (["Models.MaskGit.T_revise=0"], ["T_revise='0'"]),
        (["Models.MaskGit.M=-1"], ["M='-1'"]),
        (["JointTrainAgent.ModelType=GITSTORM", "Models.WorldModel.NumLatents=24"], ["NumLatents=24", "512"]),
        (["Models.Agent.ReturnPercentileLow=0.95"], ["ReturnPercentileLow=0.95", "0.95"]),
        (["Models.Agent.MinStd=1.5"], ["MinStd=1.5", "MaxStd=1.0"]),
        (["JointTrainAgent.BatchLength=65"], ["BatchLength=65", "TransformerMaxLength=64"]),
        (["JointTrainAgent.ActingContextLength=65"], ["ActingContextLength=65", "TransformerMaxLength=64"]),
        (["JointTrainAgent.ImagineBatchLength=57"], ["ImagineBatchLength=57", "TransformerMaxLength=64"]),
        (["JointTrainAgent.BufferWarmUp=100001"], ["BufferWarmUp=100001", "100000"]),
        (
            ["JointTrainAgent.BufferMaxLength=1024", "JointTrainAgent.NumEnvs=3"],
            ["BufferWarmUp=1024", "1023", "NumEnvs=3"],
        ),
        (["JointTrainAgent.BufferWarmUp=63"], ["BufferWarmUp=63", "64"]),
        (["JointTrainAgent.NumEnvs=17"], ["BufferWarmUp=1024", "1088", "NumEnvs=17"]),
        (["JointTrainAgent.UseDemonstration=true"], ["UseDemonstration", "trajectory_path"]),
        (["Environment.MaxEpisodeFrames=3"], ["MaxEpisodeFrames=3", "FrameSkip=4"]),
    ],
)
def test_settings_that_cannot_go_together(overrides: list[str], words: list[str]) -> None:
    complaint = complaint_about_overrides(*overrides)
    assert all(word in complaint for word in words), complaint


def test_settings_at_the_edge_are_accepted() -> None:
    for settings_together in (
        {"JointTrainAgent.NumEnvs": 16, "JointTrainAgent.ImagineBatchLength": 56},
        {"Models.MaskGit.T_draft": 32, "Models.MaskGit.T_revise": 1, "Models.MaskGit.M": 0},
        {"Models.Agent.MinStd": 0.5, "Models.Agent.MaxStd": 0.5},
        {"BasicSettings.ImageSize": 16, "Models.Agent.Gamma": 1, "Models.MaskGit.MaskSchedule": "pow0.5"},
        {"Models.WorldModel.TransformerHiddenDim": 33, "Models.WorldModel.TransformerNumHeads": 3},
    ):
        config = load_config([f"{key}={value}" for key, value in settings_together.items()])
        assert all(attrgetter(key)(config) == value for key, value in settings_together.items())


@pytest.mark.parametrize(
    "name",
    ["a/b", "..", "../up", "a..b", "", " ", "a\nb", "a\x00b", "x" * 201, "é" * 101, ".hidden", "-n", "a\\b"],
)
def test_run_names_that_could_leave_the_run_directory(name: str) -> None:
    complaint_about_overrides(f"BasicSettings.n={name}")
    with pytest.raises(UserError):
        check_run_name(name)


def test_only_settings_that_are_probably_not_meant_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("STORM", "GITSTORM", "GITSTORM-joint", "STORM-tiny", "GITSTORM-tiny"):
            load_config([f"BasicSettings.config_path=config_files/{name}.yaml"])
        assert not caplog.records
        load_config(["JointTrainAgent.BatchLength=23"])
        assert "JointTrainAgent.BatchLength=23" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Models: {Agnt: {Gamma: 0.9}}", ["custom.yaml", "Models.Agnt", "did you mean 'Models.Agent.Gamma'"]),
        ("Models: {Agent: {Gama: 0.9}}", ["custom.yaml", "Models.Agent.Gama", "'Models.Agent.Gamma'"]),
        ("Models: {Agent: 3}", ["custom.yaml", "Models.Agent", "section"]),
        ("Models: {Agent: {Gamma: [0.9]}}", ["custom.yaml", "Models.Agent.Gamma", "a number"]),
        ("Models: {Agent: {Gamma: {a: 1}}}", ["custom.yaml", "Models.Agent.Gamma", "a number"]),
        ("BasicSettings: {Seed: }", ["custom.yaml", "BasicSettings.Seed=null", "whole number"]),
        ("BasicSettings: {n: a\nTask: b", ["custom.yaml", "not valid YAML", "line"]),
        ("BasicSettings:\n  Seed: 1\n  Seed: 2\n", ["custom.yaml", "line 3", "'Seed'", "twice"]),
        ("- a\n- b\n", ["custom.yaml", "sections"]),
        ("just text", ["custom.yaml", "sections"]),
        ("", ["custom.yaml", "sections"]),
        ("---\nTask: a\n---\nTask: b\n", ["custom.yaml", "not valid YAML"]),
        ("? [a, b]\n: c\n", ["custom.yaml", "key"]),
        (b"\xff\xfe\x00Task", ["custom.yaml", "not a YAML text file"]),
        (b"\x00\x01\x02\x03", ["custom.yaml", "not a YAML text file"]),
        pytest.param(
            "a: 1\n" * 20_000, ["custom.yaml", "not a configuration"], id="a file of something else"
        ),
        ('BasicSettings: {n: "\\ud800"}', ["custom.yaml", "BasicSettings.n"]),
        ('BasicSettings: {n: "\\x1b[31m"}', ["custom.yaml", "BasicSettings.n", "plain text"]),
        ("BasicSettings: {n: '${oc.env:HOME}'}", ["custom.yaml", "BasicSettings.n", "plain text"]),
        ("BasicSettings: {Loggers: [jsonl, 1]}", ["custom.yaml", "BasicSettings.Loggers", "a list, as a,b"]),
        ("BasicSettings: {Loggers: [[jsonl]]}", ["custom.yaml", "BasicSettings.Loggers", "a list, as a,b"]),
        ("Task: !!python/object/apply:os.system ['true']", ["custom.yaml", "line 1", "python/object/apply"]),
        ("More: 1", ["custom.yaml", "unknown key 'More'"]),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    complaint = complaint_about(tmp_path, text)
    assert all(word in complaint for word in words), complaint
    assert complaint.isprintable()


def test_tags_in_a_file_never_run_code(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    complaint_about(tmp_path, f"Task: !!python/object/apply:os.mkdir ['{target}']")
    complaint_about(tmp_path, f"Task: !!python/object/new:os.mkdir {{args: ['{target}']}}")
    assert not target.exists()


def billion_laughs() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [billion_laughs(), "[" * 60_000, "{a: " * 15_000, "x" * 10**7, "&a a: *a", "- " * 30_000, "? " * 30_000],
    ids=["laughs", "lists", "mappings", "large", "self", "dashes", "questions"],
)
def test_files_made_to_exhaust_the_reader_are_refused_at_once(tmp_path: Path, text: str) -> None:
    start = time.perf_counter()
    assert "custom.yaml" in complaint_about(tmp_path, text)
    assert time.perf_counter() - start < 5


# --- anything at all: the outcome is a valid configuration or one clear line

ODD_SCALARS = [
    "",
    "0",
    "-1",
    "1e5",
    "1e999",
    "nan",
    ".inf",
    "null",
    "true",
    "${a}",
    "*a",
    "!!int 3",
    "[]",
    "{",
]
SCALARS = st.one_of(
    st.sampled_from(ODD_SCALARS),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=30),
)
KEYS = st.one_of(st.sampled_from(list(schema())), st.text(max_size=20))


def trees() -> st.SearchStrategy[object]:
    parts = {part for name in schema() for part in name.split(".")}
    keys = st.one_of(st.sampled_from(sorted(parts | {"base", "hydra"})), st.text(max_size=10))
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates())
    nested = st.recursive(
        leaves, lambda inner: st.dictionaries(keys, inner, max_size=4) | st.lists(inner, max_size=3)
    )
    return st.dictionaries(keys, nested, max_size=4)


def is_config_or_complaint(arguments: list[str]) -> None:
    try:
        config = load_config(arguments)
    except UserError as error:
        assert str(error).isprintable()
        return
    assert isinstance(config, Config) and dataclasses.asdict(config)
    check_run_name(config.BasicSettings.n)


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.lists(st.one_of(st.builds("{}={}".format, KEYS, SCALARS), st.text(max_size=40)), max_size=4))
def test_any_override(arguments: list[str]) -> None:
    is_config_or_complaint(arguments)


@FUZZ
@given(tree=trees())
def test_any_yaml_tree(tmp_path: Path, tree: object) -> None:
    path = tmp_path / "tree.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    is_config_or_complaint([f"BasicSettings.config_path={path}"])


@FUZZ
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(data)
    is_config_or_complaint([f"BasicSettings.config_path={path}"])


@FUZZ
@given(place=st.integers(0, 10_000), junk=st.binary(min_size=1, max_size=4))
def test_any_damage_to_a_good_file(tmp_path: Path, place: int, junk: bytes) -> None:
    good = (REPOSITORY / "config_files" / "STORM.yaml").read_bytes()
    place %= len(good)
    path = tmp_path / "damaged.yaml"
    path.write_bytes(good[:place] + junk + good[place + len(junk) :])
    is_config_or_complaint([f"BasicSettings.config_path={path}"])
