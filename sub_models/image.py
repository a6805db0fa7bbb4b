"""Image encoder and decoder (STORM, appendix A): strided 4×4 convolutions with BatchNorm."""

from __future__ import annotations

import functools
from itertools import pairwise
from math import log2

import torch
from torch import Tensor, nn

from configuration.schema import WorldModelConfig
from sub_models.convolutions import ConvTranspose2d
from sub_models.fast_forms import convolution_then_norm, linear_of_maps, maps_of_linear
from sub_models.linear import Linear
from sub_models.precision import compute_dtype

CODE_SIDE = 4  # side of the feature map between encoder and decoder
PIXEL_MAX = 255.0


def stage_channels(image_size: int, stem_channels: int) -> list[int]:
    """Return the channels after each halving of the image down to 4×4: the stem's, doubled each time."""
    return [stem_channels * 2**i for i in range(round(log2(image_size // CODE_SIDE)))]


class ImageEncoder(nn.Module):
    """Images to logits of the posterior: convolutions halve the side until it is 4; one linear layer.

    Args:
        config: the WorldModel section. shape: of an image, (side, side, channels), side 4·2^n.
        latent_size: K·C.
    """

    def __init__(self, config: WorldModelConfig, shape: tuple[int, ...], latent_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side, _, channels_in = shape
        for channels in stage_channels(side, config.StemChannels):
            layers += [
                nn.Conv2d(channels_in, channels, kernel_size=4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels, eps=config.NormEps),
                nn.ReLU(inplace=True),
            ]
            channels_in = channels
        self.layers = nn.Sequential(*layers)
        self.head = Linear(channels_in * CODE_SIDE**2, latent_size)

    def forward(self, observation: Tensor) -> Tensor:
        """uint8 (M, side, side, channels) → (M, K·C). The division by 255 is left to the first weights."""
        pixels = observation.permute(0, 3, 1, 2)
        x = pixels.to(compute_dtype(pixels.device))
        for index in range(0, len(self.layers), 3):
            convolution, norm, activation = self.layers[index : index + 3]
            x = activation(convolution_then_norm(x, convolution, norm, 1 / PIXEL_MAX if index == 0 else None))
        return linear_of_maps(x, self.head)


class ImageDecoder(nn.Module):
    """Latents to images: the encoder mirrored, without an output activation.

    Args:
        config: the WorldModel section. shape: of an image, (side, side, channels), side 4·2^n.
        latent_size: K·C.
    """

    def __init__(self, config: WorldModelConfig, shape: tuple[int, ...], latent_size: int) -> None:
        super().__init__()
        side, _, image_channels = shape
        channels = stage_channels(side, config.StemChannels)[::-1]
        self.code_shape = (channels[0], CODE_SIDE, CODE_SIDE)
        self.project = Linear(latent_size, channels[0] * CODE_SIDE**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0], eps=config.NormEps), nn.ReLU(inplace=True)]
        for channels_in, channels_out in pairwise(channels):
            layers += [
                ConvTranspose2d(channels_in, channels_out, bias=False),
                nn.BatchNorm2d(channels_out, eps=config.NormEps),
                nn.ReLU(inplace=True),
            ]
        layers.append(ConvTranspose2d(channels[-1], image_channels))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """(M, K·C) → (M, channels, side, side), about [0, 1]."""
        return self.layers(maps_of_linear(latent, self.project, self.code_shape))

    @staticmethod
    def target(observation: Tensor) -> Tensor:
        """uint8 (..., side, side, channels) → float32 (..., channels, side, side) in [0, 1]."""
        return (observation.float() / PIXEL_MAX).movedim(-1, -3)


def moving_pixels(pictures: Tensor, threshold: float) -> Tensor:
    """Return where pictures are farther than `threshold` from their mean in some channel.

    Args:
        pictures: uint8 (B, L, H, W, C). threshold: of the brightest pixel.

    Returns:
        bool (B, L, 1, H, W): of a fixed camera the pixels of what moves.
    """
    mean, distance = pictures.float().mean((0, 1)), threshold * PIXEL_MAX
    least = (mean - distance).ceil().clamp(0, PIXEL_MAX).to(torch.uint8)
    most = (mean + distance).floor().clamp(0, PIXEL_MAX).to(torch.uint8)
    far = (pictures < least) | (pictures > most)
    return functools.reduce(torch.bitwise_or, far.unbind(-1)).unsqueeze(2)
