"""Compare every quantity of our modules with what the original STORM code computed.

    python -m tests.parity GOLDEN.npz MANIFEST.json

GOLDEN.npz holds inputs and results, MANIFEST.json the sizes (`config`) and the names and shapes
of the tensors (`world_model`, `agent`), whose values follow from their names. Prints the error
max|a−b| / max|b| of each result; exits 1 if one is above 1e-4, 2 if a file is unusable.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import ActorCritic
from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from run_files.tensor_files import reading
from run_files.weights import load_into
from sub_models.batch import Batch, Rollout
from sub_models.functions_losses import free_nats, lambda_return, percentile, symlog
from sub_models.storm_checkpoint import convert
from sub_models.world_models import WorldModel
from training.learner import Learner
from utils import UserError, run_cli

BAR = 1e-4
LARGEST_BYTES = 2 << 30  # of all tensors of a part
SIZES = {  # of the manifest's config: ours
    "transformer_max_length": "Models.WorldModel.TransformerMaxLength",
    "transformer_hidden_dim": "Models.WorldModel.TransformerHiddenDim",
    "transformer_num_layers": "Models.WorldModel.TransformerNumLayers",
    "transformer_num_heads": "Models.WorldModel.TransformerNumHeads",
    "agent_num_layers": "Models.Agent.NumLayers",
    "agent_hidden_dim": "Models.Agent.HiddenDim",
}
NUMBERS = {
    "gamma": "Models.Agent.Gamma",
    "lambda_": "Models.Agent.Lambda",
    "entropy_coef": "Models.Agent.EntropyCoef",
}
INPUTS = {  # name: axes; equal letters are equal sizes
    "obs": "BLSSI",
    "action": "BL",
    "reward": "BL",
    "termination": "BL",
    "latent_index": "BLK",
    "percentile_in": "P",
    "symlog_in": "Y",
    "ac_latent": "UVF",
    "ac_action": "UW",
    "ac_reward": "UW",
    "ac_termination": "UW",
}


def fill(name: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    """The values of an original tensor, float32, which follow from its name (counters: int64 zeros)."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + salt)).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1.0 + 0.1 * np.abs(noise)
    elif len(shape) == 1:
        values = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    else:
        values = noise / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


@dataclass(frozen=True)
class Manifest:
    """Sizes, and the shapes of the original's tensors by name."""

    path: Path
    config: dict[str, Any]
    world_model: dict[str, tuple[int, ...]]
    agent: dict[str, tuple[int, ...]]

    def weights(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The original's tensors."""
        salt = self.config["salt"]
        return {name: torch.from_numpy(fill(name, shape, salt)) for name, shape in shapes.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor; UserError if the manifest lacks it."""
        shapes = self.world_model | self.agent
        if not shapes.get(name):
            raise UserError(f"{self.path}: lists no tensor {name!r}")
        return shapes[name]


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`; UserError, naming the key, if it is not one."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(f"{path}: expected an object with config, world_model and agent")
    for part in ("config", "world_model", "agent"):
        if part not in content:
            raise UserError(f"{path}: has no {part!r}")
    config = {"salt": 0, **content["config"]}
    for key in ("action_dim", "salt", *SIZES):
        if type(config.get(key)) is not int or config[key] < (key != "salt"):
            raise UserError(f"{path}: config.{key} is {config.get(key)!r}, expected a whole number")
    for key in NUMBERS:
        if type(config.get(key)) not in (int, float) or not math.isfinite(config[key]):
            raise UserError(f"{path}: config.{key} is {config.get(key)!r}, expected a number")
    shapes = (_shapes(path, part, content[part]) for part in ("world_model", "agent"))
    return Manifest(path, config, *shapes)


def _shapes(path: Path, part: str, listed: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    for name, shape in listed.items():
        if not isinstance(shape, list) or any(type(size) is not int or size < 1 for size in shape):
            raise UserError(f"{path}: {part}.{name} is {str(shape)[:80]}, expected a list of sizes")
    if 4 * sum(map(math.prod, listed.values())) > LARGEST_BYTES:
        raise UserError(f"{path}: the tensors of {part} have more than {LARGEST_BYTES} bytes")
    return {name: tuple(shape) for name, shape in listed.items()}


def read_golden(path: Path) -> dict[str, Tensor]:
    """All arrays of a golden file: integers as int64, observations as uint8, the rest as float32."""
    with reading(path), np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    golden = {}
    for name, array in arrays.items():
        dtype = np.uint8 if name == "obs" else np.int64 if array.dtype.kind in "iu" else np.float32
        golden[name] = torch.from_numpy(array.astype(dtype))
    check_inputs(path, golden)
    return golden


def check_inputs(path: Path, golden: dict[str, Tensor]) -> None:
    """UserError if an input is missing or does not fit the others."""
    sizes: dict[str, int] = {}
    for name, axes in INPUTS.items():
        if name not in golden:
            raise UserError(f"{path}: has no array {name!r}")
        shape = golden[name].shape
        fits = len(shape) == len(axes) and all(
            sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True)
        )
        if not fits:
            raise UserError(f"{path}: {name!r} has shape {tuple(shape)}, which does not fit the other arrays")
    if sizes["V"] != sizes["W"] + 1:
        raise UserError(f"{path}: 'ac_latent' has {sizes['V']} steps, expected {sizes['W'] + 1}")


def check_range(path: Path, golden: dict[str, Tensor], name: str, below: int) -> Tensor:
    """The whole numbers of an input as int64; UserError if one is not in [0, below)."""
    values = golden[name].long()
    if values.numel() == 0 or values.min() < 0 or values.max() >= below:
        raise UserError(f"{path}: {name!r} holds numbers outside 0 to {below - 1}")
    return values


def make_config(manifest: Manifest, golden: dict[str, Tensor], compiling: str = "never") -> Config:
    """Our configuration of the manifest's sizes; what it does not say follows from the tensors' shapes."""
    config = Config()
    config.BasicSettings.ImageSize = golden["obs"].shape[2]
    config.BasicSettings.ReleaseQuirks = True
    config.BasicSettings.Precision = "float32"
    config.BasicSettings.Compile = compiling
    for key, name in {**SIZES, **NUMBERS}.items():
        _, section, field = name.split(".")
        setattr(getattr(config.Models, section), field, manifest.config[key])
    world_model, agent = config.Models.WorldModel, config.Models.Agent
    world_model.StemChannels = manifest.shape("encoder.backbone.0.weight")[0]
    world_model.NumLatents = golden["latent_index"].shape[2]
    world_model.NumClasses = manifest.shape("dist_head.post_head.weight")[0] // world_model.NumLatents
    feed_forward = manifest.shape("storm_transformer.layer_stack.0.pos_ffn.w_1.weight")[0]
    world_model.FeedForwardRatio = feed_forward // world_model.TransformerHiddenDim
    world_model.RewardBins = manifest.shape("reward_decoder.head.weight")[0]
    agent.ValueBins = manifest.shape(f"critic.{3 * agent.NumLayers}.weight")[0]
    check_sizes(manifest, config, golden["obs"].shape[1])
    return config


def check_sizes(manifest: Manifest, config: Config, length: int) -> None:
    """UserError if the sizes contradict each other in a way that the tensors' shapes do not show."""
    model, side = config.Models.WorldModel, config.BasicSettings.ImageSize
    if model.TransformerHiddenDim % model.TransformerNumHeads:
        raise UserError(f"{manifest.path}: transformer_num_heads does not divide transformer_hidden_dim")
    if side < 8 or side & (side - 1):
        raise UserError(f"the golden images are {side} pixels wide, expected 8, 16, 32, 64, …")
    if not 1 < length <= model.TransformerMaxLength:
        raise UserError(
            f"{manifest.path}: golden windows of {length} steps do not fit transformer_max_length"
        )


def make_learner(manifest: Manifest, config: Config, execution: Execution) -> Learner:
    """Our models with the original's weights, in evaluation mode."""
    side = config.BasicSettings.ImageSize
    spaces = Spaces(
        ObservationSpec("image", (side, side, 3)), ActionSpec("discrete", manifest.config["action_dim"])
    )
    learner = Learner(config, spaces, execution, RandomStreams(0, execution.device))
    for model in ("world_model", "agent"):
        weights = convert(manifest.weights(getattr(manifest, model)), f"{manifest.path}: {model}")
        load_into(getattr(learner, model), weights, f"{manifest.path}: {model}")
    return learner


def world_model_results(
    learner: Learner, execution: Execution, golden: dict[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """What the world model and the agent's networks say about the windows."""
    action = check_range(path, golden, "action", learner.world_model.spaces.action.size)
    index = check_range(path, golden, "latent_index", learner.world_model.config.NumClasses)
    batch = Batch(golden["obs"], action, golden["reward"], golden["termination"])
    with torch.no_grad():
        return execution.compile(judge)(learner.world_model, learner.agent, batch, index)


def judge(model: WorldModel, agent: ActorCritic, batch: Batch, index: Tensor) -> dict[str, Tensor]:
    """What the networks say about windows whose latents are those of `index`."""
    action = batch.action
    posterior = model.posterior(batch.observation)
    latent = model.one_hot_latent(index)
    hidden = model.sequence_model(latent, action)
    losses = model.head_losses(batch, latent, hidden)
    dynamics, _, _ = model.divergences(posterior, index, hidden, hidden[:, 1:, :0])
    feature = torch.cat([latent, hidden], dim=-1)
    value = agent.value(feature)
    return {
        "posterior_logits": posterior,
        "prior_logits": model.prior.log_probs(hidden),
        "hidden": hidden,
        "reconstruction": model.decode(latent),
        "reward_logits": model.reward_head(hidden),
        "reward_decoded": model.predict_reward(hidden),
        "termination_logits": model.termination_head(hidden).squeeze(-1),
        "loss_reconstruction": losses["reconstruction_loss"].mean(),
        "loss_reward": losses["reward_loss"].mean(),
        "loss_termination": losses["termination_loss"].mean(),
        "loss_kl_clipped": free_nats(dynamics, model.config.FreeNats),
        "loss_kl": dynamics.mean(),
        "policy_logits": agent.actor(feature),
        "value_logits": agent.critic(feature),
        "value": value,
        "slow_value": agent.two_hot.decode(agent.slow_critic(feature)),
        "lambda_return": lambda_return(
            batch.reward[:, :-1],
            batch.termination[:, :-1],
            value,
            agent.config.Gamma,
            agent.config.Lambda,
            agent.bootstrap_shift,
        ),
    }


def function_results(learner: Learner, golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the functions without parameters give."""
    settings = learner.agent.config
    return {
        "percentile_05": percentile(golden["percentile_in"], settings.ReturnPercentileLow),
        "percentile_95": percentile(golden["percentile_in"], settings.ReturnPercentileHigh),
        "symlog_out": symlog(golden["symlog_in"]),
    }


def agent_update_results(learner: Learner, golden: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """One update of the agent: its metrics, and the output biases after it."""
    agent = learner.agent
    if golden["ac_latent"].shape[2] != learner.world_model.feature_size:
        raise UserError(f"{path}: 'ac_latent' is not {learner.world_model.feature_size} wide")
    action = check_range(path, golden, "ac_action", learner.world_model.spaces.action.size)
    rollout = Rollout(golden["ac_latent"], action, golden["ac_reward"], golden["ac_termination"])
    learner.update_agent(rollout)
    metrics = learner.metrics.read()
    names = ("policy_loss", "value_loss", "entropy_loss", "S", "norm_ratio", "total_loss")
    biases = {
        f"ac_after_{name}_head_bias": getattr(agent, name)[-1].bias.detach()
        for name in ("actor", "critic", "slow_critic")
    }
    return {f"ac_{name}": torch.tensor(metrics[f"ActorCritic/{name}"]) for name in names} | biases


def compute(
    golden: dict[str, Tensor], manifest: Manifest, path: Path, compiling: str = "never"
) -> dict[str, Tensor]:
    """Every quantity of a golden file, through our modules, by its name there."""
    config = make_config(manifest, golden, compiling)
    execution = Execution(config.BasicSettings, torch.device("cpu"))
    learner = make_learner(manifest, config, execution)
    results = world_model_results(learner, execution, golden, path) | function_results(learner, golden)
    return results | agent_update_results(learner, golden, path)


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """max|a−b| / max|b| (of max|a−b| alone, where b is 0 everywhere)."""
    difference, scale = (ours - reference).abs().max(), reference.abs().max()
    return float(difference / scale if scale > 0 else difference)


def errors(
    golden: dict[str, Tensor], manifest: Manifest, path: Path, compiling: str = "never"
) -> dict[str, float]:
    """The error of every quantity; UserError if a reference is missing or of another shape."""
    results = compute(golden, manifest, path, compiling)
    for name, value in results.items():
        if name not in golden:
            raise UserError(f"{path}: has no array {name!r}")
        if golden[name].shape != value.shape:
            expected, found = tuple(value.shape), tuple(golden[name].shape)
            raise UserError(f"{path}: {name!r} has shape {found}, expected {expected}")
    return {name: relative_error(value.float(), golden[name].float()) for name, value in results.items()}


def main(arguments: list[str]) -> int:
    """Print the table of errors; 1 if one is above the bar, else 0."""
    if len(arguments) != 2:
        raise UserError("usage: python -m tests.parity GOLDEN.npz MANIFEST.json")
    path, manifest_path = map(Path, arguments)
    table = errors(read_golden(path), read_manifest(manifest_path), path)
    width = max(map(len, table))
    for name, error in table.items():
        print(f"{name:{width}}  {error:.1e}{'' if error <= BAR else '  ABOVE THE BAR'}")
    worst = [name for name, error in table.items() if not error <= BAR]
    print(f"{len(table) - len(worst)} of {len(table)} within {BAR:.0e}")
    return 1 if worst else 0


if __name__ == "__main__":
    run_cli(main)
