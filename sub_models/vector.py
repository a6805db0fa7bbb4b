"""Vector encoder and decoder (DreamerV3, "Robust predictions"): perceptrons on symlog observations."""

from __future__ import annotations

from torch import Tensor, nn

from configuration.schema import WorldModelConfig
from sub_models.functions_losses import symlog
from sub_models.mlp import mlp
from sub_models.precision import compute_dtype


class VectorEncoder(nn.Module):
    """Vectors to logits of the posterior.

    Args:
        config: the WorldModel section. shape: of a vector, (n,). latent_size: K·C.
    """

    def __init__(self, config: WorldModelConfig, shape: tuple[int, ...], latent_size: int) -> None:
        super().__init__()
        self.layers = mlp(shape[0], config.VectorHiddenDim, config.VectorLayers, latent_size, config.NormEps)

    def forward(self, observation: Tensor) -> Tensor:
        """float32 (M, n) → (M, K·C)."""
        return self.layers(symlog(observation).to(compute_dtype(observation.device)))


class VectorDecoder(nn.Module):
    """Latents to vectors, in symlog space.

    Args:
        config: the WorldModel section. shape: of a vector, (n,). latent_size: K·C.
    """

    def __init__(self, config: WorldModelConfig, shape: tuple[int, ...], latent_size: int) -> None:
        super().__init__()
        self.layers = mlp(latent_size, config.VectorHiddenDim, config.VectorLayers, shape[0], config.NormEps)

    def forward(self, latent: Tensor) -> Tensor:
        """(M, K·C) → (M, n), symlog of the observation."""
        return self.layers(latent)

    @staticmethod
    def target(observation: Tensor) -> Tensor:
        """float32 (..., n) → symlog of it."""
        return symlog(observation)
