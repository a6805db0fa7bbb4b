"""The multi-layer perceptron of actor, critic, and the reward and termination heads."""

from __future__ import annotations

from torch import nn

from sub_models.linear import Linear


def mlp(inputs: int, width: int, num_layers: int, outputs: int, norm_eps: float) -> nn.Sequential:
    """[linear (no bias) → LN → ReLU] × num_layers → linear, over the last axis (STORM, appendix A)."""
    layers: list[nn.Module] = []
    for index in range(num_layers):
        size = inputs if index == 0 else width
        layers += [
            Linear(size, width, bias=False),
            nn.LayerNorm(width, eps=norm_eps),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, Linear(width, outputs))
