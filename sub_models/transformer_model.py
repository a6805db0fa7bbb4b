"""STORM's sequence model: mixes latents with actions and summarises the past causally."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configuration.schema import WorldModelConfig
from configuration.spaces import ActionSpec
from sub_models.attention_blocks import CausalBlock, KeyValueCache, MultiHeadAttention
from sub_models.fast_forms import attend
from sub_models.functions_losses import one_hot
from sub_models.linear import Linear


def encode_action(action: Tensor, spec: ActionSpec, dtype: torch.dtype) -> Tensor:
    """Return actions as vectors (..., size): one-hot of a class, a point of the box as it is."""
    return one_hot(action, spec.size, dtype) if spec.kind == "discrete" else action.to(dtype)


class MixerOutput(nn.Module):
    """The second half of every state mixer: LN → ReLU → linear → LN (STORM, eq. 2)."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(width, eps=norm_eps)
        self.output = Linear(width, width, bias=False)
        self.output_norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_norm(self.output(F.relu(self.input_norm(x))))


class ConcatMixer(nn.Module):
    """One token per step out of its latent beside its action (STORM, eq. 2).

    Args:
        config: the WorldModel section. action_size: numbers of an encoded action.
    """

    def __init__(self, config: WorldModelConfig, action_size: int) -> None:
        super().__init__()
        width = config.TransformerHiddenDim
        self.input = Linear(config.NumLatents * config.NumClasses + action_size, width, bias=False)
        self.mlp = MixerOutput(width, config.NormEps)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """latent (B, T, K·C), action (B, T, size) → (B, T, D)."""
        return self.mlp(self.input(torch.cat([latent, action], dim=-1)))


class AttentionMixer(nn.Module):
    """One token per step by attention over its K latents and its action (GIT-STORM, state mixer).

    The K latents and the action are K + 1 tokens of width D. "concat_attention": all attend to all,
    and their mean goes on; "latent_attention": the action's token attends to the latents. No token
    sees another step.

    Args:
        config: the WorldModel section. action_size: numbers of an encoded action.
    """

    def __init__(self, config: WorldModelConfig, action_size: int) -> None:
        super().__init__()
        width = config.TransformerHiddenDim
        self.num_latents, self.action_queries = config.NumLatents, config.StateMixer == "latent_attention"
        self.latent = Linear(config.NumClasses, width, bias=False)
        self.action = Linear(action_size, width, bias=False)
        self.position = nn.Embedding(config.NumLatents + 1, width)
        self.norm = nn.LayerNorm(width, eps=config.NormEps)
        heads = config.TransformerNumHeads
        self.attention = MultiHeadAttention(width, heads, False, attention_dropout=0.0, causal=False)
        self.mlp = MixerOutput(width, config.NormEps)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """latent (B, T, K·C), action (B, T, size) → (B, T, D)."""
        latents = self.latent(latent.unflatten(-1, (self.num_latents, -1)))
        x = torch.cat([latents, self.action(action).unsqueeze(-2)], dim=-2)
        x = (x + self.position.weight.to(x.dtype)).flatten(0, 1)  # (B·T, K + 1, D): one step a row
        query, key, value = self.attention.project(self.norm(x).to(x.dtype))
        if self.action_queries:
            x, query, key, value = x[:, -1:], query[:, :, -1:], key[:, :, :-1], value[:, :, :-1]
        seen = attend(query, key, value, causal=False, dropout=0.0).mean(2, keepdim=True)
        mixed = x.mean(1) + self.attention.join(seen)[:, 0]
        return self.mlp(mixed.unflatten(0, latent.shape[:2]))


MIXERS = {"concat": ConcatMixer, "concat_attention": AttentionMixer, "latent_attention": AttentionMixer}


class SequenceModel(nn.Module):
    """Causal transformer: hidden h_t summarises z_≤t and a_≤t (STORM, eq. 3).

    Args:
        config: the WorldModel section. actions: what an action is.
    """

    def __init__(self, config: WorldModelConfig, actions: ActionSpec) -> None:
        super().__init__()
        width = config.TransformerHiddenDim
        self.actions = actions
        self.mixer = MIXERS[config.StateMixer](config, actions.size)
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
        """Return one empty key/value cache per block, for at most `capacity` tokens."""
        assert capacity <= self.position.num_embeddings, "more tokens than TransformerMaxLength"
        return [KeyValueCache(capacity) for _ in self.blocks]

    def forward(self, latent: Tensor, action: Tensor, cache: list[KeyValueCache] | None = None) -> Tensor:
        """Return the hidden states of a chunk; with a cache the chunk continues what it holds.

        Args:
            latent: (B, T, K·C) float. action: int64 (B, T) or float32 (B, T, n).
            cache: from `make_cache`, extended in place.

        Returns:
            (B, T, D).
        """
        start = cache[0].length if cache is not None else 0
        x = self.mixer(latent, encode_action(action, self.actions, latent.dtype))
        x = self.norm(x + self.position.weight[start : start + x.shape[1]].to(x.dtype))
        for index, block in enumerate(self.blocks):
            x = block(x, cache[index] if cache is not None else None)
        return x
