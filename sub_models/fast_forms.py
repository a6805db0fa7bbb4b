"""Faster forms of plain formulas. Each docstring gives the plain one; tests hold that they agree."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sub_models.convolutions import convolve
from sub_models.linear import linear as linear_product


def convolution_then_norm(
    x: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d, scale: float | None = None
) -> Tensor:
    """Return norm(convolution(scale · x)); the convolution has no bias.

    `scale` is taken into the weights, which are smaller than x. In evaluation mode so is the
    BatchNorm, which leaves one pass over the data instead of two.
    """
    weight = convolution.weight if scale is None else convolution.weight * scale
    if norm.training:
        return norm(convolve(x, weight))
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * gain
    weight = weight * gain[:, None, None, None]
    return F.conv2d(x, weight, bias, convolution.stride, convolution.padding)


def linear_of_maps(maps: Tensor, linear: nn.Linear) -> Tensor:
    """Return linear(maps.flatten(1)) for feature maps (M, C, h, w) that lie channels-last in memory.

    The weights, which are stored for channel-major features, are turned to match the maps: they are
    smaller than the maps.
    """
    weight = linear.weight.unflatten(1, maps.shape[1:]).permute(0, 2, 3, 1).flatten(1)
    return linear_product(maps.permute(0, 2, 3, 1).flatten(1), weight, linear.bias)


def maps_of_linear(x: Tensor, linear: nn.Linear, shape: tuple[int, int, int]) -> Tensor:
    """Return linear(x) as maps (M, *shape) that lie channels-last in memory; the linear has no bias.

    The weights, which are stored for channel-major features, are turned to match the maps: convolutions
    whose maps and weights lie alike are faster.
    """
    channels, *sides = shape
    weight = linear.weight.unflatten(0, shape).permute(1, 2, 0, 3).flatten(0, 2)
    return linear_product(x, weight).unflatten(1, (*sides, channels)).permute(0, 3, 1, 2)


def linear_of_embeddings(tokens: Tensor, table: nn.Embedding, linear: nn.Linear) -> Tensor:
    """Return W_e·table(tokens) + bias, W_e being the columns of `linear` that the embedding meets.

    Together with `linear_of_condition` this is linear(concat(table(tokens), condition)). The table, which
    is smaller than the tokens, is projected before the look-up.
    """
    projected = linear_product(table.weight, linear.weight[:, : table.embedding_dim], linear.bias)
    return F.embedding(tokens, projected)


def linear_of_condition(condition: Tensor, table: nn.Embedding, linear: nn.Linear) -> Tensor:
    """Return W_c·condition, W_c being the columns of `linear` after those of the embedding."""
    return linear_product(condition, linear.weight[:, table.embedding_dim :])


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return what each query sees, bool (queries, keys), the last query aligned with the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def products_are_faster(query: Tensor) -> bool:
    """Whether attention with queries like this one is faster as plain products than fused."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def fused_gradients_are_biased(query: Tensor) -> bool:
    """Whether a fused kernel may give gradients that drive queries and keys to ever larger scores.

    Where a head sees one key alone, the true gradient of its scores is 0; a fused kernel's is the rounding
    error of the output. With dropout that error can have a consistent sign, and attention can fail in the
    end (docs/learning.md, "Attention").
    """
    return torch.is_grad_enabled() and query.dtype in (torch.bfloat16, torch.float16)


def attend(query: Tensor, keys: Tensor, values: Tensor, causal: bool, dropout: float) -> Tensor:
    """Return dropout(softmax(query·keysᵀ/√d + mask))·values, (B, heads, T, d) each.

    Two products and a softmax compute it for gradients in less than float32, as fused ones can be biased,
    and without gradients on a CPU in bfloat16, except for the causal chunk of a single sequence. PyTorch's
    fused kernel computes the rest, with its own causal mask if there are as many queries as keys.
    """
    queries, seen = query.shape[2], keys.shape[2]
    masked = causal and queries > 1
    faster = products_are_faster(query) and (not masked or len(query) > 1)
    if faster or fused_gradients_are_biased(query):
        visible = causal_mask(queries, seen, query.device) if masked else None
        return attend_by_products(query, keys, values, visible, dropout)
    mask = causal_mask(queries, seen, query.device) if masked and seen != queries else None
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=masked and seen == queries
    )


def softmax(scores: Tensor) -> Tensor:
    """Return scores.softmax(-1), in float32 but for bfloat16 where a CPU is faster without.

    On a CPU PyTorch takes what a row has beyond vectors of 32 bfloat16 numbers one by one; as float32
    a vector holds 16.
    """
    length = scores.shape[-1]
    is_even = scores.device.type == "cpu" and (length < 16 or length % 32 == 0)
    widen = scores.dtype == torch.float16 or (scores.dtype == torch.bfloat16 and not is_even)
    return scores.softmax(-1, dtype=torch.float32 if widen else None).to(scores.dtype)


def attend_by_products(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, dropout: float
) -> Tensor:
    """Return `scaled_dot_product_attention` as two products and a softmax, (B, heads, T, d) each.

    Args:
        visible: bool (queries, keys), or None if all keys are.
    """
    bias = query.new_zeros(() if visible is None else visible.shape)
    if visible is not None:
        bias = bias.masked_fill(~visible, -math.inf)
    scores = torch.baddbmm(bias, query.flatten(0, 1), keys.flatten(0, 1).mT, alpha=query.shape[-1] ** -0.5)
    probabilities = F.dropout(softmax(scores), dropout)
    return torch.bmm(probabilities, values.flatten(0, 1)).unflatten(0, query.shape[:2])


def attend_to_cached(query: Tensor, keys: Tensor, values: Tensor, used: int, dropout: float) -> Tensor:
    """Return dropout(softmax(query·keysᵀ/√d))·values of one query and the first `used` keys, on a CPU.

    query (B, heads, 1, d); keys, values float32 (B, heads, room, d), what is unused finite.
    """
    with torch.autocast("cpu", enabled=False):
        scores = torch.bmm(query.flatten(0, 1).float() * query.shape[-1] ** -0.5, keys.flatten(0, 1).mT)
        scores[..., used:] = -math.inf
        probabilities = F.dropout(scores.softmax(-1), dropout)
        mixed = torch.bmm(probabilities, values.flatten(0, 1)).unflatten(0, query.shape[:2])
    return mixed.to(query.dtype)
