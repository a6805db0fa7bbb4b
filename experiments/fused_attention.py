"""What gradients of fused attention do to a world model that learns in bfloat16.

    python -m experiments.fused_attention                                       # a quarter of an hour
    python -m experiments.fused_attention --agent assets/agents/Boxing-STORM-small

Goes on training an agent's world model on episodes that it plays, with the gradients of attention computed
(1) in float32, (2) in bfloat16 by two products and a softmax, as sub_models does, and (3) in bfloat16 as
fused kernels do, which is written out here, so that no card is needed. One head of the default agent,
which had trained on a card by way (3) for 50,000 steps, looks at one key alone. Writes <out>/<folder>.json
and .png: the largest singular values of the first block's W_q and W_k, which grow by way (3), and the
prior's KL divergence, which jumps when attention fails.

Qiu & Yao, Why Low-Precision Transformer Training Fails (arXiv:2510.04212), describe it in language models.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from matplotlib.figure import Figure
from torch import Tensor

from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.keys import fixed
from configuration.loading import apply_overrides, load_saved_config
from configuration.schema import Config
from evaluation.episodes import evaluation_environment
from evaluation.policies import EvaluationPolicy, choose_step, load_models
from evaluation.predictions import play_episodes
from experiments.figures import save
from experiments.training import experiment_parser, write_record
from sub_models import attention_blocks
from sub_models.batch import Batch
from sub_models.fast_forms import attend, causal_mask
from sub_models.world_models import WorldModel
from training.learner import Learner
from utils import REPOSITORY, UserError, as_file_name, run_cli

SATURATED = REPOSITORY / "assets" / "saturated_attention"
CPU = torch.device("cpu")
WAYS = {"float32": "float32", "products": "auto", "fused": "auto"}  # way → BasicSettings.Precision
SHOWN = {"largest_q": "largest singular value of W_q", "largest_k": "of W_k", "KL": "KL of the prior, nats"}


@dataclass(frozen=True)
class Settings:
    """Every number of the experiment."""

    frames: int = fixed(4000, "frames of the agent's episodes, at least")
    updates: int = fixed(1500, "updates of the world model")
    log_every: int = fixed(50, "updates between two points of the curves")
    seed: int = fixed(0, "of episodes, windows and noise")


class FusedAttention(torch.autograd.Function):
    """dropout(softmax(query·keysᵀ/√d + mask))·values as fused kernels compute it and its gradients.

    Scores and softmax are float32 and not kept. Probabilities meet the values in bfloat16. The gradient of a
    score is p·(dp − δ), δ being the row's sum of gradient times *rounded* output (Dao, 2023, algorithm 2).
    """

    @staticmethod
    def forward(
        context: Any, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, kept: Tensor
    ) -> Tensor:
        """Return (B, heads, T, d) bfloat16; kept (B, heads, T, T) is 0 or 1 / (1 − dropout)."""
        scores = scores_of(query, keys, visible)
        most = scores.amax(-1, keepdim=True)
        weights = (scores - most).exp()
        total = weights.sum(-1, keepdim=True)
        output = ((weights * kept).bfloat16().float() @ values.float() / total).bfloat16()
        context.visible = visible
        context.save_for_backward(query, keys, values, output, most + total.log(), kept)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, keys and values, bfloat16."""
        query, keys, values, output, normaliser, kept = context.saved_tensors
        gradient = gradients[0].float()
        probabilities = (scores_of(query, keys, context.visible) - normaliser).exp()
        row_sum = (gradient * output.float()).sum(-1, keepdim=True)
        of_probabilities = gradient @ values.float().mT * kept
        of_scores = (probabilities * (of_probabilities - row_sum)).bfloat16().float() * query.shape[
            -1
        ] ** -0.5
        of_values = (probabilities * kept).bfloat16().float().mT @ gradient
        found = (of_scores @ keys.float(), of_scores.mT @ query.float(), of_values)
        return *(part.bfloat16() for part in found), None, None


def scores_of(query: Tensor, keys: Tensor, visible: Tensor | None) -> Tensor:
    """Return query·keysᵀ/√d, float32, −∞ where nothing is visible."""
    scores = query.float() @ keys.float().mT * query.shape[-1] ** -0.5
    return scores if visible is None else scores.masked_fill(~visible, -math.inf)


def attend_as_fused(query: Tensor, keys: Tensor, values: Tensor, causal: bool, dropout: float) -> Tensor:
    """Return what `attend` returns, by FusedAttention where there are gradients."""
    if not torch.is_grad_enabled():
        return attend(query, keys, values, causal, dropout)
    visible = causal_mask(query.shape[2], keys.shape[2], query.device) if causal else None
    kept = torch.empty(*query.shape[:3], keys.shape[2]).bernoulli_(1 - dropout) / (1 - dropout)
    with torch.autocast("cpu", enabled=False):
        return FusedAttention.apply(query, keys, values, visible, kept)


def continue_training(
    config: Config, world_model: WorldModel, steps: Batch, settings: Settings, way: str
) -> list[dict[str, float]]:
    """Train a copy of a world model on windows of steps (1, T); return what is logged."""
    config = apply_overrides(config, [f"BasicSettings.Precision={WAYS[way]}"])
    streams, generator = RandomStreams(settings.seed, CPU), torch.Generator().manual_seed(settings.seed)
    streams.seed_default()
    learner = Learner(config, world_model.spaces, Execution(config.BasicSettings, CPU), streams)
    learner.world_model.load_state_dict(world_model.state_dict())
    task, curve = config.JointTrainAgent, []
    rows, length = task.BatchSize, task.BatchLength
    with patch.object(attention_blocks, "attend", attend_as_fused if way == "fused" else attend):
        for update in range(settings.updates + 1):
            if update % settings.log_every == 0:
                metrics = learner.metrics.read()
                curve.append(largest(learner) | {"update": update} | kl_of(metrics))
                print(way, {name: round(value, 2) for name, value in curve[-1].items()}, flush=True)
            starts = torch.randint(steps.reward.shape[1] - length, (rows, 1), generator=generator)
            where = starts + torch.arange(length)
            learner.update_world_model(Batch(*(values[0][where] for values in steps)))
    return curve


def largest(learner: Learner) -> dict[str, float]:
    """Return the largest singular values of the first block's projections."""
    weight = learner.world_model.sequence_model.blocks[0].attention.query_key_value.weight.detach()
    query, key, _ = (float(torch.linalg.matrix_norm(part, 2)) for part in weight.chunk(3))
    return {"largest_q": query, "largest_k": key}


def kl_of(metrics: dict[str, float]) -> dict[str, float]:
    """Return the mean KL divergence since the last time, if there was an update."""
    return {"KL": metrics["WorldModel/dynamics_real_kl_div"]} if metrics else {}


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw all ways beside each other."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        for way, curve in curves.items():
            points = [(point["update"], point[name]) for point in curve if name in point]
            axes.plot(*zip(*points, strict=True), label=way)
        axes.set(title=title, xlabel="updates more", yscale="log")
    figure.axes[0].legend(frameon=False)
    save(figure, path)


def main(arguments: list[str]) -> None:
    """Go on training in all ways, and compare."""
    parser, defaults = experiment_parser("fused_attention", __doc__), Settings()
    parser.add_argument("--agent", type=Path, default=SATURATED, help="folder of weights and config.yaml")
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    options = parser.parse_args(arguments)
    settings = replace(defaults, **{name: getattr(options, name) for name in asdict(defaults)})
    if not options.agent.is_dir():
        raise UserError(f"--agent {options.agent}: no such folder")
    torch.set_num_threads(1)
    config = apply_overrides(load_saved_config(options.agent / "config.yaml"), ["BasicSettings.device=cpu"])
    execution = Execution(config.BasicSettings, CPU)
    environment = evaluation_environment(config, 1, settings.seed)
    models = load_models(config, environment.spaces, execution, options.agent, choose_step(options.agent))
    policy = EvaluationPolicy(config, models, 1, execution, settings.seed, False)
    with contextlib.closing(environment):
        steps, returns = play_episodes(policy, environment, settings.frames, config.Environment.MaxFaults)
    curves = {way: continue_training(config, models[0], steps, settings, way) for way in WAYS}
    name = as_file_name(options.agent.name)
    record = {"settings": asdict(settings), "returns": returns, "curves": curves}
    write_record(options.out / f"{name}.json", "fused_attention", arguments, record)
    draw(curves, options.out / f"{name}.png")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run_cli(main)
