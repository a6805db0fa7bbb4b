"""What an actor's outputs mean: a categorical over classes, or a bounded normal over a box."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from configuration.schema import AgentConfig
from configuration.spaces import ActionSpec
from sub_models.functions_losses import entropy, sample

ENTROPY_OF_UNIT_NORMAL = 0.5 * math.log(2 * math.pi * math.e)


class ActionDistribution(Protocol):
    """Draws actions from the outputs (..., output_size) of an actor, and judges them."""

    output_size: int  # numbers that the actor puts out
    noise_size: int  # uniform numbers that a draw takes
    entropy_range: tuple[float, float]  # nats, least and most that is possible

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return draws, by uniform noise (..., noise_size)."""

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely actions."""

    def executed(self, draw: Tensor) -> Tensor:
        """Return what of a draw reaches the environment and the world model."""

    def log_prob(self, outputs: Tensor, draw: Tensor) -> Tensor:
        """Return log-probabilities (...) in nats, float32."""

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return entropies (...) in nats, float32."""

    def uniform(self, noise: Tensor) -> Tensor:
        """Return actions drawn uniformly from all possible ones."""


class Categorical:
    """Classes: outputs are logits (..., A), draws int64 (...)."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = self.output_size = num_classes
        self.noise_size = 1
        self.entropy_range = (0.0, math.log(num_classes))

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return classes by inversion of the cumulative distribution."""
        return sample(outputs, noise.squeeze(-1))

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely class."""
        return outputs.argmax(-1)

    def executed(self, draw: Tensor) -> Tensor:
        """Return the draw as it is."""
        return draw

    def log_prob(self, outputs: Tensor, draw: Tensor) -> Tensor:
        """Return the log-softmax at the drawn class."""
        return F.log_softmax(outputs.float(), dim=-1).gather(-1, draw.unsqueeze(-1)).squeeze(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy of the categorical."""
        return entropy(F.log_softmax(outputs.float(), dim=-1))

    def uniform(self, noise: Tensor) -> Tensor:
        """Return classes, all equally likely."""
        return (noise.squeeze(-1) * self.num_classes).long()


class BoundedNormal:
    """Points of [−1, 1]^n: outputs are (m, s), (..., 2n); draws float32 (..., n) (DreamerV3's bounded actor).

    Mean tanh(m), standard deviation min + (max − min)·sigmoid(s + shift). A draw may lie outside the box:
    it is clipped when executed, and judged as it was drawn.

    Args:
        config: the Agent section. size: n.
    """

    def __init__(self, config: AgentConfig, size: int) -> None:
        self.low, self.high, self.shift = config.MinStd, config.MaxStd, config.StdShift
        self.output_size, self.noise_size = 2 * size, size
        unit = size * ENTROPY_OF_UNIT_NORMAL
        self.entropy_range = (unit + size * math.log(self.low), unit + size * math.log(self.high))

    def parameters(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, float32 (..., n) each."""
        mean, std = outputs.float().chunk(2, dim=-1)
        return mean.tanh(), self.low + (self.high - self.low) * torch.sigmoid(std + self.shift)

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return mean + std·Φ⁻¹(noise)."""
        mean, std = self.parameters(outputs)
        margin = torch.finfo(noise.dtype).eps  # Φ⁻¹ is infinite at 0 and 1
        return mean + std * torch.special.ndtri(noise.clamp(margin, 1 - margin))

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the mean."""
        return self.parameters(outputs)[0]

    def executed(self, draw: Tensor) -> Tensor:
        """Return the draw clipped to the box."""
        return draw.clamp(-1, 1)

    def log_prob(self, outputs: Tensor, draw: Tensor) -> Tensor:
        """Return the log-density of the unclipped draw, summed over the n dimensions."""
        mean, std = self.parameters(outputs)
        return (-0.5 * ((draw - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy of the unclipped normal, summed over the n dimensions."""
        return (ENTROPY_OF_UNIT_NORMAL + self.parameters(outputs)[1].log()).sum(-1)

    def uniform(self, noise: Tensor) -> Tensor:
        """Return points of the box, all equally likely."""
        return 2 * noise - 1


def make_action_distribution(config: AgentConfig, spec: ActionSpec) -> ActionDistribution:
    """Return what an actor's outputs mean for these actions."""
    return Categorical(spec.size) if spec.kind == "discrete" else BoundedNormal(config, spec.size)
