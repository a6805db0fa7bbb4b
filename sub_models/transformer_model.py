"""STORM's sequence model: mixes latents with actions and summarises the past causally."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configuration.schema import WorldModel as WorldModelConfig
from sub_models.attention_blocks import CausalBlock, KeyValueCache
from sub_models.functions_losses import one_hot


class StateMixer(nn.Module):
    """One token per step out of its latent and its action (STORM, eq. 2).

    Args:
        latent_size: K·C. num_actions: A. width: D. norm_eps: of both LayerNorms.
    """

    def __init__(self, latent_size: int, num_actions: int, width: int, norm_eps: float) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.input = nn.Linear(latent_size + num_actions, width, bias=False)
        self.input_norm = nn.LayerNorm(width, eps=norm_eps)
        self.output = nn.Linear(width, width, bias=False)
        self.output_norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """latent (B, T, K·C) float, action (B, T) int64 → (B, T, D)."""
        joined = torch.cat([latent, one_hot(action, self.num_actions, latent.dtype)], dim=-1)
        return self.output_norm(self.output(F.relu(self.input_norm(self.input(joined)))))


class SequenceModel(nn.Module):
    """Causal transformer: hidden h_t summarises z_≤t and a_≤t (STORM, eq. 3).

    Args:
        config: the WorldModel section. num_actions: A.
    """

    def __init__(self, config: WorldModelConfig, num_actions: int) -> None:
        super().__init__()
        width = config.TransformerHiddenDim
        self.mixer = StateMixer(config.NumLatents * config.NumClasses, num_actions, width, config.NormEps)
        self.position = nn.Embedding(config.TransformerMaxLength, width)
        self.norm = nn.LayerNorm(width, eps=config.SequenceNormEps)
        self.blocks = nn.ModuleList(
            CausalBlock(
                width,
                config.TransformerNumHeads,
                config.FeedForwardRatio * width,
                config.Dropout,
                config.SequenceNormEps,
            )
            for _ in range(config.TransformerNumLayers)
        )

    def make_cache(self, capacity: int) -> list[KeyValueCache]:
        """One empty key/value cache per block, for at most `capacity` tokens."""
        assert capacity <= self.position.num_embeddings, "more tokens than TransformerMaxLength"
        return [KeyValueCache(capacity) for _ in self.blocks]

    def forward(self, latent: Tensor, action: Tensor, cache: list[KeyValueCache] | None = None) -> Tensor:
        """Hidden states of a chunk; with a cache the chunk continues what it holds.

        Args:
            latent: (B, T, K·C) float. action: (B, T) int64.
            cache: from `make_cache`, extended in place.

        Returns:
            (B, T, D).
        """
        start = cache[0].length if cache is not None else 0
        x = self.mixer(latent, action)
        x = self.norm(x + self.position.weight[start : start + x.shape[1]].to(x.dtype))
        for index, block in enumerate(self.blocks):
            x = block(x, cache[index] if cache is not None else None)
        return x
