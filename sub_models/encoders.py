"""Encoders and decoders: one pair per kind of observation, behind one interface.

An encoder says what it sees (logits of the posterior), a decoder draws it (a prediction of the
observation). `Models.WorldModel.Encoder` and `.Decoder` name others as module:Class.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from configuration.schema import WorldModelConfig
from configuration.spaces import ObservationSpec
from sub_models.image import ImageDecoder, ImageEncoder
from sub_models.vector import VectorDecoder, VectorEncoder
from utils import load_class


class Encoder(Protocol):
    """What the world model needs of an encoder; made of (config, shape, latent_size)."""

    def __call__(self, observation: Tensor) -> Tensor:
        """Return logits (M, K·C) of the posterior of observations (M, *shape)."""


class Decoder(Protocol):
    """What the world model needs of a decoder; made of (config, shape, latent_size)."""

    def __call__(self, latent: Tensor) -> Tensor:
        """Return predictions (M, ...) from flat latents (M, K·C)."""

    def target(self, observation: Tensor) -> Tensor:
        """Return what a prediction is compared with, float32 (..., *prediction), of (..., *shape)."""


ENCODERS = {"image": ImageEncoder, "vector": VectorEncoder}
DECODERS = {"image": ImageDecoder, "vector": VectorDecoder}


def make_encoder(config: WorldModelConfig, spec: ObservationSpec, latent_size: int) -> nn.Module:
    """Return the encoder that the config names, or the one for this kind of observation."""
    kind = ENCODERS[spec.kind] if config.Encoder == "auto" else load_class(config.Encoder)
    return kind(config, spec.shape, latent_size)


def make_decoder(config: WorldModelConfig, spec: ObservationSpec, latent_size: int) -> nn.Module:
    """Return the decoder that the config names, or the one for this kind of observation."""
    kind = DECODERS[spec.kind] if config.Decoder == "auto" else load_class(config.Decoder)
    return kind(config, spec.shape, latent_size)
