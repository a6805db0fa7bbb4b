"""The dtype that matrix products run in at this moment."""

from __future__ import annotations

import torch


def compute_dtype(device: torch.device) -> torch.dtype:
    """Autocast's dtype on this device if it is on, else float32.

    Tensors made in this dtype spare autocast the conversion at every product.
    """
    # Not amp.is_autocast_available: PyTorch 2.11 cannot compile it.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32
