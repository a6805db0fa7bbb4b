"""Weight files of a run: world_model_<step>.pth and agent_<step>.pth, flat name → tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from run_files.tensor_files import read_tensors, write_tensors
from utils import UserError, nearest

HALF_PRECISION = (torch.bfloat16, torch.float16)
_CHECKPOINT = re.compile(r"world_model_(0|[1-9]\d{0,14})\.pth")


def save_weights(path: Path, weights: nn.Module | Mapping[str, Tensor]) -> None:
    """Write a module's weights as one flat name → CPU tensor dict, whole or not at all.

    The prefix of compiled modules is left out of the names. The file loads with
    `torch.load(path, weights_only=True)`. Raise UserError if it cannot be written.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    write_tensors(path, {_plain_name(name): tensor for name, tensor in state.items()})


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the flat name → CPU tensor dict of a weight file, ours or the original STORM's.

    Raise UserError, naming the file and the reason, for whatever is not such a file.
    """
    state = read_tensors(path)
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds a {type(state).__name__}, expected a dict of named tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            found = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{path}: entry {repr(name)[:120]} is a {found}, expected a plain tensor")
    return {_plain_name(name): tensor for name, tensor in state.items()}


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a module; all of them, or none.

    Of a float32 entry the file may hold half precision, in which weights are half as large.
    Raise UserError naming `source`, the key, what was expected and what was found, if names,
    shapes or else dtypes differ from the module's or a value is not finite.
    """
    own = {_plain_name(name): tensor for name, tensor in module.state_dict().items()}
    _check_names(own, state, source)
    for name, target in own.items():
        found = state[name]
        if found.shape != target.shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(found.shape)}, expected {tuple(target.shape)}"
            )
        halved = target.dtype == torch.float32 and found.dtype in HALF_PRECISION
        if found.dtype != target.dtype and not halved:
            raise UserError(f"{source}: {name} is {found.dtype}, expected {target.dtype}")
        if not torch.isfinite(found).all():
            raise UserError(f"{source}: {name} holds NaN or infinity, expected finite numbers")
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(state[name])


def list_checkpoints(directory: Path) -> list[int]:
    """Return the steps, ascending, of which both a world model and an agent are saved in `directory`."""
    if not directory.is_dir():
        return []
    matches = (_CHECKPOINT.fullmatch(entry.name) for entry in directory.iterdir())
    names = {match[1] for match in matches if match}
    return sorted(int(name) for name in names if (directory / f"agent_{name}.pth").exists())


def checkpoint_files(directory: Path, step: int) -> tuple[Path, Path]:
    """Return world-model and agent file of a step; raise UserError naming the nearest if it is not saved."""
    steps = list_checkpoints(directory)
    if step in steps:
        return directory / f"world_model_{step}.pth", directory / f"agent_{step}.pth"
    if not steps:
        raise UserError(f"no checkpoints (world_model_<step>.pth and agent_<step>.pth) in {directory}")
    closest = min(steps, key=lambda saved: abs(saved - step))
    raise UserError(
        f"no checkpoint of step {step} in {directory}: the nearest of {len(steps)} saved steps is {closest}"
    )


def _check_names(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    count = f"{len(missing)} of {len(own)} entries are missing, {len(unknown)} are not expected"
    if missing:
        raise UserError(f"{source}: has no entry {missing[0]!r}{nearest(missing[0], unknown)}; {count}")
    if unknown:
        raise UserError(f"{source}: {unknown[0]!r:.120} is not expected{nearest(unknown[0], own)}; {count}")


def _plain_name(name: str) -> str:
    """The name without the prefixes of torch.compile and of DataParallel."""
    return name.replace("_orig_mod.", "").removeprefix("module.")
