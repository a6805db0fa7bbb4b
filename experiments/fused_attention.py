"""What gradients of fused attention do to a world model that learns in bfloat16.

    python -m experiments.fused_attention                                       # a quarter of an hour or more
    python -m experiments.fused_attention --agent assets/agents/Boxing-STORM-small
    python -m experiments.fused_attention --device cuda                         # a card's kernels too

A fused kernel does not keep probabilities. Backwards it takes the gradient of a score as p·(dp − δ), δ being
the row's sum of the output's gradient times the output as it was rounded to bfloat16 (Dao, FlashAttention-2,
2023, algorithm 2). With dropout there are two orders: to round the probabilities that dropout kept, and to
divide by the share that it keeps afterwards (FlashAttention-2), or to round them once they are divided, which
makes 1 / 0.9 = 1.1111 to 1.1094, but not in dp. Both are written out here, so that no card is needed.

First, heads that see one key alone: the true gradient of their scores is 0, and "bias" is the slope of what
is found against dp. Then an agent's world model goes on learning, with a fresh optimizer, from episodes that
it plays: in float32, in bfloat16 by two products and a softmax, as sub_models does, and in both fused ways.
The default agent trained on a card with PyTorch's fused attention for 50,000 steps; a head of it sees one
key alone.
Writes <out>/<folder>.json and .png: the biases, the largest singular values of the first block's W_q and W_k,
which grow in one way until attention fails, and the prior's KL divergence, which jumps when it does.

Qiu & Yao, Why Low-Precision Transformer Training Fails (arXiv:2510.04212), found such a bias, of another
origin, in language models.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.keys import Range, fixed
from configuration.loading import apply_overrides, load_saved_config
from configuration.schema import Config
from evaluation.episodes import evaluation_environment
from evaluation.policies import EvaluationPolicy, choose_step, load_models
from evaluation.predictions import play_episodes
from experiments.figures import save
from experiments.training import add_settings, experiment_parser, read_settings, write_record
from run_files.provenance import machine_facts
from sub_models import attention_blocks
from sub_models.batch import Batch
from sub_models.fast_forms import attend, causal_mask
from sub_models.world_models import WorldModel
from training.learner import Learner
from utils import REPOSITORY, UserError, as_file_name, resolve_device, run_cli

SATURATED = REPOSITORY / "assets" / "saturated_attention"
CPU = torch.device("cpu")
SHOWN = {"largest_q": "largest singular value of W_q", "largest_k": "of W_k", "KL": "KL of the prior, nats"}
MANY = Range(2, 4_096)
Attention = Callable[[Tensor, Tensor, Tensor, bool, float], Tensor]  # as sub_models.fast_forms.attend


@dataclass(frozen=True)
class Settings:
    """Every number of the experiment."""

    frames: int = fixed(4_000, "frames of the agent's episodes, at least", Range(100, 100_000))
    updates: int = fixed(1_500, "updates of the world model", Range(0, 1_000_000))
    log_every: int = fixed(50, "updates between two points of the curves", Range(1, 1_000_000))
    seed: int = fixed(0, "of episodes, windows and noise", Range(0, 2**31 - 1))
    heads: int = fixed(512, "heads that see one key alone, each with as many queries as keys", MANY)
    keys: int = fixed(16, "keys of such a head", MANY)
    head_size: int = fixed(64, "numbers of a query", MANY)
    spread: int = fixed(64, "how far apart keys are, so that one has all the probability", MANY)
    dropped: float = fixed(0.1, "share of probabilities that dropout drops there", Range(0, 1, "[)"))


class FusedAttention(torch.autograd.Function):
    """dropout(softmax(query·keysᵀ/√d + mask))·values as fused kernels compute it and its gradients."""

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        kept: Tensor,
        shares: tuple[float, float],
    ) -> Tensor:
        """Return (B, heads, T, d) bfloat16.

        Args:
            kept: (B, heads, T, T), 1 where dropout keeps a probability, else 0.
            shares: what probabilities are divided by before, and after, they are rounded.
        """
        scores = scores_of(query, keys, visible)
        most = scores.amax(-1, keepdim=True)
        weights = (scores - most).exp()
        total = weights.sum(-1, keepdim=True)
        before, after = shares
        rounded = (weights * kept / before).bfloat16().float()
        output = (rounded @ values.float() / (total * after)).bfloat16()
        context.visible, context.shares = visible, shares
        context.save_for_backward(query, keys, values, output, most + total.log(), kept)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, keys and values, bfloat16."""
        query, keys, values, output, normaliser, kept = context.saved_tensors
        before, after = context.shares
        gradient = gradients[0].float()
        probabilities = (scores_of(query, keys, context.visible) - normaliser).exp()
        row_sum = (gradient * output.float()).sum(-1, keepdim=True)
        of_probabilities = gradient @ values.float().mT * kept / (before * after)
        of_products = (probabilities * (of_probabilities - row_sum)).bfloat16().float()
        of_scores = of_products * query.shape[-1] ** -0.5
        of_values = (probabilities * kept / before).bfloat16().float().mT @ gradient / after
        found = (of_scores @ keys.float(), of_scores.mT @ query.float(), of_values)
        return *(part.bfloat16() for part in found), None, None, None


def scores_of(query: Tensor, keys: Tensor, visible: Tensor | None) -> Tensor:
    """Return query·keysᵀ/√d, float32, −∞ where nothing is visible."""
    scores = query.float() @ keys.float().mT * query.shape[-1] ** -0.5
    return scores if visible is None else scores.masked_fill(~visible, -math.inf)


def attend_as_fused(
    query: Tensor, keys: Tensor, values: Tensor, causal: bool, dropout: float, divided_first: bool = False
) -> Tensor:
    """Return what `attend` returns, by FusedAttention where there are gradients, on a CPU."""
    if not torch.is_grad_enabled():
        return attend(query, keys, values, causal, dropout)
    visible = causal_mask(query.shape[2], keys.shape[2], query.device) if causal else None
    share = 1 - dropout
    kept = torch.empty(*query.shape[:3], keys.shape[2]).bernoulli_(share)
    with torch.autocast("cpu", enabled=False):
        shares = (share, 1.0) if divided_first else (1.0, share)
        return FusedAttention.apply(query, keys, values, visible, kept, shares)


WAYS: dict[str, tuple[str, Attention]] = {  # how gradients are taken → BasicSettings.Precision, attention
    "float32": ("float32", attend),
    "products": ("bfloat16", attend),
    "fused, rounded first": ("bfloat16", attend_as_fused),
    "fused, divided first": ("bfloat16", functools.partial(attend_as_fused, divided_first=True)),
}


def attend_by(backend: SDPBackend) -> Attention:
    """Return attention by one of PyTorch's kernels."""

    def attention(query: Tensor, keys: Tensor, values: Tensor, causal: bool, dropout: float) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, keys, values, dropout_p=dropout, is_causal=causal)

    return attention


def bias(attention: Attention, settings: Settings, device: torch.device) -> float:
    """Return the slope against dp of the gradient of scores where one key has all the probability."""
    torch.manual_seed(settings.seed)
    shape = (settings.heads, 1, settings.keys, settings.head_size)
    positions = torch.linspace(-1, 1, settings.keys).unsqueeze(-1) * settings.spread
    parts = (1 + torch.rand(shape), positions + torch.rand(shape), torch.randn(shape))
    query, keys, values = (part.to(device, torch.bfloat16).requires_grad_() for part in parts)
    output = attention(query, keys, values, False, settings.dropped)
    gradient = torch.randn(shape, device=device)
    (of_query,) = torch.autograd.grad((output.float() * gradient).sum(), query)
    seen = keys.detach().float()[:, :, -1:]
    of_scores = (of_query.float() * seen).sum(-1) / (seen.square().sum(-1) * settings.head_size**-0.5)
    of_probabilities = (output.detach().float() * gradient).sum(-1)  # as p is 1
    return float((of_scores * of_probabilities).sum() / of_probabilities.square().sum())


def biases(settings: Settings, device: torch.device) -> dict[str, float]:
    """Return the bias of every way in bfloat16, and on a card of each of PyTorch's kernels."""
    found = {way: bias(attention, settings, CPU) for way, (_, attention) in WAYS.items() if way != "float32"}
    if device.type == "cuda":
        found["products on the card"] = bias(attend, settings, device)
        for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
            with contextlib.suppress(RuntimeError):  # not on this card
                found[name] = bias(attend_by(getattr(SDPBackend, name)), settings, device)
    return found


def continue_training(
    config: Config, world_model: WorldModel, steps: Batch, settings: Settings, way: str
) -> list[dict[str, float]]:
    """Train a copy of a world model on windows of steps (1, T); return what is logged."""
    precision, attention = WAYS[way]
    config = apply_overrides(config, [f"BasicSettings.Precision={precision}"])
    streams, generator = RandomStreams(settings.seed, CPU), torch.Generator().manual_seed(settings.seed)
    streams.seed_default()
    learner = Learner(config, world_model.spaces, Execution(config.BasicSettings, CPU), streams)
    learner.world_model.load_state_dict(world_model.state_dict())
    task, curve = config.JointTrainAgent, []
    rows, length = task.BatchSize, task.BatchLength
    with patch.object(attention_blocks, "attend", attention):
        for update in range(settings.updates + 1):
            if update % settings.log_every == 0:
                curve.append({"update": update, **largest(learner), **kl_of(learner.metrics.read())})
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
    figure.axes[0].legend(frameon=False, fontsize="small")
    save(figure, path)


def main(arguments: list[str]) -> None:
    """Measure the biases, go on training in all ways, and compare."""
    parser = experiment_parser("fused_attention", __doc__)
    parser.add_argument("--agent", type=Path, default=SATURATED, help="folder of weights and config.yaml")
    parser.add_argument("--device", default="cpu", help="whose kernels are measured too: cpu (none) or cuda")
    add_settings(parser, Settings())
    options = parser.parse_args(arguments)
    settings = read_settings(options, Settings())
    if not options.agent.is_dir():
        raise UserError(f"--agent {options.agent}: no such folder")
    torch.set_num_threads(1)
    device = resolve_device(options.device)
    found = biases(settings, device)
    print("bias", {name: f"{value:.2e}" for name, value in found.items()}, flush=True)
    config = apply_overrides(load_saved_config(options.agent / "config.yaml"), ["BasicSettings.device=cpu"])
    execution = Execution(config.BasicSettings, CPU)
    environment = evaluation_environment(config, 1, settings.seed)
    models = load_models(config, environment.spaces, execution, options.agent, choose_step(options.agent))
    policy = EvaluationPolicy(config, models, 1, execution, settings.seed, False)
    with contextlib.closing(environment):
        steps, returns = play_episodes(policy, environment, settings.frames, config.Environment.MaxFaults)
    curves = {way: continue_training(config, models.world_model, steps, settings, way) for way in WAYS}
    name = as_file_name(options.agent.name)
    facts = {
        "bias_on": machine_facts(device)["hardware"],
        "runs_at_a_time": 1,
        "settings": asdict(settings),
    }
    record = {**facts, "returns": returns, "bias": found, "curves": curves}
    write_record(options.out / f"{name}.json", "fused_attention", arguments, record)
    draw(curves, options.out / f"{name}.png")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run_cli(main)
