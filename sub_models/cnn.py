"""Image encoder and decoder (STORM, appendix A): strided 4×4 convolutions with BatchNorm."""

from __future__ import annotations

from itertools import pairwise
from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configuration.schema import WorldModel as WorldModelConfig
from sub_models.precision import compute_dtype

CODE_SIDE = 4  # side of the feature map between encoder and decoder
PIXEL_MAX = 255.0


def stage_channels(image_size: int, stem_channels: int) -> list[int]:
    """Channels after each halving of the image down to 4×4: the stem's, doubled each time."""
    return [stem_channels * 2**i for i in range(round(log2(image_size // CODE_SIDE)))]


def code_size(image_size: int, stem_channels: int) -> int:
    """Numbers in the flattened 4×4 feature map."""
    return stage_channels(image_size, stem_channels)[-1] * CODE_SIDE**2


class Encoder(nn.Module):
    """Images to feature maps, halving the side until it is 4.

    Args:
        config: the WorldModel section. image_size: side in pixels, 4·2^n.
    """

    def __init__(self, config: WorldModelConfig, image_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = config.InChannels
        for channels in stage_channels(image_size, config.StemChannels):
            layers += [
                nn.Conv2d(channels_in, channels, kernel_size=4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels, eps=config.NormEps),
                nn.ReLU(inplace=True),
            ]
            channels_in = channels
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (M, channels, side, side) in 0 … 255, any dtype → feature map (M, channels, 4, 4).

        The division by 255 is left to the first weights. In evaluation mode each BatchNorm is
        folded into its convolution, which leaves one pass over the data instead of two.
        """
        x = pixels.to(compute_dtype(pixels.device))
        for index in range(0, len(self.layers), 3):
            convolution, norm, activation = self.layers[index : index + 3]
            weight = convolution.weight / PIXEL_MAX if index == 0 else convolution.weight
            if self.training:
                x = norm(F.conv2d(x, weight, None, convolution.stride, convolution.padding))
            else:
                scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                bias = norm.bias - norm.running_mean * scale
                weight = weight * scale[:, None, None, None]
                x = F.conv2d(x, weight, bias, convolution.stride, convolution.padding)
            x = activation(x)
        return x


class Decoder(nn.Module):
    """Latents to images: the encoder mirrored, without an output activation.

    Args:
        config: the WorldModel section. image_size: side in pixels, 4·2^n.
    """

    def __init__(self, config: WorldModelConfig, image_size: int) -> None:
        super().__init__()
        channels = stage_channels(image_size, config.StemChannels)[::-1]
        self.code_shape = (channels[0], CODE_SIDE, CODE_SIDE)
        self.project = nn.Linear(
            config.NumLatents * config.NumClasses, channels[0] * CODE_SIDE**2, bias=False
        )
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0], eps=config.NormEps), nn.ReLU(inplace=True)]
        for channels_in, channels_out in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(channels_in, channels_out, kernel_size=4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels_out, eps=config.NormEps),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.ConvTranspose2d(channels[-1], config.InChannels, kernel_size=4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        """(M, K·C) → (M, channels, side, side), about [0, 1]."""
        return self.layers(self.project(latent).unflatten(1, self.code_shape))
