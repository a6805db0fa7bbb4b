"""Demonstrations: honest files load, hostile and broken ones are refused in one line."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import CPU, image_spaces

from configuration.schema import EnvironmentConfig
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from replay_buffer import ReplayBuffer
from training.demonstrations import load_demonstrations
from utils import UserError

STEPS, ACTIONS, SIZE = 40, 5, 16


def make_trajectory(steps: int = STEPS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.integers(0, 256, (steps, SIZE, SIZE, 3), dtype=np.uint8),
        "action": rng.integers(0, ACTIONS, steps),
        "reward": rng.integers(-1, 2, steps),
        "done": rng.random(steps) < 0.1,
        "life_loss": rng.random(steps) < 0.5,
    }


def load(path: Path, shortest: int = 8, **settings: Any) -> ReplayBuffer:
    return load_demonstrations(
        path, image_spaces(SIZE, ACTIONS), shortest, CPU, EnvironmentConfig(**settings)
    )


def write_npz(path: Path, trajectory: dict[str, Any], compressed: bool = True) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **trajectory)
    return path


def write_pickle(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def check_windows(demonstrations: ReplayBuffer, trajectory: dict[str, np.ndarray]) -> None:
    """Every window is a stretch of the trajectory, with termination where it is done."""
    assert len(demonstrations) == len(trajectory["action"])
    batch = demonstrations.sample(50, 8, torch.Generator().manual_seed(0))
    assert [x.dtype for x in batch] == [torch.uint8, torch.int64, torch.float32, torch.float32]
    flat = trajectory["obs"].reshape(STEPS, -1)
    starts = set()
    for row in range(50):
        start = int((flat == batch.observation[row, 0].flatten().numpy()).all(1).argmax())
        part = slice(start, start + 8)
        starts.add(start)
        assert np.array_equal(batch.observation[row], trajectory["obs"][part])
        assert np.array_equal(batch.action[row], trajectory["action"][part])
        assert np.array_equal(batch.reward[row], trajectory["reward"][part])
        assert np.array_equal(batch.termination[row], trajectory["done"][part])
    assert len(starts) > 15 and max(starts) <= STEPS - 8


@pytest.mark.parametrize("compressed", [True, False])
def test_npz(tmp_path: Path, compressed: bool) -> None:
    trajectory = make_trajectory()
    check_windows(load(write_npz(tmp_path / "play.npz", trajectory, compressed)), trajectory)


def test_rewards_can_be_reduced_to_their_sign(tmp_path: Path) -> None:
    trajectory = make_trajectory() | {"reward": np.random.default_rng(1).normal(0, 20, STEPS)}
    path = write_npz(tmp_path / "play.npz", trajectory)
    signs = {"reward": np.sign(trajectory["reward"])}
    check_windows(load(path, ClipRewards=True), trajectory | signs)
    caught = {"reward": trajectory["reward"] > 0}
    path = write_npz(tmp_path / "caught.npz", trajectory | caught)
    check_windows(load(path, ClipRewards=True), trajectory | caught)
    path = write_npz(tmp_path / "play.npz", trajectory)
    halves = {"reward": (trajectory["reward"] / 2).astype(np.float32)}
    check_windows(load(path, RewardScale=0.5), trajectory | halves)
    check_windows(load(path), trajectory | {"reward": trajectory["reward"].astype(np.float32)})


def test_actions_of_a_box_lie_within_it(tmp_path: Path) -> None:
    spaces = Spaces(ObservationSpec("vector", (3,)), ActionSpec("continuous", 2))
    rng = np.random.default_rng(0)
    play = make_trajectory() | {"obs": rng.normal(size=(STEPS, 3)).astype(np.float32)}
    play["action"] = rng.uniform(-1, 1, (STEPS, 2)).astype(np.float32)
    path = write_npz(tmp_path / "play.npz", play)
    loaded = load_demonstrations(path, spaces, 8, CPU, EnvironmentConfig())
    assert np.array_equal(loaded.export_rows(0, STEPS)["action"][:, 0], play["action"])
    for outside in (-1.5, 1.5):
        play["action"][7, 1] = outside
        with pytest.raises(UserError, match="expected -1 to 1, which the environment's bounds are mapped to"):
            load_demonstrations(write_npz(path, play), spaces, 8, CPU, EnvironmentConfig())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_observed_numbers_are_finite(tmp_path: Path, value: float) -> None:
    spaces = Spaces(ObservationSpec("vector", (3,)), ActionSpec("continuous", 2))
    play = make_trajectory() | {"obs": np.zeros((STEPS, 3), np.float32), "action": np.zeros((STEPS, 2), int)}
    load_demonstrations(write_npz(tmp_path / "whole.npz", play), spaces, 8, CPU, EnvironmentConfig())
    play["obs"][7, 1] = value
    with pytest.raises(UserError, match="'obs' holds numbers that are not finite"):
        load_demonstrations(write_npz(tmp_path / "play.npz", play), spaces, 8, CPU, EnvironmentConfig())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    trajectory = make_trajectory()
    check_windows(load(write_pickle(tmp_path / "play.pkl", trajectory, protocol)), trajectory)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_of_any_layout(tmp_path: Path, protocol: int) -> None:
    trajectory = make_trajectory()
    written = dict(trajectory)
    written["obs"] = np.asfortranarray(trajectory["obs"])
    written["reward"] = trajectory["reward"].astype(">f4")
    written["action"] = np.repeat(trajectory["action"], 2)[::2].astype(np.int32)
    check_windows(load(write_pickle(tmp_path / "play.pkl", written, protocol)), trajectory)


def test_pickles_of_older_numpy_name_other_modules(tmp_path: Path) -> None:
    trajectory = make_trajectory()
    data = pickle.dumps(trajectory, 2).replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "play.pkl").write_bytes(data)
    check_windows(load(tmp_path / "play.pkl"), trajectory)


def test_further_keys_of_any_kind_are_accepted(tmp_path: Path) -> None:
    trajectory = make_trajectory()
    more = {"fps": 15, "note": "played by hand", "lives": [3, 2]}
    check_windows(load(write_pickle(tmp_path / "play.pkl", trajectory | more)), trajectory)
    objects = {"fps": np.asarray(15), "note": np.asarray("by hand"), "info": np.asarray([{}, None])}
    check_windows(load(write_npz(tmp_path / "play.npz", trajectory | objects)), trajectory)


# Hostile files.


class Touch:
    """Unpickled for real, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.path}'",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["value", "instead", "object array", "extra key"])
def test_a_pickle_runs_nothing(tmp_path: Path, place: str, protocol: int) -> None:
    touched, evil = tmp_path / "touched", Touch(tmp_path / "touched")
    content: Any = make_trajectory()
    if place == "instead":
        content = evil
    elif place == "object array":
        content["reward"] = np.array([evil] * STEPS, dtype=object)
    else:
        content["reward" if place == "value" else "more"] = evil
    path = write_pickle(tmp_path / "play.pkl", content, protocol)
    with pytest.raises(UserError, match=r"play\.pkl: .*asks for .*system"):
        load(path)
    assert not touched.exists()
    pickle.loads(path.read_bytes())
    assert touched.exists(), "the same pickle would have touched the file"


@pytest.mark.parametrize(
    "name",
    [b"builtins eval", b"numpy load", b"numpy.testing measure", b"copyreg _reconstructor", b"os system"],
)
def test_a_pickle_may_name_numpy_arrays_only(tmp_path: Path, name: bytes) -> None:
    module, function = name.split()
    (tmp_path / "play.pkl").write_bytes(b"c" + module + b"\n" + function + b"\n(S'1'\ntR.")
    with pytest.raises(UserError, match=function.decode()):
        load(tmp_path / "play.pkl")


@pytest.mark.parametrize("shape", [(10**12,), (40, 2**31, 2**31, 3), (-1,), (41, 16, 16, 3)])
def test_a_header_that_announces_what_the_file_does_not_hold(tmp_path: Path, shape: tuple[int, ...]) -> None:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(1000)
    path = write_npz(tmp_path / "play.npz", {k: v for k, v in make_trajectory().items() if k != "obs"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("obs.npy", data)
    with pytest.raises(UserError, match=r"play\.npz: "):
        load(path)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    trajectory = make_trajectory() | {"reward": np.array([None] * STEPS)}
    with pytest.raises(UserError, match=r"play\.npz: .*Object arrays cannot be loaded"):
        load(write_npz(tmp_path / "play.npz", trajectory))
    with pytest.raises(UserError, match="'reward' is 'O8', expected plain numbers"):
        load(write_pickle(tmp_path / "play.pkl", trajectory))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04r\xff\xff\xff\x7f.",  # a memo of two thousand million slots
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 45) + b"x.",  # bytes that are not there
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 45) + b"x.",
        b"\x80\x04" + b"(" * 50_000 + b".",
        b"\x80\x04]" + b"]" * 3 + b".",
        b"",
        b"\x80\x04.",
        b"not a pickle at all",
        b"PK\x03\x04 nor a zip",
    ],
)
def test_malformed_files_end_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "play").write_bytes(data)
    with pytest.raises(UserError, match="play: "):
        load(tmp_path / "play")


@pytest.mark.parametrize("kind", ["npz", "pkl"])
def test_damage_is_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    """Truncated, and with bytes changed at random: a trajectory, or one line."""
    write = write_npz if kind == "npz" else write_pickle
    data = write(tmp_path / f"whole.{kind}", make_trajectory(12)).read_bytes()
    path, refused = tmp_path / f"play.{kind}", 0
    rng = np.random.default_rng(1)
    for trial in range(150):
        damaged = bytearray(data)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(len(data))]
        else:  # structure lies at both ends
            where = rng.integers(400) - (400 if trial % 3 == 1 else 0)
            damaged[where] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            assert len(load(path, shortest=4)) == 12
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused >= 50


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.npz", tmp_path, tmp_path / "pipe"):
        with pytest.raises(UserError, match=str(path)):
            load(path)


# Honest files that do not fit.


def changed(key: str, value: Any) -> dict[str, Any]:
    return make_trajectory() | {key: value}


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        ({k: v for k, v in make_trajectory().items() if k != "done"}, r"has no array 'done'"),
        (
            changed("obs", np.zeros((STEPS, 8, 8, 3), np.uint8)),
            r"'obs' is uint8 \(40, 8, 8, 3\), expected uint8",
        ),
        (
            changed("obs", np.zeros((STEPS, SIZE, SIZE, 3))),
            r"'obs' is float64 .*expected uint8 \(T, 16, 16, 3\)",
        ),
        (changed("obs", np.zeros((STEPS, SIZE, SIZE, 1), np.uint8)), r"'obs' is"),
        (
            changed("action", np.zeros(STEPS - 1, np.int64)),
            r"'action' is int64 \(39,\), expected integers \(40,\)",
        ),
        (changed("action", np.zeros(STEPS)), r"'action' is float64 \(40,\), expected integers"),
        (changed("action", np.full(STEPS, ACTIONS)), r"'action' holds 5 to 5, expected 0 to 4"),
        (changed("action", np.full(STEPS, -1)), r"'action' holds -1 to -1"),
        (changed("reward", np.full(STEPS, np.nan)), r"'reward' holds numbers that are not finite"),
        (changed("reward", np.full(STEPS, 1e300)), r"'reward' holds numbers that are not finite"),
        (changed("reward", np.zeros((STEPS, 1))), r"'reward' is float64 \(40, 1\)"),
        (changed("reward", np.zeros(STEPS, complex)), r"'reward' is (complex128 |'c16')"),
        (changed("done", np.full(STEPS, 2)), r"'done' holds 2 to 2, expected 0 and 1"),
        (changed("done", np.full(STEPS, np.nan)), r"'done' holds"),
        (make_trajectory(7), r"has 7 steps, expected at least 8"),
        (make_trajectory(0), r"has 0 steps"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "pkl"])
def test_messages_name_file_key_expected_and_found(
    tmp_path: Path, trajectory: dict[str, Any], message: str, kind: str
) -> None:
    write = write_npz if kind == "npz" else write_pickle
    path = write(tmp_path / f"play.{kind}", trajectory)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [[1, 2], {"obs": [1, 2]}, {1: np.zeros(3)}, {"obs": np.float64(1)}, None])
def test_pickles_of_other_things(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match=r"play\.pkl: "):
        load(write_pickle(tmp_path / "play.pkl", content))
