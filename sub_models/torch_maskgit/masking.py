"""How many tokens to mask, and which: MaskGIT, section 3.1 and appendix A."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SCHEDULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cosine": lambda u, num_tokens: torch.cos(u * (math.pi / 2)),
    "uniform": lambda u, num_tokens: 1 - u,
    "log": lambda u, num_tokens: -torch.log2(u) / math.log2(num_tokens),
    "exp": lambda u, num_tokens: 1 - torch.exp2(-math.log2(num_tokens) * (1 - u)),
}


def mask_ratio(u: Tensor, schedule: str, num_tokens: int, minimum: float) -> Tensor:
    """γ(u): the share of tokens to mask.

    Args:
        u: progress in [0, 1], any shape.
        schedule: cosine, uniform, pow<d>, log or exp.
        num_tokens: K; the log and exp schedules depend on it.
        minimum: the share is clipped to [minimum, 1].

    Returns:
        float, shape of u.
    """
    if schedule.startswith("pow"):
        ratio = 1 - u ** float(schedule.removeprefix("pow"))
    else:
        ratio = SCHEDULES[schedule](u, num_tokens)
    return ratio.clamp(minimum, 1.0)


def mask_count(u: Tensor, schedule: str, num_tokens: int, minimum: float) -> Tensor:
    """n = ⌈K·γ(u)⌉, int64 in {1 … K}.

    The ceiling matters: rounding down, the fully masked input from which sampling starts
    would never be trained on with few tokens.
    """
    return torch.ceil(num_tokens * mask_ratio(u, schedule, num_tokens, minimum)).long().clamp(1, num_tokens)


def random_mask(count: Tensor, scores: Tensor) -> Tensor:
    """A uniformly random set of `count` positions: sorting i.i.d. scores gives a uniform permutation.

    Args:
        count: (...), int64. scores: (..., K), i.i.d. uniform.

    Returns:
        bool (..., K), true where masked.
    """
    return scores.argsort(-1) < count.unsqueeze(-1)


def random_groups(scores: Tensor, num_groups: int) -> Tensor:
    """A random split of the K positions into nearly equal groups.

    Args:
        scores: (..., K), i.i.d. uniform. num_groups: at most K.

    Returns:
        Group of each position (..., K), int64 in [0, num_groups).
    """
    return scores.argsort(-1) * num_groups // scores.shape[-1]


def positions_by_group(groups: Tensor, num_groups: int) -> list[Tensor]:
    """The positions of each group of a split by `random_groups`.

    Args:
        groups: (..., K), int64.

    Returns:
        int64 (..., n), n = K/num_groups or one more, for each group.
    """
    size = groups.shape[-1]
    starts = [-(-group * size // num_groups) for group in range(1, num_groups)]  # p·num_groups ≥ group·K
    return list(groups.argsort(-1).tensor_split(starts, dim=-1))
