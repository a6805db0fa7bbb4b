"""Checkpoints that the original STORM wrote: its tensor names, translated to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from utils import UserError, nearest

Table = dict[str, tuple[str, ...]]  # our name → the original tensors that make it up, joined along axis 0

LINEAR_NORM_INDEX_STEP = 3  # linear or convolution, norm, activation
NORM = ("weight", "bias")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LINEAR = ("weight", "bias")
BLOCK_PARTS = {
    "slf_attn.fc.weight": "attention.output.weight",
    "slf_attn.layer_norm.weight": "attention_norm.weight",
    "slf_attn.layer_norm.bias": "attention_norm.bias",
    "pos_ffn.w_1.weight": "expand.weight",
    "pos_ffn.w_1.bias": "expand.bias",
    "pos_ffn.w_2.weight": "contract.weight",
    "pos_ffn.w_2.bias": "contract.bias",
    "pos_ffn.layer_norm.weight": "feed_forward_norm.weight",
    "pos_ffn.layer_norm.bias": "feed_forward_norm.bias",
}
MIXER_PARTS = {
    "stem.0.weight": "mixer.input.weight",
    "stem.1.weight": "mixer.mlp.input_norm.weight",
    "stem.1.bias": "mixer.mlp.input_norm.bias",
    "stem.3.weight": "mixer.mlp.output.weight",
    "stem.4.weight": "mixer.mlp.output_norm.weight",
    "stem.4.bias": "mixer.mlp.output_norm.bias",
    "position_encoding.pos_emb.weight": "position.weight",
    "layer_norm.weight": "norm.weight",
    "layer_norm.bias": "norm.bias",
}
HEADS = {
    "dist_head.post_head": "encoder.head",
    "dist_head.prior_head": "prior.head",
    "reward_decoder.head": "reward_head.6",
    "termination_decoder.head.0": "termination_head.6",
}


def is_original(state: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint has the tensor names of the original STORM, world model or agent."""
    agent = "actor.0.weight" in state and not any(name.startswith("return_scale.") for name in state)
    return agent or any(name.startswith("storm_transformer.") for name in state)


def convert(state: Mapping[str, Tensor], source: str = "checkpoint") -> dict[str, Tensor]:
    """The tensors of an original world model or agent under our names.

    Query, key and value weights become one; the return averages, which the original does not
    save, start at 0.

    Args:
        state: what `is_original` accepts. source: for messages, such as the file's name.

    Raises:
        UserError: a tensor is missing, unknown, or does not fit the ones it is joined with.
    """
    is_world_model = any(name.startswith("storm_transformer.") for name in state)
    names = list(state)
    if is_world_model:
        stages = _count(names, r"encoder\.backbone\.(\d+)\.running_mean")
        blocks = _count(names, r"storm_transformer\.layer_stack\.(\d+)\.")
        table = world_model_table(stages, blocks)
    else:
        table = agent_table(_count(names, r"actor\.(\d+)\.bias") - 1)
    _check_names(table, state, source)
    converted = {ours: _join(ours, [state[name] for name in parts], source) for ours, parts in table.items()}
    if not is_world_model:
        converted |= {f"return_scale.{bound}": torch.zeros(()) for bound in ("low", "high")}
    return converted


def world_model_table(stages: int, blocks: int) -> Table:
    """Our name → original names for a world model.

    Args:
        stages: convolutions of the encoder. blocks: of the sequence model.
    """
    pairs = [
        *_encoder_pairs(stages),
        *_decoder_pairs(stages),
        *((f"sequence_model.{ours}", f"storm_transformer.{name}") for name, ours in MIXER_PARTS.items()),
        *_head_pairs(),
    ]
    table: Table = {ours: (original,) for ours, original in pairs}
    for block in range(blocks):
        old, new = f"storm_transformer.layer_stack.{block}", f"sequence_model.blocks.{block}"
        table |= {f"{new}.{ours}": (f"{old}.{name}",) for name, ours in BLOCK_PARTS.items()}
        table[f"{new}.attention.query_key_value.weight"] = tuple(
            f"{old}.slf_attn.{projection}.weight" for projection in ("w_qs", "w_ks", "w_vs")
        )
    return table


def agent_table(layers: int) -> Table:
    """Our name → original name, which is the same, for an agent of so many hidden layers."""
    table: Table = {}
    for network in ("actor", "critic", "slow_critic"):
        for layer in range(layers):
            index = LINEAR_NORM_INDEX_STEP * layer
            own = [f"{network}.{index}.weight", *(f"{network}.{index + 1}.{part}" for part in NORM)]
            table |= {name: (name,) for name in own}
        head = f"{network}.{LINEAR_NORM_INDEX_STEP * layers}"
        table |= {f"{head}.{part}": (f"{head}.{part}",) for part in LINEAR}
    return table


def _encoder_pairs(stages: int) -> list[tuple[str, str]]:
    names = []
    for stage in range(stages):
        index = LINEAR_NORM_INDEX_STEP * stage
        names += [f"{index}.weight", *(f"{index + 1}.{part}" for part in BATCH_NORM)]
    return [(f"encoder.layers.{name}", f"encoder.backbone.{name}") for name in names]


def _decoder_pairs(stages: int) -> list[tuple[str, str]]:
    """The original's first two layers, linear and reshape, are our `project`."""
    pairs = [("decoder.project.weight", "image_decoder.backbone.0.weight")]
    for stage in range(stages):
        norm = LINEAR_NORM_INDEX_STEP * stage
        parts = [f".{part}" for part in BATCH_NORM]
        pairs += [
            (f"decoder.layers.{norm}{part}", f"image_decoder.backbone.{norm + 2}{part}") for part in parts
        ]
        last = stage == stages - 1
        for part in LINEAR if last else LINEAR[:1]:
            pairs.append((f"decoder.layers.{norm + 2}.{part}", f"image_decoder.backbone.{norm + 4}.{part}"))
    return pairs


def _head_pairs() -> list[tuple[str, str]]:
    pairs = [(f"{ours}.{part}", f"{name}.{part}") for name, ours in HEADS.items() for part in LINEAR]
    trunk = ("0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias")
    for head in ("reward", "termination"):
        pairs += [(f"{head}_head.{name}", f"{head}_decoder.backbone.{name}") for name in trunk]
    return pairs


def _count(names: list[str], pattern: str) -> int:
    """Different numbers that `pattern` finds in the names."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def _check_names(table: Table, state: Mapping[str, Tensor], source: str) -> None:
    expected = [name for parts in table.values() for name in parts]
    unknown = sorted(set(state) - set(expected))
    missing = [name for name in expected if name not in state]
    if missing:
        raise UserError(
            f"{source}: an original STORM checkpoint without {missing[0]!r}{nearest(missing[0], unknown)}; "
            f"{len(missing)} of {len(expected)} tensors are missing"
        )
    if unknown:
        raise UserError(
            f"{source}: tensor {unknown[0][:120]!r} is not one of the original STORM's"
            f"{nearest(unknown[0], expected)}; {len(unknown)} are unknown"
        )


def _join(name: str, parts: list[Tensor], source: str) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    shapes = [tuple(part.shape) for part in parts]
    if len(set(shapes)) > 1 or not shapes[0]:
        raise UserError(f"{source}: query, key and value weights of {name} have shapes {shapes}")
    return torch.cat(parts)
