"""The replay buffer: what windows hold, how they are drawn, and rows taken out and put back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_support import CPU, image_spaces

from replay_buffer import ReplayBuffer
from sub_models.batch import Batch
from utils import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_buffer(capacity: int = 10, num_envs: int = 3) -> ReplayBuffer:
    return ReplayBuffer(capacity, num_envs, image_spaces(8, 6), CPU)


def fill(buffer: ReplayBuffer, rows: int) -> ReplayBuffer:
    """Append rows whose every field tells row number and environment."""
    for row in range(buffer.count, buffer.count + rows):
        number = 100 * row + np.arange(buffer.num_envs)
        frames = torch.as_tensor(number % 251, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3)
        buffer.append(frames, number, number.astype(np.float32), (number % 2).astype(np.float32))
    return buffer


def check_contiguous(batch: Batch, oldest: int, newest: int) -> None:
    """All fields of a step belong together; steps follow each other in one environment."""
    row, environment = batch.action // 100, batch.action % 100
    assert ((row >= oldest) & (row <= newest)).all()
    assert (row.diff(dim=1) == 1).all() and (environment.diff(dim=1) == 0).all()
    assert torch.equal(batch.reward, batch.action.float())
    assert torch.equal(batch.termination, (batch.action % 2).float())
    assert torch.equal(batch.observation[:, :, 0, 0, 0].long(), batch.action % 251)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("rows", [4, 9, 10, 11, 17, 20, 25, 33])
def test_windows_never_cross_the_write_pointer(rows: int, num_envs: int) -> None:
    buffer = fill(make_buffer(num_envs=num_envs), rows)
    assert buffer.count == rows and buffer.rows == min(rows, 10) and len(buffer) == buffer.rows * num_envs
    for length in (1, 2, 4, buffer.rows):
        batch = buffer.sample(200, length, generator())
        assert batch.action.shape == (200, length) and batch.observation.shape == (200, length, 8, 8, 3)
        assert [x.dtype for x in batch] == [
            torch.uint8,
            torch.int64,
            torch.float32,
            torch.float32,
        ]
        check_contiguous(batch, max(0, rows - 10), rows - 1)


def test_windows_cross_the_end_of_the_memory_and_of_episodes() -> None:
    buffer = fill(make_buffer(num_envs=1), 14)  # rows 4 … 13; row 10 lies where row 0 was
    batch = buffer.sample(500, 4, generator())
    rows = batch.action // 100
    assert ((rows[:, 0] < 10) & (rows[:, -1] >= 10)).any()
    odd = make_buffer(num_envs=2)
    fill(odd, 10)
    assert (odd.sample(100, 4, generator()).termination[:, :-1] == 1).any()


def test_windows_are_drawn_uniformly() -> None:
    buffer = fill(make_buffer(), 23)  # rows 13 … 22, so 7 starts for windows of 4 in 3 environments
    starts = buffer.sample(42_000, 4, generator()).action[:, 0]
    counts = torch.bincount((starts // 100 - 13) * 3 + starts % 100, minlength=21)
    assert len(counts) == 21
    assert (counts / 2000 - 1).abs().max() < 0.12, "2,000 are expected of each, 45 is one standard deviation"


def test_drawing_is_a_function_of_the_generator() -> None:
    buffer = fill(make_buffer(), 9)
    first, second, third = (buffer.sample(20, 4, generator(seed)).action for seed in (5, 5, 6))
    assert torch.equal(first, second) and not torch.equal(first, third)


@pytest.mark.parametrize(("asked", "first"), [(1, 13), (4, 10), (10, 4), (99, 4)])
def test_recent_reward_is_that_of_the_newest_rows(asked: int, first: int) -> None:
    rewards = [100 * row + environment for row in range(first, 14) for environment in range(3)]
    assert fill(make_buffer(), 14).recent_reward(asked) == pytest.approx(np.mean(rewards))


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(AssertionError, match="hold no window"):
        fill(make_buffer(), 3).sample(2, 4, generator())


def test_a_frame_of_another_shape_is_refused() -> None:
    buffer = make_buffer()
    with pytest.raises(AssertionError, match="observation"):
        buffer.append(torch.zeros(3, 9, 9, 3), np.zeros(3), np.zeros(3), np.zeros(3))


def test_appending_copies_the_frame() -> None:
    buffer, frame = make_buffer(num_envs=1), torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    buffer.append(frame, np.zeros(1), np.zeros(1), np.zeros(1))
    frame.fill_(9)
    assert not buffer.sample(1, 1, generator()).observation.any()


@pytest.mark.parametrize(("first", "second"), [(4, 3), (8, 7), (13, 9)])
def test_rows_taken_out_in_pieces_restore_the_buffer(first: int, second: int) -> None:
    buffer, copy = fill(make_buffer(), first), make_buffer()
    copy.import_rows(buffer.oldest, buffer.export_rows(buffer.oldest, buffer.count))
    fill(buffer, second)
    copy.import_rows(first, buffer.export_rows(first, first + second))
    assert (copy.count, copy.oldest) == (buffer.count, buffer.oldest)
    for ours, theirs in zip(
        buffer.sample(300, 3, generator()), copy.sample(300, 3, generator()), strict=True
    ):
        assert torch.equal(ours, theirs)
    check_contiguous(fill(copy, 5).sample(300, 3, generator()), copy.oldest, copy.count - 1)


def test_only_rows_that_are_held_can_be_taken_out() -> None:
    buffer = fill(make_buffer(), 15)
    for start, stop in ((4, 10), (10, 16), (12, 11)):
        with pytest.raises(AssertionError):
            buffer.export_rows(start, stop)


@pytest.mark.parametrize("fault", ["missing", "dtype", "shape"])
def test_rows_that_do_not_fit_are_refused(fault: str) -> None:
    buffer = fill(make_buffer(), 5)
    rows = buffer.export_rows(0, 5)
    if fault == "missing":
        del rows["reward"]
    elif fault == "dtype":
        rows["reward"] = rows["reward"].astype(np.float64)
    else:
        rows["reward"] = rows["reward"][:, :2]
    with pytest.raises(UserError, match="reward"):
        make_buffer().import_rows(0, rows)


def test_batches_join_along_the_first_axis() -> None:
    buffer = fill(make_buffer(), 9)
    first, second = buffer.sample(3, 4, generator(0)), buffer.sample(2, 4, generator(1))
    joined = Batch.concatenate(first, second)
    assert joined.action.shape == (5, 4) and joined.observation.shape == (5, 4, 8, 8, 3)
    assert torch.equal(joined.action[3:], second.action) and torch.equal(joined.reward[:3], first.reward)
