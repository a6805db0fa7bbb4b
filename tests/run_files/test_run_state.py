"""Resumable states: whatever breaks, and whenever the process dies, a whole state is loaded."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import image_spaces

from replay_buffer import ReplayBuffer
from run_files import states as run_state
from run_files import tensor_files
from run_files.states import RowSource, SavedState, StateStore
from utils import UserError

CAPACITY = 40
fork = multiprocessing.get_context("fork")


def make_rows(capacity: int = CAPACITY) -> ReplayBuffer:
    return ReplayBuffer(capacity, 2, image_spaces(8, 6), torch.device("cpu"))


def append(rows: ReplayBuffer, count: int, salt: int = 0) -> None:
    """Append rows whose content is a function of their number and of `salt`."""
    for number in range(rows.count, rows.count + count):
        generator = np.random.default_rng((number, salt))
        observation = torch.from_numpy(generator.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8))
        action = generator.integers(0, 9, 2)
        rows.append(observation, action, generator.random(2, np.float32), generator.random(2, np.float32))


def make_state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(30, generator=generator)
    optimizer = {
        "state": {0: {"exp_avg": weight * 2}},
        "param_groups": [{"betas": (0.9, 0.999), "params": [0]}],
    }
    numbers = {"integer": 2**100 + step, "float": 0.1, "flag": True, "nothing": None, "text": "é"}
    return {
        "model": {"weight": weight},
        "optimizer": optimizer,
        "rng": generator.get_state(),
        "numbers": numbers,
    }


def assert_equal(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert first == second


def assert_same_rows(first: RowSource, second: RowSource) -> None:
    assert (first.oldest, first.count) == (second.oldest, second.count)
    exported = [rows.export_rows(rows.oldest, rows.count) for rows in (first, second)]
    assert exported[0].keys() == exported[1].keys()
    for name in exported[0]:
        np.testing.assert_array_equal(exported[0][name], exported[1][name])


def expected_rows(count: int, salt: int = 0) -> ReplayBuffer:
    rows = make_rows()
    append(rows, count, salt)
    return rows


def check_saved(saved: SavedState | None, step: int, count: int) -> None:
    """The state of `step` came back, with all its rows."""
    assert saved is not None and saved.step == step
    assert_equal(saved.state, make_state(step))
    restored = make_rows()
    saved.restore_rows(restored)
    assert_same_rows(restored, expected_rows(count))


def names(directory: Path, start: str = "") -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.name.startswith(start))


def save_steps(directory: Path, *counts: int) -> tuple[StateStore, ReplayBuffer]:
    """A store with one state saved at each count of rows; the step is the count."""
    store, rows = StateStore(directory, merge_rows=2), make_rows()
    for count in counts:
        append(rows, count - rows.count)
        store.save(count, make_state(count), rows)
    return store, rows


class TestRoundTrip:
    def test_nothing_saved(self, tmp_path: Path) -> None:
        assert StateStore(tmp_path / "state").load() is None
        assert not StateStore(tmp_path / "state").exists()

    @pytest.mark.parametrize(
        "counts", [(0,), (10,), (40,), (41,), (10, 25), (10, 45), (30, 90), (10, 10), (0, 0, 5)]
    )
    def test_last_state(self, tmp_path: Path, counts: tuple[int, ...]) -> None:
        save_steps(tmp_path, *counts)
        saved = StateStore(tmp_path).load()
        assert saved is not None and saved.notes == ()
        check_saved(saved, counts[-1], counts[-1])

    def test_saves_go_on_after_a_resume(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 20)
        store, rows = StateStore(tmp_path), make_rows()
        saved = store.load()
        assert saved is not None
        saved.restore_rows(rows)
        append(rows, 35)
        store.save(55, make_state(55), rows)
        check_saved(StateStore(tmp_path).load(), 55, 55)
        (tmp_path / "manifest_3.json").unlink()
        check_saved(StateStore(tmp_path).load(), 20, 20)

    def test_rows_are_written_once(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10)
        first = (tmp_path / "rows_0_10_1.pt").stat()
        save_steps(tmp_path / "more", 10, 25, 38)
        assert names(tmp_path / "more", "rows") == ["rows_0_10_1.pt", "rows_10_25_2.pt", "rows_25_38_3.pt"]
        assert (tmp_path / "rows_0_10_1.pt").stat() == first

    def test_two_states_are_kept(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 20, 30, 39)
        assert names(tmp_path, "manifest") == ["manifest_3.json", "manifest_4.json"]
        assert names(tmp_path, "state") == ["state_3.pt", "state_4.pt"]

    def test_rows_that_no_state_needs_are_freed(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 20, 40, 60, 80)  # the state of 60 still needs rows 20 to 40
        assert names(tmp_path, "rows") == ["rows_20_40_2.pt", "rows_40_60_3.pt", "rows_60_80_4.pt"]
        save_steps(tmp_path / "jump", 20, 39, 200, 201)
        assert names(tmp_path / "jump", "rows") == ["rows_160_200_3.pt", "rows_200_201_4.pt"]

    def test_small_row_files_are_merged(self, tmp_path: Path) -> None:
        store, rows = StateStore(tmp_path, merge_rows=8), make_rows()
        for count in range(1, 61):
            append(rows, 1)
            store.save(count, make_state(count), rows)
            assert len(names(tmp_path, "rows")) <= 2 * (1 + CAPACITY // 8) + 2
        check_saved(StateStore(tmp_path).load(), 60, 60)
        (tmp_path / "manifest_60.json").unlink()
        check_saved(StateStore(tmp_path).load(), 59, 59)

    def test_overwritten_ring_does_not_touch_the_older_state(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 40, 79)  # the ring has overwritten rows 0 to 39
        (tmp_path / "state_2.pt").write_bytes(b"torn")
        saved = StateStore(tmp_path).load()
        assert saved is not None and "state_2.pt" in saved.notes[0]
        check_saved(saved, 40, 40)

    def test_foreign_files_stay(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        save_steps(tmp_path, 10, 20, 30)
        assert (tmp_path / "notes.txt").exists()

    def test_saving_over_states_that_were_not_loaded_is_a_defect(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10)
        with pytest.raises(RuntimeError, match=r"load\(\) before save\(\)"):
            StateStore(tmp_path).save(20, make_state(20), make_rows())
        check_saved(StateStore(tmp_path).load(), 10, 10)

    def test_rows_must_be_restored_before_the_next_save(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10)
        store = StateStore(tmp_path)
        store.load()
        with pytest.raises(AssertionError, match="restore them first"):
            store.save(20, make_state(20), make_rows())

    def test_another_capacity_is_refused(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 39)
        saved = StateStore(tmp_path).load()
        assert saved is not None
        with pytest.raises(UserError, match=r"rows 0 to 39.* holds 9 to 39"):
            saved.restore_rows(make_rows(30))

    def test_types_that_could_not_be_loaded_are_refused(self, tmp_path: Path) -> None:
        store, rows = save_steps(tmp_path, 10)
        with pytest.raises(TypeError, match=r"\['returns'\]\[1\] is float64"):
            store.save(20, {"returns": [1.0, np.float64(2)]}, rows)
        check_saved(StateStore(tmp_path).load(), 10, 10)


def damage_at_random(path: Path, generator: random.Random) -> None:
    """Flip one bit, or cut the file."""
    data = bytearray(path.read_bytes())
    place = generator.randrange(len(data))
    if generator.random() < 0.3:
        del data[place:]
    else:
        data[place] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


class TestDamage:
    @pytest.mark.parametrize("file", ["manifest_2.json", "state_2.pt", "rows_10_25_2.pt"])
    def test_the_state_before_is_used(self, tmp_path: Path, file: str) -> None:
        save_steps(tmp_path, 10, 25)
        whole = (tmp_path / file).read_bytes()
        generator = random.Random(file)
        for _ in range(20):
            damage_at_random(tmp_path / file, generator)
            saved = StateStore(tmp_path).load()
            assert saved is not None and len(saved.notes) == 1
            assert file in saved.notes[0] or file.startswith("manifest")  # a flipped checksum accuses a file
            check_saved(saved, 10, 10)
            (tmp_path / file).write_bytes(whole)
        check_saved(StateStore(tmp_path).load(), 25, 25)

    @pytest.mark.parametrize("file", ["state_2.pt", "rows_10_25_2.pt"])
    def test_a_missing_file(self, tmp_path: Path, file: str) -> None:
        save_steps(tmp_path, 10, 25)
        (tmp_path / file).unlink()
        saved = StateStore(tmp_path).load()
        assert saved is not None and f"{file}: does not exist" in saved.notes[0]
        check_saved(saved, 10, 10)

    def test_a_whole_file_of_another_save(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 25)
        shutil.copy(tmp_path / "state_1.pt", tmp_path / "state_2.pt")
        saved = StateStore(tmp_path).load()
        assert saved is not None and "is not the file that was saved" in saved.notes[0]
        check_saved(saved, 10, 10)

    def test_a_renamed_manifest(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 25)
        shutil.copy(tmp_path / "manifest_1.json", tmp_path / "manifest_7.json")
        saved = StateStore(tmp_path).load()
        assert saved is not None and "manifest_7.json" in saved.notes[0]
        check_saved(saved, 25, 25)

    def test_the_broken_state_is_replaced_by_the_next(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 25)
        (tmp_path / "state_2.pt").write_bytes(b"")
        store, rows = StateStore(tmp_path, merge_rows=2), make_rows()
        saved = store.load()
        assert saved is not None
        saved.restore_rows(rows)
        append(rows, 15)
        store.save(25, make_state(25), rows)
        assert names(tmp_path, "manifest") == ["manifest_1.json", "manifest_3.json"]
        assert names(tmp_path, "rows") == ["rows_0_10_1.pt", "rows_10_25_3.pt"]
        check_saved(StateStore(tmp_path).load(), 25, 25)

    def test_none_usable(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 25)
        (tmp_path / "rows_0_10_1.pt").write_bytes(b"")  # both states need it
        with pytest.raises(UserError, match=r"(?s)Restart=True.*rows_0_10_1\.pt.*rows_0_10_1\.pt"):
            StateStore(tmp_path).load()

    def test_rows_that_break_after_they_were_verified(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10)
        saved = StateStore(tmp_path).load()
        assert saved is not None
        damage_at_random(tmp_path / "rows_0_10_1.pt", random.Random(0))
        with pytest.raises(UserError, match="rows_0_10_1"):
            saved.restore_rows(make_rows())


class TestManifest:
    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "3", "[" * 100_000, "1" * 10_000, "\0", '{"format": NaN}', '{"format": 1}']
    )
    def test_not_a_manifest(self, tmp_path: Path, text: str) -> None:
        save_steps(tmp_path, 10, 20)
        (tmp_path / "manifest_2.json").write_text(text)
        saved = StateStore(tmp_path).load()
        assert saved is not None and "manifest_2.json" in saved.notes[0]
        check_saved(saved, 10, 10)

    def test_an_edited_one(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10, 25)
        path = tmp_path / "manifest_2.json"
        files = json.loads(path.read_text())
        path.write_text(json.dumps(files | {"state_2.pt": files["rows_0_10_1.pt"]}))
        check_saved(StateStore(tmp_path).load(), 10, 10)

    def test_names_cannot_leave_the_folder(self, tmp_path: Path) -> None:
        save_steps(tmp_path / "other", 10)
        save_steps(tmp_path / "state", 10, 25)
        path = tmp_path / "state" / "manifest_2.json"
        files = json.loads(path.read_text())
        path.write_text(json.dumps({f"../other/{name}": digest for name, digest in files.items()}))
        check_saved(StateStore(tmp_path / "state").load(), 10, 10)

    def test_pipes_and_folders(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 10)
        os.mkfifo(tmp_path / "manifest_3.json")
        (tmp_path / "manifest_4.json").mkdir()
        saved = StateStore(tmp_path).load()
        assert saved is not None and len(saved.notes) == 2
        check_saved(saved, 10, 10)


class Killed(BaseException):
    """The process ends here."""


class TestKills:
    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("writes", [0, 1, 2])
    def test_killed_at_each_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, after: bool
    ) -> None:
        store, rows = save_steps(tmp_path, 10)
        append(rows, 15, salt=1)  # rows that the resumed run will not have
        remaining = iter([None] * writes)
        original = tensor_files.write_atomically

        def write(path: Path, content: Any) -> None:
            last = next(remaining, "last") == "last"
            if after or not last:
                original(path, content)
            if last:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            for module in (tensor_files, run_state):
                patch.setattr(module, "write_atomically", write)
            store.save(25, make_state(25), rows)
        if writes == 2 and after:  # the manifest was written: the save was complete
            saved = StateStore(tmp_path).load()
            assert saved is not None and saved.step == 25
            return
        store, rows = StateStore(tmp_path, merge_rows=2), make_rows()
        saved = store.load()
        assert saved is not None and saved.notes == ()
        check_saved(saved, 10, 10)
        saved.restore_rows(rows)
        append(rows, 15)
        store.save(25, make_state(25), rows)
        check_saved(StateStore(tmp_path).load(), 25, 25)
        assert len(names(tmp_path)) == 6  # nothing of the killed save is left

    def test_kill_9_during_saves(self, tmp_path: Path) -> None:
        kill_and_resume(tmp_path, rounds=4)

    @pytest.mark.slow
    def test_many_kill_9_during_saves(self, tmp_path: Path) -> None:
        kill_and_resume(tmp_path, rounds=150)


def save_for_ever(directory: Path, saves: Any) -> None:
    """Resume, then save a state after every third row, until killed."""
    store, rows = StateStore(directory, merge_rows=5), make_rows()
    saved = store.load()
    if saved is not None:
        saved.restore_rows(rows)
    while True:
        append(rows, 3)
        store.save(rows.count, make_state(rows.count), rows)
        saves.value = rows.count


def kill_and_resume(directory: Path, rounds: int) -> None:
    generator = random.Random(0)
    promised = 0
    for _ in range(rounds):
        saves = fork.Value("q", promised, lock=False)
        process = fork.Process(target=save_for_ever, args=(directory, saves))
        process.start()
        deadline = time.monotonic() + 60
        while saves.value == promised and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(generator.random() * 0.1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        saved = StateStore(directory).load()
        assert saved is not None and saved.notes == ()
        assert saved.step >= saves.value > promised  # what save() returned from is never lost
        check_saved(saved, saved.step, saved.step)
        promised = saved.step
    leftovers = len(names(directory))
    store, rows = StateStore(directory), make_rows()
    saved = store.load()
    assert saved is not None
    saved.restore_rows(rows)
    store.save(saved.step, saved.state, rows)
    assert not names(directory, ".")
    assert len(names(directory)) <= max(leftovers, 20)


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_under_limit(directory: Path, limit: int, outcome: Any) -> None:
    store, rows = save_steps(directory, 10, 25)
    append(rows, 14)
    try:
        with file_size_limit(limit):
            store.save(39, make_state(39), rows)
        outcome.put("saved")
    except UserError as error:
        outcome.put(str(error))
    store.save(39, make_state(39), rows)  # there is room again


class TestFullDisk:
    @pytest.mark.parametrize("limit", [0, 500, 3_000, 7_000])
    def test_file_size_limit(self, tmp_path: Path, limit: int) -> None:
        outcome = fork.SimpleQueue()
        process = fork.Process(target=save_under_limit, args=(tmp_path / "state", limit, outcome))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        message = outcome.get()
        assert "the state of step 39 was not saved (the state of step 25 stays)" in message
        assert str(tmp_path / "state") in message and "File too large" in message
        check_saved(StateStore(tmp_path / "state").load(), 39, 39)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
    @pytest.mark.parametrize("writes", [0, 1, 2])
    def test_what_was_saved_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, writes: int
    ) -> None:
        store, rows = save_steps(tmp_path, 10, 25)
        before = names(tmp_path)
        append(rows, 14)
        remaining = iter([None] * writes)
        original = os.replace

        def rename(*paths: Path) -> None:
            if next(remaining, "last") == "last":
                raise OSError(code, os.strerror(code))
            original(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", rename)
            with pytest.raises(UserError, match=f"{os.strerror(code)}.*{tmp_path}"):
                store.save(39, make_state(39), rows)
        assert set(before) <= set(names(tmp_path))
        check_saved(StateStore(tmp_path).load(), 25, 25)
        (tmp_path / "manifest_2.json").unlink()
        check_saved(StateStore(tmp_path).load(), 10, 10)

    def test_first_save(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_text("a file where the folder should be")
        with pytest.raises(UserError, match=r"rows_0_10_1\.pt: File exists"):
            save_steps(tmp_path / "state", 10)

    def test_first_save_on_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="no state is saved yet"):
            save_steps(tmp_path / "state", 10)
        assert StateStore(tmp_path / "state").load() is None
