"""Functions without parameters: symlog, two-hot regression, categoricals, λ-returns.

Logits, targets and pictures may come in half precision; what is summed over them is float32, because these
are the quantities that a half-precision sum would ruin. Log-probabilities are float32 throughout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """Symmetric logarithm sign(x)·ln(1+|x|), elementwise (DreamerV3, eq. 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`: sign(x)·(e^|x| − 1), elementwise (DreamerV3, eq. 9)."""
    return x.sign() * x.abs().expm1()


class TwoHotSymlog:
    """Regression as classification over evenly spaced bins of symlog values.

    A target between two bins puts its weight on these two, in proportion (DreamerV3,
    section "Critic learning"). Targets beyond the bins count as the outermost bin.

    Args:
        num_bins: number of bins, at least 2.
        limit: the bins span [-limit, limit] in symlog space.
        decoding: "symexp_of_mean" of the bins (STORM), in which a rare, large target counts next to
            nothing; or "mean_of_symexp" of them (DreamerV3), an unbiased mean, for which a target is
            split between two bins in proportion to its real value, not to its symlog.
    """

    def __init__(self, num_bins: int, limit: float, decoding: str) -> None:
        self.num_bins = num_bins
        self.limit = limit
        self.averages_values = decoding == "mean_of_symexp"

    def bins(self, device: torch.device) -> Tensor:
        """Bin centres in symlog space, float32 (num_bins,)."""
        return torch.linspace(-self.limit, self.limit, self.num_bins, device=device)

    def encode(self, target: Tensor) -> Tensor:
        """Two-hot weights (..., num_bins), float32, of real-valued targets (...)."""
        if self.averages_values:
            values = symexp(self.bins(target.device))
            passed = ((target.float()[..., None] - values[:-1]) / values.diff()).clamp(0, 1)
            one = torch.ones_like(target, dtype=torch.float32)[..., None]
            return -torch.cat([one, passed, 0 * one], dim=-1).diff()
        spacing = 2 * self.limit / (self.num_bins - 1)
        position = (symlog(target.float()).clamp(-self.limit, self.limit) + self.limit) / spacing
        centres = torch.arange(self.num_bins, device=target.device)
        return (1 - (position[..., None] - centres).abs()).clamp(min=0)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy (...) in nats of logits (..., num_bins) against targets (...)."""
        return -(self.encode(target) * F.log_softmax(logits.float(), dim=-1)).sum(-1)

    def decode(self, logits: Tensor) -> Tensor:
        """Value (...) of logits (..., num_bins): symexp of the mean bin, or the mean of their symexp."""
        bins, weights = self.bins(logits.device), F.softmax(logits.float(), dim=-1)
        if self.averages_values:
            return (weights * symexp(bins)).sum(-1)
        return symexp((weights * bins).sum(-1))


def unimix_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """Log-probabilities, float32, of softmax(logits) mixed with a share of uniform.

    Args:
        logits: (..., C), any float dtype.
        unimix: share of the uniform distribution (DreamerV3, "Robust predictions").
    """
    probs = F.softmax(logits.float(), dim=-1)
    return (probs * (1 - unimix) + unimix / logits.shape[-1]).log()


def sample(logits: Tensor, noise: Tensor, unimix: float = 0.0) -> Tensor:
    """Draw from categoricals by inverting their cumulative distribution.

    All randomness of the model enters here or as a mask, as an argument: the same noise gives
    the same draw in eager and in compiled code.

    Args:
        logits: (..., C), any float dtype.
        noise: (...), uniform in [0, 1).
        unimix: share of the uniform distribution mixed into softmax(logits).

    Returns:
        Class indices (...), int64.
    """
    num_classes = logits.shape[-1]
    cumulative = F.softmax(logits.float(), dim=-1).cumsum(-1)
    if unimix:
        uniform = torch.arange(1, num_classes + 1, device=logits.device) * (unimix / num_classes)
        cumulative = torch.add(uniform, cumulative, alpha=1 - unimix)
    threshold = noise.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=num_classes - 1)


def one_hot(index: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One-hot vectors (..., num_classes) of indices (...): rows of the unit matrix."""
    return F.embedding(index, torch.eye(num_classes, dtype=dtype, device=index.device))


def straight_through(index: Tensor, log_probs: Tensor) -> Tensor:
    """One-hot of a sample whose gradient is that of the probabilities (STORM, section 3.1)."""
    probs = log_probs.exp()
    return one_hot(index, log_probs.shape[-1], probs.dtype) + probs - probs.detach()


def squared_error(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum of squared differences, each times its weight, over all axes but the first two, (B, L), float32."""
    return SquaredError.apply(prediction, target, weight)


class SquaredError(torch.autograd.Function):
    """`squared_error` in few passes over the pictures; its gradient lies in memory as they do."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        error = prediction.float() - target
        weighted = error if weight is None else error * weight
        ctx.save_for_backward(weighted)
        ctx.dtype = prediction.dtype
        return (error * weighted).sum(tuple(range(2, error.dim())))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weighted,) = ctx.saved_tensors
        factor = (2 * gradient)[(...,) + (None,) * (weighted.dim() - 2)]
        return (weighted * factor).to(ctx.dtype), None, None


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL[p ‖ q] in nats over the last axis of two arrays of log-probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis of log-probabilities."""
    return -(log_probs.exp() * log_probs).sum(-1)


def free_nats(divergence: Tensor, minimum: float) -> Tensor:
    """The mean divergence, clipped from below after averaging (STORM, eq. 5): no gradient under it."""
    return divergence.mean().clamp(min=minimum)


def weighted_sum(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Return the total loss: Σ weight · loss over exactly the losses that have a weight."""
    assert losses.keys() == weights.keys(), f"losses {[*losses]}, weights {[*weights]}"
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def lambda_return(
    reward: Tensor, termination: Tensor, value: Tensor, gamma: float, lambda_: float, bootstrap_shift: int = 1
) -> Tensor:
    """λ-returns G_t = r_t + γ(1−d_t)[(1−λ)V(s_{t+1}) + λG_{t+1}], G_H = V(s_H) (STORM, eq. 9).

    Args:
        reward, termination: (B, H), of the step from s_t to s_{t+1}.
        value: (B, H+1), of s_0 … s_H.
        gamma: discount. lambda_: mixing.
        bootstrap_shift: 1 bootstraps from V(s_{t+1}); 0 from V(s_t), as the STORM release does.

    Returns:
        (B, H), float32.
    """
    horizon = reward.shape[1]
    value = value.float()
    discount = gamma * (1 - termination.float())
    returns = value[:, horizon]
    reversed_returns = []
    for t in reversed(range(horizon)):
        bootstrap = (1 - lambda_) * value[:, t + bootstrap_shift] + lambda_ * returns
        returns = reward[:, t].float() + discount[:, t] * bootstrap
        reversed_returns.append(returns)
    return torch.stack(reversed_returns[::-1], dim=1)


def percentile(x: Tensor, share: float) -> Tensor:
    """The ⌊share·n⌋-th smallest of the n values of x, counted from 1; a 0-d tensor."""
    rank = max(1, int(share * x.numel()))
    return x.flatten().kthvalue(rank).values
