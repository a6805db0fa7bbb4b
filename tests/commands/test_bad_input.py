"""What train.py and eval.py say to wrong commands and broken or hostile files: one line, exit code 2."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import GIT_STORM, REPOSITORY, SMALL, Result, evaluate, train

from run_files.states import StateStore

SHORT = "JointTrainAgent.SampleMaxSteps=44"
LONGER = "JointTrainAgent.SampleMaxSteps=47"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run "good" and a second one, "other", of another model size."""
    folder = tmp_path_factory.mktemp("bad input")
    save = "JointTrainAgent.SaveEverySteps=42"
    assert train(folder, "good", SHORT, save).code == 0
    assert train(folder, "other", "JointTrainAgent.SampleMaxSteps=5", "Models.Agent.HiddenDim=24").code == 0
    return folder


def digest(folder: Path) -> str:
    """Of all names and contents below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(autouse=True)
def _the_good_run_stays_as_it_is(good: Path) -> Iterator[None]:
    before = digest(good / "outputs" / "good")
    yield
    assert digest(good / "outputs" / "good") == before


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of the two runs that a test may damage."""
    shutil.copytree(good, tmp_path / "copy")
    return tmp_path / "copy"


def assert_refused(result: Result, *words: str) -> None:
    assert result.code == 2, (result.out, result.err)
    assert all(word in result.error for word in words), result.error
    assert len(result.error) < 1_500


# --- train.py: settings


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("BasicSettings.env_name=ALE/Boxng-v5", ["'ALE/Boxng-v5'", "did you mean 'ALE/Boxing-v5'"]),
        ("BasicSettings.env_name=stub_envs:StubUnbounded-v0", ["stub_envs:StubUnbounded-v0", "Discrete"]),
        ("BasicSettings.env_name=no.such.module:Thing-v0", ["no.such.module"]),
        ("BasicSettings.config_path=config_files/GITSTROM.yaml", ["GITSTROM", "did you mean 'GITSTORM'"]),
        ("BasicSettings.config_path=.", ["config_path"]),
        ("BasicSettings.config_path=/dev/zero", ["/dev/zero"]),
        ("BasicSettings.Sede=1", ["did you mean 'BasicSettings.Seed'"]),
        ("BasicSettings.Seed=one", ["'one'", "whole number"]),
        ("BasicSettings.Seed", ["Section.Key=value"]),
        ("BasicSettings.n=../x", ["'../x'"]),
        ("BasicSettings.n=/tmp/x", ["'/tmp/x'"]),
        ("BasicSettings.n=" + 300 * "x", ["at most 200 bytes"]),
        ("BasicSettings.n=eval_result", ["eval_result"]),
        ("BasicSettings.ImageSize=4096", ["in [16, 1_024]"]),
        ("BasicSettings.ImageSize=48", ["4·2^n"]),
        ("JointTrainAgent.NumEnvs=10000", ["in [1, 1_024]"]),
        ("JointTrainAgent.BatchSize=1000000000", ["JointTrainAgent.BatchSize"]),
        ("JointTrainAgent.BufferMaxLength=1000000000000", ["BufferMaxLength", "GB", "free"]),
        ("JointTrainAgent.BufferWarmUp=1", ["BufferWarmUp", "window"]),
        ("JointTrainAgent.SampleMaxSteps=0", ["SampleMaxSteps"]),
        ("JointTrainAgent.UseDemonstration=true", ["trajectory_path"]),
        ("BasicSettings.device=cuda:99", ["cuda:99"]),
        ("BasicSettings.pretrained_path=nowhere", ["no run 'nowhere'"]),
        ("BasicSettings.pretrained_path=.", ["no run or checkpoint in"]),
        ("BasicSettings.pretrained_path=/dev/zero", ["regular file"]),
        ("BasicSettings.pretrained_path=outputs/other", ["agent_5.pth", "shape"]),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    good: Path, override: str, words: list[str]
) -> None:
    assert_refused(train(good, "new", override), *words)
    assert not (good / "outputs" / "new").exists() and not (good / "runs" / "new").exists()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_card_that_is_not_there(good: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    monkeypatch.setattr(
        torch, "get_num_threads", lambda: threads
    )  # with several, their number is chosen first
    config = (good / "outputs" / "good" / "config.yaml").read_text()
    automatic = config.replace("NumThreads: 1", "NumThreads: 0")
    (good / "outputs" / "good" / "config.yaml").write_text(automatic)
    for option in ("BasicSettings.NumThreads=0", "BasicSettings.NumThreads=1"):
        assert_refused(train(good, "new", "BasicSettings.device=cuda:9", option), "device=cuda:9", "CUDA")
    for options in ([], ["-world_model"]):
        result = evaluate(good, "-run_name=good", "-device=cuda:9", *options)
        assert_refused(result, "-device=cuda:9", "CUDA")
        assert "BasicSettings" not in result.error
    (good / "outputs" / "good" / "config.yaml").write_text(config)


def test_more_than_the_memory_holds_is_said_when_it_is_asked_for(good: Path) -> None:
    batch = [
        "JointTrainAgent.BatchSize=1048576",
        "JointTrainAgent.BatchLength=64",
        "BasicSettings.ImageSize=64",
    ]
    warm_up = ["JointTrainAgent.BufferWarmUp=64", "Models.WorldModel.TransformerMaxLength=64"]
    assert_refused(train(good, "huge", *batch, *warm_up), "not enough memory", "JointTrainAgent.BatchSize")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\xff\xfe",
        b"- a list",
        b"BasicSettings: [",
        b"BasicSettings: {Seed: !!python/object/apply:os.system ['touch owned']}",
        b"a: &a [*a]",
        b"JointTrainAgent: {BatchSize: 3, BatchSize: 4}",
        b"base: ../../etc/passwd",
        b"base: custom.yaml",
        b"{" * 10_000,
        b"#" * 100_000,
    ],
)
def test_a_broken_config_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "custom.yaml").write_bytes(content)
    assert_refused(train(tmp_path, "new", "BasicSettings.config_path=custom.yaml"), "custom.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["custom.yaml"]


# --- places that cannot be written or read


@pytest.mark.parametrize("blocked", ["outputs", "runs", "outputs/new", "runs/new", "outputs/new/state"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, blocked: str) -> None:
    path = tmp_path / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    assert_refused(train(tmp_path, "new", SHORT), blocked)
    assert path.read_text() == "in the way"


def test_a_read_only_place_is_named() -> None:
    if not Path("/proc/version").exists():
        pytest.skip("no /proc here")
    assert_refused(train(Path("/proc"), "new", SHORT), "outputs")


def test_results_that_cannot_be_written_are_said_before_evaluating(folder: Path) -> None:
    shutil.rmtree(folder / "outputs" / "eval_result", ignore_errors=True)
    (folder / "outputs" / "eval_result").write_text("in the way")
    result = evaluate(folder, "-run_name=good")
    assert_refused(result, "eval_result")
    assert result.out == ""


# --- runs that cannot be continued


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("JointTrainAgent.NumEnvs=3", ["JointTrainAgent.NumEnvs was 1, now 3"]),
        (GIT_STORM, ["JointTrainAgent.ModelType was STORM, now GITSTORM"]),
        ("Models.Agent.HiddenDim=24", ["Models.Agent.HiddenDim was 16, now 24", "Restart=True"]),
        ("BasicSettings.Seed=1", ["BasicSettings.Seed was 0, now 1"]),
    ],
)
def test_another_model_or_other_data_are_refused_key_by_key(
    good: Path, override: str, words: list[str]
) -> None:
    assert_refused(train(good, "good", LONGER, override), *words)


@pytest.mark.parametrize("content", [None, b"", b"\0\xff", b"JointTrainAgent: {}\n", b"x: 1\n...\n"])
def test_a_damaged_saved_config_is_named(folder: Path, content: bytes | None) -> None:
    path = folder / "outputs" / "good" / "config.yaml"
    path.unlink() if content is None else path.write_bytes(content)
    assert_refused(train(folder, "good", LONGER), "config.yaml", "Restart=True")
    result = evaluate(folder, "-run_name=good")
    assert_refused(result, "config")


def damage_states(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    for path in (folder / "outputs" / "good" / "state").glob("state_*"):
        path.write_bytes(damage(path.read_bytes()))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: b"", lambda data: data[:5_000] + b"!" + data[5_001:]]
)
def test_broken_states_are_all_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    damage_states(folder, damage)
    assert_refused(train(folder, "good", LONGER), "state_", "Restart=True")


def test_checkpoints_without_a_state_are_not_overwritten(folder: Path) -> None:
    shutil.rmtree(folder / "outputs" / "good" / "state")
    before = digest(folder / "outputs" / "good")
    assert_refused(train(folder, "good", LONGER), "no state to continue from")
    assert digest(folder / "outputs" / "good") == before


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all entries of nested dicts and lists."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in entries:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of the state with one entry replaced, or deleted (`KeyError`)."""
    state = copy.deepcopy(state)
    owner = state
    for key in path[:-1]:
        owner = owner[key]
    if value is KeyError:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    return state


@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_states_of_another_form_are_refused_or_used_but_never_crash(folder: Path, count: int) -> None:
    store = StateStore(folder / "outputs" / "good" / "state")
    state = store.load().state
    rows = EmptyRows()
    every = [path for path in places(state) if path[0] != "learner" or len(path) < 4]
    random = np.random.default_rng(0)
    wrong = [KeyError, None, -1, "x", [], {}, torch.zeros(3), float("nan")]
    top = [(name,) for name in state]
    chosen = [(path, KeyError) for path in top] + [
        (every[random.integers(len(every))], wrong[random.integers(len(wrong))]) for _ in range(count)
    ]
    codes = []
    for path, value in chosen:
        shutil.rmtree(folder / "outputs" / "good" / "state")
        StateStore(folder / "outputs" / "good" / "state").save(44, mutate(state, path, value), rows)
        result = train(folder, "good", LONGER, "JointTrainAgent.BufferWarmUp=40")
        assert result.code in (0, 2), (path, value)
        codes.append(result.code)
    assert codes[: len(top)] == [2] * len(top)  # nothing of a state may be missing


class EmptyRows:
    """A replay memory that never held anything."""

    count = oldest = 0

    def export_rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {}


# --- untrusted files


class Hostile:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def hostile_files(folder: Path) -> dict[str, Path]:
    """One file of each kind that would touch `folder`/owned."""
    hostile = Hostile(folder / "owned")
    files = {
        name: folder / name for name in ("raw.pkl", "torch.pth", "legacy.pth", "object.npz", "nested.pkl")
    }
    files["raw.pkl"].write_bytes(pickle.dumps(hostile))
    torch.save({"encoder.weight": hostile}, files["torch.pth"])
    torch.save({"encoder.weight": hostile}, files["legacy.pth"], _use_new_zipfile_serialization=False)
    np.savez(files["object.npz"], obs=np.array([hostile], dtype=object))
    files["nested.pkl"].write_bytes(pickle.dumps({"obs": np.array([hostile], dtype=object)}))
    return files


def test_hostile_files_run_nothing(good: Path, tmp_path: Path) -> None:
    demonstration = "JointTrainAgent.UseDemonstration=true"
    for file in hostile_files(tmp_path).values():
        assert_refused(train(good, "new", f"BasicSettings.pretrained_path={file}"), file.name)
        assert_refused(train(good, "new", demonstration, f"BasicSettings.trajectory_path={file}"), file.name)
        checkpoints = tmp_path / f"{file.stem} checkpoints"
        checkpoints.mkdir()
        for model in ("world_model", "agent"):
            shutil.copy(file, checkpoints / f"{model}_1.pth")
        assert_refused(evaluate(good, "-run_name=good", f"-ckpt_dir={checkpoints}"), "world_model_1.pth")
    assert not (tmp_path / "owned").exists()
    pickle.loads((tmp_path / "raw.pkl").read_bytes())
    assert (tmp_path / "owned").exists()  # they are hostile


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def announcing(shape: tuple[int, ...]) -> bytes:
    """An .npz whose obs claims that shape and holds nothing."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("obs.npy", header.getvalue())
    return buffer.getvalue()


OBS, ACTION = np.zeros((20, 16, 16, 3), np.uint8), np.zeros(20, np.int64)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "does not exist"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 and no more", "cannot be read"),
        (announcing((10**6, 10**6)), "allocate"),
        (npz(obs=OBS), "'action'"),
        (npz(obs=OBS[:, :8], action=ACTION, reward=ACTION, done=ACTION), "'obs'"),
        (npz(obs=OBS, action=ACTION + 99, reward=ACTION, done=ACTION), "'action'"),
        (npz(obs=OBS, action=ACTION[:5], reward=ACTION, done=ACTION), "'action'"),
        (npz(obs=OBS, action=ACTION, reward=ACTION + np.nan, done=ACTION), "'reward'"),
        (npz(obs=OBS[:3], action=ACTION[:3], reward=ACTION[:3], done=ACTION[:3]), "3 steps"),
    ],
    # Not the bytes themselves: an archive holds the time it was made, and test processes compare ids.
    ids=("missing", "empty", "broken", "too large", "no action", "flat", "other", "uneven", "NaN", "short"),
)
def test_a_broken_trajectory_is_named(tmp_path: Path, content: bytes | None, word: str) -> None:
    if content is not None:
        (tmp_path / "demo.npz").write_bytes(content)
    settings = ["JointTrainAgent.UseDemonstration=true", "BasicSettings.trajectory_path=demo.npz"]
    assert_refused(train(tmp_path, "new", *settings), "demo.npz", word)


# --- eval.py


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["run_name"]),
        (["-run_nme=good"], ["-run_nme", "did you mean '-run_name'"]),
        (["-run_name=godo"], ["'godo'", "did you mean 'good'"]),
        (["-run_name=../good"], ["'../good'"]),
        (["-run_name="], ["run name"]),
        (["-run_name=good", "-checkpoints=some"], ["'some'", "all, last or a step"]),
        (["-run_name=good", "-checkpoints=45"], ["45", "nearest", "44"]),
        (["-run_name=good", "-checkpoints=" + 5_000 * "9"], ["-checkpoints"]),
        (["-run_name=good", "-checkpoints=-1"], ["-1"]),
        (["-run_name=good", "-num_episodes=0"], ["-num_episodes=0: must be a whole number in [1, "]),
        (["-run_name=good", "-num_episodes=-1"], ["-num_episodes=-1"]),
        (["-run_name=good", "-num_episodes", "abc"], ["num_episodes", "abc"]),
        (["-run_name=good", "-num_envs=0"], ["-num_envs=0: must be a whole number in [1, "]),
        (["-run_name=good", "-num_envs=99999"], ["-num_envs=99999"]),
        (["-run_name=good", "-seed=x"], ["seed"]),
        (["-run_name=good", "-seed=-1"], ["-seed=-1", "in [0, "]),
        (["-run_name=good", "-protocol=unfair"], ["unfair", "-protocol", "release"]),
        (["-run_name=good", "-device=gpu"], ["-device='gpu'", "cuda:N"]),
        (["-run_name=good", "-ckpt_dir=nowhere"], ["nowhere"]),
        (["-run_name=good", "-ckpt_dir=outputs"], ["no checkpoints"]),
        (["-run_name=good", "-config_path=none.yaml"], ["none.yaml"]),
        (["-run_name=good", "-env_name=ALE/Pong-v5"], ["ALE/Pong-v5"]),
        (["-run_name=good", "-what=1"], ["-what"]),
        (["-run_name=good", "-num_episode=3"], ["-num_episode=3", "did you mean '-num_episodes'"]),
        (
            ["-run_name=good", "Models.Agent.Gamma=0.5"],
            ["Gamma=0.5", "Environment or Evaluation"],
        ),
        (["-run_name=good", "Environment.StickyAction=0"], ["StickyActions"]),
        (["-run_name=good", "more"], ["more"]),
        (["-run_name=new", "-ckpt_dir=outputs/good/ckpt"], ["-config_path", "-env_name"]),
        (["-run_name=good", "-ckpt_dir=outputs/other/ckpt"], ["agent_5.pth", "shape"]),
    ],
)
def test_wrong_options_are_refused(good: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(evaluate(good, *arguments), *words)


def nan_in(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    next(iter(state.values())).fill_(float("nan"))
    torch.save(state, path)


def renamed(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({f"net.{name}": tensor for name, tensor in state.items()}, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.write_bytes(path.read_bytes()[:2_000] + b"!" + path.read_bytes()[2_001:]),
        lambda path: path.write_text("a page that a browser saved"),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"weight": 3}, path),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
        nan_in,
        renamed,
    ],
)
def test_a_broken_checkpoint_is_named(folder: Path, damage: Callable[[Path], Any]) -> None:
    path = folder / "outputs" / "good" / "ckpt" / "world_model_44.pth"
    damage(path)
    assert_refused(evaluate(folder, "-run_name=good", "-checkpoints=last"), "world_model_44.pth")
    assert_refused(train(folder, "new", f"BasicSettings.pretrained_path={path}"), "world_model_44.pth")


def test_an_earlier_table_that_is_none_is_not_overwritten(folder: Path) -> None:
    path = folder / "outputs" / "eval_result" / "good.csv"
    path.parent.mkdir(exist_ok=True)
    for content in (b"", b"my,own,table\n1,2,3\n", b"\xff\xfe\0", b"step,episode_avg_return\nx,y\n"):
        path.write_bytes(content)
        assert_refused(evaluate(folder, "-run_name=good", "-checkpoints=last"), "good.csv")
        assert path.read_bytes() == content


# --- as processes


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train.py", *SMALL, "BasicSettings.env_name=ALE/Pongg-v5"], "did you mean 'ALE/Pong-v5'"),
        (["eval.py", "-run_name=good", "-checkpoints=7"], "nearest of 2 saved steps is 42"),
        (["eval.py", "-run_name=\x1b[31m\nred"], "run name"),
    ],
)
def test_a_process_ends_with_one_line_and_exit_code_2(good: Path, command: list[str], words: str) -> None:
    script, *arguments = command
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / script), *arguments],
        cwd=good,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2 and words in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert "\x1b" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_under_the_output_is_said(good: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, str(REPOSITORY / "train.py"), "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: cannot write the output")


def test_status_files_that_are_damaged_do_not_matter(folder: Path) -> None:
    (folder / "outputs" / "good" / "run.json").write_text("{")
    assert train(folder, "good", LONGER).code == 0
    assert json.loads((folder / "outputs" / "good" / "run.json").read_text())["finished_step"] == 47
