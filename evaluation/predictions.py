"""How well a world model predicts episodes that it was not trained on.

By horizon: the error of open-loop predictions (posterior context, then prior samples, real actions
throughout) against copying the last observation of the context, how well reward and termination
are told, and the prior's KL divergence and perplexity.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import Policy
from compute.execution import Execution
from compute.random_streams import RandomStreams, derive_seed
from configuration.schema import Config
from env_wrapper import VectorEnvironment
from evaluation.episodes import evaluation_environment, play
from evaluation.open_loop import OpenLoop, comparison_video, open_loop
from evaluation.policies import EvaluationPolicy, load_models
from run_files.provenance import machine_facts
from sub_models.batch import Batch
from sub_models.functions_losses import categorical_kl, sample
from sub_models.world_models import WorldModel
from utils import UserError


def play_episodes(
    policy: Policy, environment: VectorEnvironment, steps: int, max_faults: int
) -> tuple[Batch, list[float]]:
    """Play whole episodes until there are at least `steps` steps; one in which a fault happens is dropped.

    Args:
        policy: fresh. environment: of one environment. max_faults: in a row, that are too many.

    Returns:
        The steps as one window (1, T), across episode ends as in the replay buffer, and the returns.
    """
    rows, episode, returns = [], [], []
    for step in play(policy, environment, environment.reset(), max_faults):
        if step is None:
            episode = []
            continue
        result = step.result
        episode.append((step.observation, step.action, result.reward, result.termination))
        if result.episode_end[0]:
            rows, episode = rows + episode, []
            returns.append(float(result.episode_return[0]))
            if len(rows) >= steps:
                break
    return Batch(*(torch.from_numpy(np.stack(column, axis=1)) for column in zip(*rows, strict=True))), returns


def spread_windows(steps: Batch, windows: int, length: int) -> Batch:
    """Return evenly spread windows (B, L) of a sequence (1, T); disjoint if T ≥ B·L."""
    last = steps.reward.shape[1] - length
    assert last >= 0, f"{steps.reward.shape[1]} steps are too few for windows of {length}"
    starts = torch.linspace(0, last, windows).long()
    where = starts.unsqueeze(1) + torch.arange(length)
    return Batch(*(values[0][where] for values in steps))


@torch.no_grad()
def errors_by_horizon(
    world_model: WorldModel, batch: Batch, prediction: OpenLoop, context: int, streams: RandomStreams
) -> dict[str, list[float]]:
    """Judge an open-loop prediction of (B, context + H) windows.

    Errors are mean squares over the numbers of an observation as the decoder predicts them (pixels
    in [0, 1], vectors in symlog space). Reward and termination at horizon h are those of the action
    taken on the h-th predicted observation. The prior is that of each latent from h alone, where h
    summarises what was predicted before.

    Returns:
        By name one number for each horizon 1 … H; nan where there is nothing to average.
    """
    observations = world_model.decoder.target(batch.observation).flatten(2)
    last, truth = observations[:, context - 1 : context], observations[:, context:]
    posterior = world_model.posterior(batch.observation[:, context:])
    index = sample(posterior, streams.uniform("open_loop", *posterior.shape[:-1]))
    encoded = world_model.decode(world_model.one_hot_latent(index)).float().flatten(2)
    squares = {
        "model": (prediction.prediction[:, context:].flatten(2) - truth).square(),
        "copy": (last - truth).square(),  # of the last observation of the context
        "reconstruction": (encoded - truth).square(),  # of the truth, decoded from a sample of its posterior
    }
    moved = truth != last  # numbers of the observation
    changed = moved.any(-1)  # windows
    reward, predicted = batch.reward[:, context:], prediction.reward[:, context:]
    termination = batch.termination[:, context:]
    prior = world_model.prior.log_probs(prediction.hidden[:, context - 1 : -1])
    columns = {
        **{f"{name}_error": each.mean(-1) for name, each in squares.items()},
        "changed_share": changed,
        **{f"changed_{name}_error": each.mean(-1).where(changed, math.nan) for name, each in squares.items()},
        **{
            f"moved_{name}_error": (squares[name] * moved).sum(-1) / moved.sum(-1)
            for name in ("model", "copy")
        },
        "reward_error": (predicted - reward).abs(),
        "reward_accuracy": round_to_sign(predicted, batch.reward) == reward.sign(),
        "zero_reward_accuracy": reward == 0,  # of always predicting 0
        "termination_accuracy": prediction.termination[:, context:] == termination,
        "no_termination_accuracy": termination == 0,  # of never predicting one
        "prior_kl": categorical_kl(posterior, prior).sum(-1),  # nats a step
        "prior_perplexity": -prior.gather(-1, index.unsqueeze(-1)).squeeze(-1).mean(-1),  # its logarithm
    }
    means = {name: values.float().nanmean(0) for name, values in columns.items()}
    means["prior_perplexity"] = means["prior_perplexity"].exp()  # per latent
    return {name: values.tolist() for name, values in means.items()}


@torch.no_grad()
def reward_correlation(world_model: WorldModel, batch: Batch, streams: RandomStreams) -> float:
    """Return the correlation of the rewards told of seen (B, L) windows and the true ones; nan if alike.

    Of a model that has learned its replay buffer by heart it is near 0 in new episodes.
    """
    noise = streams.uniform("reward_correlation", *batch.reward.shape, world_model.posterior_noise_size)
    hidden = world_model.start(batch.observation, batch.action, noise, 0).hiddens
    told = world_model.predict_reward(hidden)
    return float(torch.corrcoef(torch.stack([told.flatten(), batch.reward.flatten()]))[0, 1])


def round_to_sign(predicted: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Return -1, 0 or 1: the sign of predicted rewards, 0 if nearer to 0 than to the smallest real one."""
    sizes = rewards.abs()[rewards != 0]
    smallest = sizes.min() if sizes.numel() else rewards.new_tensor(1.0)
    return predicted.sign() * (predicted.abs() > smallest / 2)


def window_lengths(config: Config) -> tuple[int, int]:
    """Return context and horizon, no longer together than the windows the model was trained on."""
    task = config.JointTrainAgent
    context = task.ImagineContextLength
    horizon = min(config.Evaluation.PredictionHorizon, task.BatchLength - context)
    if horizon < 1:
        raise UserError(f"nothing to predict: BatchLength={task.BatchLength}, ImagineContextLength={context}")
    return context, horizon


def measure(
    config: Config, execution: Execution, checkpoints: Path, step: int, seed: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Play fresh episodes with a checkpoint's policy and judge its world model on them.

    Returns:
        The result, ready for JSON, and of images a video uint8 (T, H, W, 3) of truth, prediction and error.
    """
    context, horizon = window_lengths(config)
    settings = config.Evaluation
    with contextlib.closing(
        evaluation_environment(config, 1, seed, purpose="held-out episodes")
    ) as environment:
        models = load_models(config, environment.spaces, execution, checkpoints, step)
        policy = EvaluationPolicy(config, models, 1, execution, seed, settings.Greedy)
        wanted = settings.PredictionWindows * (context + horizon)
        steps, returns = play_episodes(policy, environment, wanted, config.Environment.MaxFaults)
    world_model = models.world_model
    batch = spread_windows(steps, settings.PredictionWindows, context + horizon).to(execution.device)
    streams = RandomStreams(derive_seed(seed, "world-model report"), execution.device)
    prediction = open_loop(world_model, batch, context, streams)
    result = {
        "step": step,
        "seed": seed,
        "env_name": config.BasicSettings.env_name,
        "model": config.JointTrainAgent.ModelType,
        **machine_facts(execution.device),
        "context": context,
        "windows": settings.PredictionWindows,
        "steps_played": steps.reward.shape[1],
        "episode_returns": returns,
        "reward_correlation": reward_correlation(world_model, batch, streams),
        "by_horizon": errors_by_horizon(world_model, batch, prediction, context, streams),
    }
    if world_model.spaces.observation.kind != "image":
        return result, None
    shown = settings.VideoWindows
    return result, comparison_video(batch.observation[:shown], prediction.prediction[:shown], context)
