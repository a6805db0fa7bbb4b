"""Predictions of held-out clips: only what follows the context counts, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_video_metrics import TinyI3D, TinyLPIPS, saved
from tests_support import CPU, random_batch, small_models
from tiny_runs import GIT_STORM, Result, evaluate, train

from evaluation import video_report
from evaluation.video_metrics import Network, frechet_distance
from evaluation.video_prediction import COPY, Predicted, copies, judge, predictors_of
from evaluation.video_report import strip
from utils import UserError

CONTEXT, HORIZON, LENGTH = 3, 4, 20
SHORT = (
    f"VideoPrediction.Context={CONTEXT}",
    f"VideoPrediction.Horizon={HORIZON}",
    "VideoPrediction.Clips=6",
)


# --- judging


def test_the_context_is_never_counted(tmp_path: Path) -> None:
    batch = random_batch(6, CONTEXT + HORIZON)
    batch.observation[:, CONTEXT:] = 100
    i3d = {"fvd": Network("fvd_network", saved(TinyI3D(), tmp_path / "i3d.pt"), CPU).features}
    world_model, _ = small_models()

    def judged(predictors: dict) -> dict:
        return judge(predictors, iter([batch]), CONTEXT, 6, features=i3d).results

    def right(batch: object) -> Predicted:
        return Predicted(batch.observation[:, CONTEXT:].numpy())

    before = judged({"right": right})["right"]
    assert before["mse"] == 0 and before["ssim"] == 1 and before["psnr"] == 100
    assert before["fvd"] == pytest.approx(0, abs=1e-9)
    batch.observation[:, :CONTEXT] = 7  # whatever is in the context
    assert judged({"right": right})["right"] == before
    found = judged({COPY: copies(CONTEXT), **dict(predictors_of("run", world_model, [], CONTEXT, 0))})
    assert found[COPY]["mse"] == pytest.approx((93 / 255) ** 2)
    assert found[COPY]["fvd"] == pytest.approx(3 * (93 * HORIZON) ** 2)
    assert all(len(values) == HORIZON for each in found.values() for values in each["by_horizon"].values())


def test_groups_are_judged_apart_and_averaged(tmp_path: Path) -> None:
    i3d = {"fvd": Network("fvd_network", saved(TinyI3D(), tmp_path / "i3d.pt"), CPU).features}
    batches = [random_batch(4, CONTEXT + HORIZON, seed) for seed in range(3)]

    def predict(batch: object) -> Predicted:
        shift = 1 + next(n for n, each in enumerate(batches) if each is batch)
        return Predicted(np.clip(batch.observation[:, CONTEXT:].numpy(), 0, 200) + np.uint8(shift))

    for batch in batches:
        batch.observation.clamp_(max=200)
    found = judge({"x": predict}, iter(batches), CONTEXT, 4, features=i3d)
    expected = np.mean([3 * (shift * HORIZON) ** 2 for shift in (1, 2, 3)])
    assert found.windows == 12 and found.results["x"]["fvd"] == pytest.approx(expected)
    assert len(found.truth) == len(found.shown["x"]) == 4
    with pytest.raises(UserError, match="one held-out window"):
        judge({}, iter([random_batch(1, CONTEXT + HORIZON)]), CONTEXT, 4, features=i3d)


def test_features_of_frames_are_those_of_all_windows_of_a_group() -> None:
    batches = [random_batch(4, CONTEXT + HORIZON, seed) for seed in range(2)]

    def frames(video: np.ndarray) -> np.ndarray:
        return video[:, [0, -1]].mean((2, 3))  # (B, 2, 3)

    found = judge({COPY: copies(CONTEXT)}, iter(batches), CONTEXT, 4, features={"frames": frames})
    expected = []
    for batch in batches:
        truth = batch.observation.numpy()
        pair = truth[:, [CONTEXT, -1]], truth[:, [CONTEXT - 1, CONTEXT - 1]]
        expected.append(frechet_distance(*(each.mean((2, 3)).reshape(8, 3) for each in pair)))
    assert found.results[COPY]["frames"] == pytest.approx(np.mean(expected))


def test_a_strip_shows_windows_that_lie_apart() -> None:
    batch = random_batch(9, CONTEXT + HORIZON)
    batch.observation[:] = 20 * torch.arange(9)[:, None, None, None, None]
    found = judge({COPY: copies(CONTEXT)}, iter([batch]), CONTEXT, 9)
    for windows, shown in ((1, [80]), (3, [20, 80, 140]), (20, list(range(0, 180, 20)))):
        pictures = [axes.get_images()[0].get_array() for axes in strip(found, CONTEXT, windows).axes]
        assert [int(picture[5, 5, 0]) for picture in pictures] == shown
        assert [int(picture[-5, -5, 0]) for picture in pictures] == shown  # the prediction's


def test_plans_are_tried_on_the_same_weights() -> None:
    world_model, _ = small_models("GITSTORM")
    assert [*dict(predictors_of("run", world_model, [], CONTEXT, 0))] == ["run 1/1/1"]
    predictors = dict(predictors_of("run", world_model, [(1, 1, 1), (2, 2, 1)], CONTEXT, 0))
    found = judge(predictors, iter([random_batch(3, CONTEXT + HORIZON)]), CONTEXT, 3).results
    assert [*found] == ["run 1/1/1", "run 2/2/1"]
    assert found["run 1/1/1"]["prior_perplexity"] != found["run 2/2/1"]["prior_perplexity"]


def test_a_prior_that_knows_nothing_is_as_perplexed_as_there_are_classes() -> None:
    world_model, _ = small_models()
    torch.nn.init.zeros_(world_model.prior.head.weight)
    torch.nn.init.zeros_(world_model.prior.head.bias)
    predictors = dict(predictors_of("run", world_model, [], CONTEXT, 0))
    found = judge(predictors, iter([random_batch(64, CONTEXT + HORIZON)]), CONTEXT, 3).results["run"]
    classes = world_model.config.NumClasses
    assert found["prior_perplexity"] == pytest.approx(classes, rel=1e-5)
    assert 0.95 * classes < found["code_perplexity"] <= classes


# --- the command


def make_clips(folder: Path, count: int = 5) -> Path:
    folder.mkdir()
    for number in range(count):
        video = np.full((LENGTH, 16, 16, 3), 40 * number, np.uint8)
        video[..., 1] = 10 * np.arange(LENGTH)[:, None, None]
        np.savez(folder / f"{number}.npz", video=video, actions=np.arange(LENGTH) % 3)
    return folder


def learn(folder: Path, name: str, source: Path, *overrides: str) -> Result:
    return train(
        folder, name, "Task=VideoPrediction", f"BasicSettings.trajectory_path={source}",
        "JointTrainAgent.SampleMaxSteps=6", "VideoPrediction.HeldOutShare=0.4", *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With runs "storm", "git" and, of another seed, "other"."""
    folder = tmp_path_factory.mktemp("judged")
    source = make_clips(folder / "clips")
    for name, *overrides in (["storm"], ["git", GIT_STORM], ["other", "BasicSettings.Seed=1"]):
        result = learn(folder, name, source, *overrides)
        assert result.code == 0, result.error
        assert f"-run_name={name} -video" in result.out
    return folder


def judged(folder: Path, *arguments: str) -> Result:
    return evaluate(folder, "-video", *SHORT, *arguments)


def newest(folder: Path, run: str, pattern: str) -> Path:
    """Return the last report of a run."""
    paths = (folder / "outputs/eval_result" / run).glob(f"{pattern}.json")
    return max(paths, key=lambda path: path.stat().st_mtime)


class TinyFrameNetwork:
    def __init__(self, device: torch.device) -> None: ...

    def features(self, video: np.ndarray) -> np.ndarray:
        return video.mean((2, 3))


def test_held_out_clips_are_judged_and_pictured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_report, "FrameNetwork", TinyFrameNetwork)
    i3d, lpips = saved(TinyI3D(), tmp_path / "i3d.pt"), saved(TinyLPIPS(), tmp_path / "lpips.pt")
    networks = (f"-fvd_network={i3d}", f"-lpips_network={lpips}", "-frame_features")
    runs = ("-run_name=git", "-beside=storm", "-plans=1/1/1,2/2/1")
    result = judged(folder, *runs, *networks)
    assert result.code == 0, result.error
    path = newest(folder, "git", "video-6-seed_0*_1-1-1_2-2-1_beside_storm")
    report = json.loads(path.read_text())
    run = json.loads((folder / "outputs/git/run.json").read_text())
    assert report["clips"] == list(run["held_out"]) and len(report["clips"]) == 2
    assert [*report["predictors"]] == [COPY, "git 1/1/1", "git 2/2/1", "storm"]
    assert report["windows"] == 6
    for name, found in report["predictors"].items():
        assert name in result.out
        measures = {"mse", "psnr", "ssim", "lpips", *({"prior_perplexity"} if name != COPY else ())}
        assert found["by_horizon"].keys() == measures
        assert {len(values) for values in found["by_horizon"].values()} == {HORIZON}
        assert min(found["fvd"], found["frechet_efficientnet_lite0"]) >= 0
        assert name == COPY or 1 <= found["code_perplexity"] <= 5
    for ending in (".png", "_strip.png"):
        with Image.open(path.with_name(path.stem + ending)) as picture:
            assert min(picture.size) > 200
    again = judged(folder, *runs, *networks)
    same = json.loads(path.read_text())
    assert again.code == 0
    for each in (report, same):
        for found in each["predictors"].values():
            del found["seconds"]
    assert same == report


def test_another_seed_draws_anew_on_the_same_clips(folder: Path) -> None:
    reports = []
    for seed in (0, 5):
        more = (f"-seed={seed}", "VideoPrediction.Clips=2", "VideoPrediction.Groups=4")
        assert judged(folder, "-run_name=storm", *more).code == 0
        path = newest(folder, "storm", f"video-6-seed_{seed}*Clips_2*")
        reports.append(json.loads(path.read_text()))
    one, other = reports
    assert one["clips"] == other["clips"] and one["windows"] == 8 and one["group"] == 2
    assert one["predictors"][COPY] == other["predictors"][COPY]
    assert one["predictors"]["storm"]["mse"] != other["predictors"]["storm"]["mse"]


def test_mistakes_are_named(folder: Path) -> None:
    assert (
        "at most JointTrainAgent.BatchLength=8"
        in judged(folder, "-run_name=storm", "VideoPrediction.Horizon=6").error
    )
    assert (
        "other clips were held out: BasicSettings.Seed is 1, not 0"
        in judged(folder, "-run_name=storm", "-beside=other").error
    )
    assert "two runs are named storm" in judged(folder, "-run_name=storm", "-beside=storm").error
    assert "none of the runs has a MaskGIT" in judged(folder, "-run_name=storm", "-plans=1/1/1").error
    assert "-greedy: does not go with -video" in judged(folder, "-run_name=storm", "-greedy").error
    assert "-plans: goes with -video only" in evaluate(folder, "-run_name=git", "-plans=1/1/1").error
    assert "Evaluation or VideoPrediction" in judged(folder, "-run_name=git", "Models.Agent.Gamma=1").error
    elsewhere = f"-ckpt_dir={folder / 'outputs/storm/ckpt'}"  # of the first run alone
    assert judged(folder, "-run_name=storm", "-beside=git", elsewhere).code == 0
    assert "-plans=4/4" in judged(folder, "-run_name=git", "-plans=4/4").error
    assert "at most 4 groups" in judged(folder, "-run_name=git", "-plans=5/5/1").error
    assert "HeldOutShare" in judged(folder, "-run_name=storm", "VideoPrediction.HeldOutShare=0.5").error
    assert "-fvd_network=none.pt" in judged(folder, "-run_name=storm", "-fvd_network=none.pt").error


def test_clips_that_may_have_been_trained_on_are_refused(tmp_path: Path) -> None:
    source = make_clips(tmp_path / "clips")
    assert learn(tmp_path, "run", source).code == 0
    run = json.loads((tmp_path / "outputs/run/run.json").read_text())
    for number in range(9):  # so that others are held out now
        np.savez(
            source / f"new_{number}.npz",
            video=np.zeros((LENGTH, 16, 16, 3), np.uint8),
            actions=np.zeros(LENGTH, int),
        )
    error = judged(tmp_path, "-run_name=run").error
    assert "was not held out when it was trained" in error
    assert not any(f"{name} was not held out" in error for name in run["held_out"])


def test_a_clip_that_took_the_name_of_a_held_out_one_is_refused(tmp_path: Path) -> None:
    source = make_clips(tmp_path / "clips")
    assert learn(tmp_path, "run", source).code == 0
    names = [f"{number}.npz" for number in range(5)]
    for name in names:
        (source / name).rename(source / f"was_{name}")
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        (source / f"was_{other}").rename(source / name)
    result = judged(tmp_path, "-run_name=run")
    assert result.code == 2 and "was not held out when it was trained" in result.error


def test_a_run_that_played_a_game_has_no_held_out_clips(tmp_path: Path) -> None:
    short = ("JointTrainAgent.SampleMaxSteps=10", "JointTrainAgent.BufferWarmUp=8")
    assert train(tmp_path, "run", "BasicSettings.env_name=Diagnostic/Catch-v0", *short).code == 0
    assert "was not trained on clips" in judged(tmp_path, "-run_name=run").error
