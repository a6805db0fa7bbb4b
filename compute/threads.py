"""How many CPU threads PyTorch computes with."""

from __future__ import annotations

import torch

from configuration.schema import Config
from utils import resolve_device

SMALL = 2**17  # numbers in the output of a layer: below, threads wait for each other more than they compute


def use_threads(config: Config, images: int, recorded: int = 0) -> list[str]:
    """Let PyTorch compute with `BasicSettings.NumThreads` CPU threads; with 0, as many as pay off.

    That is one for small networks, so that runs side by side do not hold each other up, and else
    PyTorch's choice, which are all cores, or OMP_NUM_THREADS.

    Args:
        images: that the networks take at once. recorded: number that a resumed run had, 0 if none; it is
            kept, as results differ in their last bits by the number of threads.

    Returns:
        A line about the choice; none where there was none: the number is given or recorded, there is one
        core, or a GPU, beside which the CPU has little to do.
    """
    given = config.BasicSettings.NumThreads or max(recorded, 0)
    if given:
        torch.set_num_threads(given)
    if given or torch.get_num_threads() == 1 or resolve_device(config.BasicSettings.device).type != "cpu":
        return []
    is_small = images * config.Models.WorldModel.TransformerHiddenDim < SMALL
    if is_small:
        torch.set_num_threads(1)
    reason = "small" if is_small else "large"
    return [f"CPU threads: {torch.get_num_threads()}, for {reason} networks; NumThreads overrides"]
