"""Video prediction: clips of every format, the split, and whole runs on them."""

from __future__ import annotations

import io
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_and_compare import differences
from PIL import Image
from tiny_runs import GIT_STORM, Result, evaluate, metrics, train

from configuration.schema import Config
from evaluation.clips import Clips
from run_files.clip_files import find_clips
from training.video import VideoRun
from utils import UserError

SIZE, LENGTH, NOT_FINISHED = 16, 20, 75


def clip(number: int, length: int = LENGTH, size: int = SIZE) -> np.ndarray:
    """Frames that tell their clip and their place in it."""
    frames = np.full((length, size, size, 3), number, np.uint8)
    frames[..., 1] = np.arange(length)[:, None, None]
    return frames


def make_clips(folder: Path, count: int = 5, actions: bool = True, **names: str) -> Path:
    """A folder of .npz as TECO's."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        arrays = {"video": clip(number)} | ({"actions": np.arange(LENGTH) % 3} if actions else {})
        np.savez(folder / f"{number}.npz", **arrays)
    return folder


def clips_of(source: Path, held_out: bool = False, seed: int = 0, shortest: int = 8) -> Clips:
    config = Config()
    config.BasicSettings.trajectory_path, config.BasicSettings.ImageSize = str(source), SIZE
    config.BasicSettings.Seed, config.VideoPrediction.HeldOutShare = seed, 0.4
    return Clips(config, held_out, source.parent, shortest)


def learn(folder: Path, name: str, source: Path, *overrides: str) -> Result:
    path = f"BasicSettings.trajectory_path={source}"
    short = ("JointTrainAgent.SampleMaxSteps=12", "JointTrainAgent.SaveEverySteps=5")
    return train(
        folder, name, "Task=VideoPrediction", path, *short, "JointTrainAgent.LogEverySteps=3", *overrides
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("video") / "clips")


def moving(number: int, size: int) -> np.ndarray:
    """Frames without two equal ones in a row, which a GIF would show as one."""
    return (40 * (number + 1) + 4 * clip(0, size=size)).astype(np.uint8)


# --- files


def check_format(source: Path, size: int, loss: int = 0) -> None:
    files = find_clips(source)
    assert len(files) == 3
    for number, file in enumerate(files):
        found = np.concatenate(list(file.frames())).astype(int)
        assert found.shape == (LENGTH, size, size, 3)
        assert np.abs(found - moving(number, size)).max() <= loss


def as_jpeg(frame: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95, subsampling=0)
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.mark.parametrize(
    "kind", ["npz", "compressed", "hdf5", "minari", "minari jpeg", "minari equal jpeg", "gif", "mp4", "MP4"]
)
def test_every_format_is_read(tmp_path: Path, kind: str) -> None:
    size = 32 if kind.lower() == "mp4" else SIZE
    videos = [moving(number, size) for number in range(3)]
    actions = np.arange(LENGTH) % 3
    if kind.startswith("minari"):
        import h5py

        with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
            for number, video in enumerate(videos):
                if kind == "minari":
                    file[f"episode_{number}/observations"] = video
                else:  # as Minari 0.5 makes it
                    files = [as_jpeg(frame) for frame in video]
                    if "equal" in kind:
                        longest = max(map(len, files))
                        files = np.stack([np.pad(each, (0, longest - len(each))) for each in files])
                    kept = {} if "equal" in kind else {"dtype": h5py.vlen_dtype(np.uint8)}
                    file.create_dataset(f"episode_{number}/observations", data=files, **kept)
                file[f"episode_{number}/actions"] = actions[:-1]
    for number, video in enumerate(videos):
        path = tmp_path / str(number)
        if kind in ("npz", "compressed"):
            save = np.savez if kind == "npz" else np.savez_compressed
            save(path, video=video, actions=actions)
        elif kind == "hdf5":
            import h5py

            with h5py.File(f"{path}.hdf5", "w") as file:
                file["video"], file["actions"] = video, actions
        elif kind.lower() in ("gif", "mp4"):
            import imageio.v3 as iio

            iio.imwrite(f"{path}.{kind}", video, **({} if kind == "gif" else {"fps": 15}))
    check_format(
        tmp_path, size, {"gif": 3, "mp4": 12, "minari jpeg": 12, "minari equal jpeg": 12}.get(kind.lower(), 0)
    )
    clips = clips_of(tmp_path)
    assert clips.spaces.action.size == (1 if kind.lower() in ("gif", "mp4") else 3)


def test_demonstrations_are_clips(tmp_path: Path) -> None:
    for number in range(2):
        zeros = np.zeros(LENGTH)
        np.savez_compressed(
            tmp_path / f"{number}", obs=clip(number), action=zeros.astype(int), reward=zeros, done=zeros
        )
    assert len(clips_of(tmp_path)) == LENGTH


BROKEN: dict[str, Any] = {
    "grey": {"video": np.zeros((9, 8, 8), np.uint8)},
    "float": {"video": np.zeros((9, 8, 8, 3))},
    "nameless": {"frames": clip(0)},
    "few_actions": {"video": clip(0), "actions": np.zeros(5, int)},
    "negative": {"video": clip(0), "actions": np.full(LENGTH, -1)},
    "huge": {"video": clip(0), "actions": np.full(LENGTH, 2**40)},
    "outside": {"video": clip(0), "actions": np.full((LENGTH, 2), 1.5)},
    "objects": {"video": np.array([None])},
    "short": {"video": clip(0, 4)},
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_clip_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.npz"
    np.savez(path, **BROKEN[name])
    with pytest.raises(UserError, match=name):
        clips_of(path)


@pytest.mark.parametrize("ending", ["npz", "hdf5", "mp4", "gif"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"damaged.{ending}"
    path.write_bytes(b"PK\x03\x04 nothing that can be read")
    with pytest.raises(UserError, match="damaged"):
        clips_of(path)


def test_a_cut_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", video=clip(0))
    with zipfile.ZipFile(tmp_path / "whole.npz") as file:
        content = file.read("video.npy")
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as file:
        file.writestr("video.npy", content[:-100])
    with pytest.raises(UserError, match="cut"):
        clips_of(tmp_path / "cut.npz")


@pytest.mark.parametrize("how", ["hdf5", "gif", "mp4", "mp4 faststart"])
def test_a_file_that_ends_early_is_refused_by_name(tmp_path: Path, how: str) -> None:
    ending, _, start = how.partition(" ")
    path = tmp_path / f"whole.{ending}"
    video = np.random.default_rng(0).integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
    if ending == "hdf5":
        import h5py

        with h5py.File(path, "w") as file:
            file["video"] = video
    else:
        import imageio.v3 as iio

        more = {"fps": 15, "output_params": ["-movflags", f"+{start}"] if start else []}
        iio.imwrite(path, video, **(more if ending == "mp4" else {}))
    assert sum(map(len, find_clips(path)[0].frames())) == 40
    content, cut = path.read_bytes(), path.with_stem("cut")
    for share in (0.3, 0.6, 0.95):
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=f"cut.{ending}"):
            sum(map(len, find_clips(cut)[0].frames()))


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no clips here"):
        clips_of(tmp_path)


# --- the data set


def test_windows_lie_within_a_clip_and_come_with_their_actions(source: Path) -> None:
    batch = clips_of(source).sample(200, 8, torch.Generator().manual_seed(0))
    assert batch.observation.shape == (200, 8, SIZE, SIZE, 3)
    numbers, places = batch.observation[..., 0, 0, 0], batch.observation[..., 0, 0, 1].long()
    assert (numbers == numbers[:, :1]).all() and len(numbers.unique()) == 3
    assert (places - places[:, :1] == torch.arange(8)).all()
    assert set(places[:, 0].tolist()) == set(range(LENGTH - 8 + 1))
    assert torch.equal(batch.action, places % 3)
    assert not batch.reward.any() and not batch.termination.any()


def test_held_out_clips_are_never_trained_on(source: Path) -> None:
    splits = set()
    for seed in range(6):
        training, held_out = clips_of(source, seed=seed), clips_of(source, True, seed)
        assert len(training.files) == 3 and len(held_out.files) == 2
        assert not set(training.files) & set(held_out.files)
        assert clips_of(source, seed=seed).files == training.files
        batch = training.sample(100, 8, torch.Generator().manual_seed(0))
        assert set(batch.observation[:, 0, 0, 0, 0].tolist()) == {int(name[0]) for name in training.files}
        splits.add(tuple(held_out.files))
    assert len(splits) > 1


def test_one_clip_is_trained_on(tmp_path: Path) -> None:
    source = make_clips(tmp_path / "one", 1)
    assert "no clip is held out" in " ".join(clips_of(source).notes)
    assert list(clips_of(source).files) == ["0.npz"]
    with pytest.raises(UserError, match="no held-out clip"):
        clips_of(source, True)


def test_frames_are_resized_by_area(tmp_path: Path) -> None:
    video = np.zeros((LENGTH, 2 * SIZE, 4 * SIZE, 3), np.uint8)
    video[:, ::2] = 200
    np.savez(tmp_path / "a", video=video)
    batch = clips_of(tmp_path).sample(2, 8, torch.Generator())
    assert (batch.observation == 100).all()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_3_gb_are_read_in_bounded_memory(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "a.hdf5", "w") as file:  # never written to: it takes no disk, and reads as 0
        file.create_dataset("video", (15_360, 256, 256, 3), np.uint8, chunks=(64, 256, 256, 3))
    assert (tmp_path / "a.hdf5").stat().st_size < 1e5
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    clips = clips_of(tmp_path)
    assert clips.sample(16, 64, torch.Generator()).observation.shape[:2] == (16, 64)
    assert len(clips) == 15_360 and resident("VmHWM") - before < 100e6


def resident(key: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at the most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key))


def test_memory_does_not_grow_with_a_compressed_file(tmp_path: Path) -> None:
    import tracemalloc

    frames = np.zeros((4_000, 64, 64, 3), np.uint8)  # 49 MB, of which a piece is 0.8
    np.savez_compressed(tmp_path / "a", video=frames)
    del frames
    tracemalloc.start()
    clips = clips_of(tmp_path)
    clips.sample(16, 64, torch.Generator())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


# --- runs


def test_a_run_on_clips_trains_the_world_model_alone_once_a_step(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, update = [], VideoRun.update_models
    monkeypatch.setattr(VideoRun, "update_models", lambda run: (update(run), steps.append(run.step)))
    result = learn(tmp_path, "run", source)
    assert result.code == 0, result.error
    assert steps == list(range(1, 13))
    tags = {tag for line in metrics(tmp_path, "run") for tag in line}
    assert "WorldModel/total_loss" in tags
    assert not any(tag.startswith(("ActorCritic", "sample", "environment")) for tag in tags)
    assert (tmp_path / "outputs" / "run" / "ckpt" / "world_model_12.pth").is_file()
    assert any((tmp_path / "outputs" / "run" / "videos").iterdir())
    assert "no agent that acts" in evaluate(tmp_path, "-run_name=run").error
    assert "no agent that acts" in evaluate(tmp_path, "-run_name=run", "-world_model").error


@pytest.mark.parametrize("overrides", [(), (GIT_STORM,)])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, source: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    assert learn(whole, "run", source, *overrides).code == 0
    update = VideoRun.update_models

    def interrupted(run: VideoRun) -> None:
        update(run)
        if run.step in (3, 7):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(VideoRun, "update_models", interrupted)
    codes = [learn(parts, "run", source, *overrides).code for _ in range(3)]
    assert codes == [NOT_FINISHED, NOT_FINISHED, 0]
    assert differences(whole, parts) == []


def test_a_run_is_not_continued_on_other_clips(tmp_path: Path) -> None:
    source = make_clips(tmp_path / "clips")
    assert learn(tmp_path, "run", source).code == 0
    np.savez(source / "new.npz", video=clip(9), actions=np.zeros(LENGTH, int))
    for number in range(5):
        (source / f"{number}.npz").rename(source / f"other_{number}.npz")
    result = learn(tmp_path, "run", source, "JointTrainAgent.SampleMaxSteps=14")
    assert result.code == 2 and "not those that the run began with" in result.error


def test_a_run_is_not_continued_on_clips_that_took_the_names_of_others(tmp_path: Path) -> None:
    source = make_clips(tmp_path / "clips")
    assert learn(tmp_path, "run", source).code == 0
    for number in range(5):
        np.savez(source / f"{number}.npz", video=clip(9 - number), actions=np.zeros(LENGTH, int))
    result = learn(tmp_path, "run", source, "JointTrainAgent.SampleMaxSteps=14")
    assert result.code == 2 and "not those that the run began with" in result.error


def test_clips_without_actions_have_one_constant_action(tmp_path: Path) -> None:
    source = make_clips(tmp_path / "clips", actions=False)
    clips = clips_of(source)
    assert clips.spaces.action.size == 1 and not clips.sample(2, 8, torch.Generator()).action.any()
    assert learn(tmp_path, "run", source).code == 0


def test_mistakes_are_named(tmp_path: Path, source: Path) -> None:
    assert "trajectory_path" in train(tmp_path, "run", "Task=VideoPrediction").error
    assert "EvalEverySteps" in learn(tmp_path, "run", source, "JointTrainAgent.EvalEverySteps=5").error
    assert "does not exist" in learn(tmp_path, "run", tmp_path / "nothing.npz").error


def test_clips_hold_a_window_whatever_is_imagined(tmp_path: Path, source: Path) -> None:
    imagined = f"JointTrainAgent.ImagineBatchLength={LENGTH + 1}"
    assert learn(tmp_path, "run", source, imagined, "Models.WorldModel.TransformerMaxLength=99").code == 0
    window = f"JointTrainAgent.BatchLength={LENGTH + 1}"
    long = (window, "JointTrainAgent.BufferWarmUp=80", "Models.WorldModel.TransformerMaxLength=99")
    assert str(LENGTH + 1) in learn(tmp_path, "other", source, *long).error


def test_windows_are_spread_to_the_last_of_very_many(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[torch.Tensor] = []
    clips = clips_of(source)
    clips.lengths = torch.tensor([20_000_011])
    monkeypatch.setattr(clips, "_windows", lambda batch, length: numbers.append(batch))
    list(clips.spread(5, 8, 2))
    assert [int(number) for number in torch.cat(numbers)][::4] == [0, 20_000_003]
