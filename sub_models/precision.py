"""The dtype that matrix products run in at this moment, and what follows from it."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(device: torch.device) -> torch.dtype:
    """Autocast's dtype on this device if it is on, else float32.

    Tensors made in this dtype spare autocast the conversion at every product.
    """
    # Not amp.is_autocast_available: PyTorch 2.11 cannot compile it.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


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
