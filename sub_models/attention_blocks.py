"""Multi-head attention, the two block types, and the key/value cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sub_models.fast_forms import attend, attend_to_cached
from sub_models.linear import Linear

ROOM_STEP = 16  # tokens: a softmax over a multiple of it fills the CPU's vectors


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """Return the tokens (..., n, width) of (..., T, width) at positions (..., n) int64, which broadcast."""
    index = positions.unsqueeze(-1).expand(*tokens.shape[:-2], -1, tokens.shape[-1])
    return tokens.gather(-2, index)


class KeyValueCache:
    """Keys and values that one attention layer has seen, in memory that grows by half when it is full.

    On a CPU they are kept in float32, in which products of single queries are faster than in bfloat16.

    Args:
        capacity: most tokens it can hold.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys: Tensor | None = None  # (B, heads, room, head_dim), 0 where nothing is yet
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, heads, T, head_dim) keys and values; return all of them so far."""
        end = self.length + keys.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} tokens cannot hold {end}"
        room = 0 if self.keys is None else self.keys.shape[2]
        if end > room:
            room = -(-min(end + end // 2, self.capacity) // ROOM_STEP) * ROOM_STEP
            self.keys, self.values = self._move(self.keys, keys, room), self._move(self.values, values, room)
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _move(self, old: Tensor | None, like: Tensor, room: int) -> Tensor:
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        new = like.new_zeros((*like.shape[:2], room, like.shape[3]), dtype=dtype)
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new


class MultiHeadAttention(nn.Module):
    """Self-attention over x (B, T, width); with a cache also over the tokens that it holds.

    Args:
        width: of input and output. num_heads: divides width.
        bias: whether the four projections have one.
        attention_dropout: on the attention probabilities, in training.
        causal: whether a token sees only itself and earlier ones.
    """

    def __init__(
        self, width: int, num_heads: int, bias: bool, attention_dropout: float, causal: bool
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.attention_dropout = attention_dropout
        self.query_key_value = Linear(width, 3 * width, bias=bias)
        self.output = Linear(width, width, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values of x (B, T, width), (B, heads, T, head_dim) each."""
        parts = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1))
        return parts.permute(2, 0, 3, 1, 4).unbind()

    def join(self, mixed: Tensor) -> Tensor:
        """Return the output (B, T, width) of what the heads found, (B, heads, T, head_dim)."""
        return self.output(mixed.transpose(1, 2).flatten(2))

    def forward(
        self, x: Tensor, cache: KeyValueCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Tokens x (B, T, width) → the same; given positions (B, n) int64, what these tokens find alone.

        softmax(query·keysᵀ/√d)·values of each head, joined; `attend` chooses how it is computed.
        """
        query, key, value = self.project(x)
        if positions is not None:
            query = take(query, positions.unsqueeze(1))
        dropout = self.attention_dropout if self.training else 0.0
        if cache is not None:
            key, value = cache.append(key, value)
        if cache is not None and x.shape[1] == 1 and x.device.type == "cpu":
            mixed = attend_to_cached(query, cache.keys, cache.values, cache.length, dropout)
        else:
            mixed = attend(query, key.to(query.dtype), value.to(query.dtype), self.causal, dropout)
        return self.join(mixed)


class CausalBlock(nn.Module):
    """Post-norm transformer block of STORM's sequence model (STORM, eq. 3, appendix A).

    x ← LN(x + dropout(attention(x))), then x ← LN(x + dropout(W₂ relu(W₁ x))).
    """

    def __init__(
        self, width: int, num_heads: int, feed_forward_width: int, dropout: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, num_heads, False, dropout, causal=True)
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.expand = Linear(width, feed_forward_width)
        self.contract = Linear(feed_forward_width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, cache)))
        return self.feed_forward_norm(x + self.dropout(self.contract(F.relu(self.expand(x)))))


class BidirectionalBlock(nn.Module):
    """Pre-norm transformer block of MaskGIT: x ← x + attention(LN(x)), x ← x + MLP(LN(x))."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        dropout: float,
        attention_dropout: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.attention = MultiHeadAttention(width, num_heads, True, attention_dropout, causal=False)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_eps)
        self.expand = Linear(width, mlp_width)
        self.contract = Linear(mlp_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Tokens x (B, T, width) → the same; given positions (B, n) int64, those tokens alone."""
        found = self.attention(self.attention_norm(x), positions=positions)
        x = (x if positions is None else take(x, positions)) + self.dropout(found)
        return x + self.dropout(self.contract(F.gelu(self.expand(self.mlp_norm(x)))))
