"""How well a world model predicts episodes that it was not trained on: `eval.py -world_model`.

By horizon: the squared pixel error of open-loop predictions (posterior context, then prior
samples, real actions throughout) against copying the last frame of the context, and how well
reward and termination are told, and the prior's KL divergence and perplexity.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from agents import Policy
from compute.execution import Execution
from compute.random_streams import RandomStreams, derive_seed
from configuration.schema import Config
from env_wrapper import VectorEnvironment
from evaluation.episodes import evaluation_environment, play
from evaluation.open_loop import OpenLoop, comparison_video, mean_squared_errors, open_loop, prior_quality
from evaluation.policies import EvaluationPolicy, load_models
from evaluation.target import Target
from run_files.loggers import encode_gif
from run_files.provenance import machine_facts
from sub_models.batch import Batch
from sub_models.functions_losses import categorical_kl, sample
from sub_models.image import PIXEL_MAX
from sub_models.world_models import WorldModel
from utils import UserError, resolve_device, write_atomically

DOTS_PER_INCH = 120
VIDEO_FPS = 5.0  # slow enough to compare
MODEL_COLOUR, COPY_COLOUR, THIRD_COLOUR = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito (2008)


@dataclass(frozen=True)
class ByHorizon:
    """One number for each horizon 1 … H; errors are mean squares of pixels in [0, 1]."""

    model_error: list[float]  # of predictions from the context
    copy_error: list[float]  # of the last context frame
    reconstruction_error: list[float]  # of the true frame, decoded from a sample of its posterior
    changed_share: list[float]  # windows whose true frame differs from the last context frame
    changed_model_error: list[float]  # over those windows; nan if there are none
    changed_copy_error: list[float]
    changed_reconstruction_error: list[float]
    moved_model_error: list[float]  # over the pixels of a window that differ from the last context frame
    moved_copy_error: list[float]
    reward_error: list[float]  # mean absolute difference of predicted and real reward
    reward_accuracy: list[float]  # share of steps with the right sign, 0 included
    zero_reward_accuracy: list[float]  # of always predicting 0
    termination_accuracy: list[float]
    no_termination_accuracy: list[float]  # of never predicting one
    prior_kl: list[float]  # nats a step: the true frame's posterior from the prior, summed over latents
    prior_perplexity: list[float]  # per latent, of samples of that posterior


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
    """Evenly spread windows (B, L) of a sequence (1, T); disjoint if T ≥ B·L."""
    last = steps.action.shape[1] - length
    assert last >= 0, f"{steps.action.shape[1]} steps are too few for windows of {length}"
    starts = torch.linspace(0, last, windows).long()
    where = starts.unsqueeze(1) + torch.arange(length)
    return Batch(*(values[0][where] for values in steps))


@torch.no_grad()
def errors_by_horizon(
    world_model: WorldModel, batch: Batch, prediction: OpenLoop, context: int, streams: RandomStreams
) -> ByHorizon:
    """Judge an open-loop prediction of (B, context + H) windows.

    Reward and termination at horizon h are those of the action taken on the h-th predicted frame. The
    prior is that of each latent from h alone, where h summarises what was predicted before.
    """
    truth, last = batch.observation[:, context:], batch.observation[:, context - 1 : context]
    copied = last.movedim(-1, 2).float() / PIXEL_MAX
    posterior = world_model.posterior(truth)
    index = sample(posterior, streams.uniform("open_loop", *posterior.shape[:-1]))
    encoded = mean_squared_errors(truth, world_model.decode(world_model.one_hot_latent(index)).float())
    model = mean_squared_errors(truth, prediction.prediction[:, context:])
    copy = mean_squared_errors(truth, copied)
    moved = (truth != last).movedim(-1, 2)
    changed = moved.flatten(2).any(-1)
    reward, predicted = batch.reward[:, context:], prediction.reward[:, context:]
    termination = batch.termination[:, context:]
    prior = world_model.prior.log_probs(prediction.hidden[:, context - 1 : -1])
    columns = ByHorizon(
        model_error=model,
        copy_error=copy,
        reconstruction_error=encoded,
        changed_share=changed,
        changed_model_error=model.where(changed, math.nan),
        changed_copy_error=copy.where(changed, math.nan),
        changed_reconstruction_error=encoded.where(changed, math.nan),
        moved_model_error=masked_errors(truth, prediction.prediction[:, context:], moved),
        moved_copy_error=masked_errors(truth, copied, moved),
        reward_error=(predicted - reward).abs(),
        reward_accuracy=round_to_sign(predicted, batch.reward) == reward.sign(),
        zero_reward_accuracy=reward == 0,
        termination_accuracy=prediction.termination[:, context:] == termination,
        no_termination_accuracy=termination == 0,
        prior_kl=categorical_kl(posterior, prior).sum(-1),
        prior_perplexity=-prior.gather(-1, index.unsqueeze(-1)).squeeze(-1).mean(-1),  # its logarithm
    )
    means = {name: values.float().nanmean(0) for name, values in vars(columns).items()}
    means["prior_perplexity"] = means["prior_perplexity"].exp()
    return ByHorizon(**{name: values.tolist() for name, values in means.items()})


def masked_errors(truth: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error (B, T) over masked pixels, bool (B, T, C, H, W); nan where there are none."""
    squares = (frames - truth.float().movedim(-1, 2) / PIXEL_MAX).square()
    return (squares * mask).sum((2, 3, 4)) / mask.sum((2, 3, 4))


def round_to_sign(predicted: Tensor, rewards: Tensor) -> Tensor:
    """-1, 0 or 1: the sign of predicted rewards, 0 if nearer to 0 than to the smallest real one."""
    sizes = rewards.abs()[rewards != 0]
    smallest = sizes.min() if sizes.numel() else rewards.new_tensor(1.0)
    return predicted.sign() * (predicted.abs() > smallest / 2)


def window_lengths(config: Config) -> tuple[int, int]:
    """Context and horizon, no longer together than the windows the model was trained on."""
    task = config.JointTrainAgent
    context = task.ImagineContextLength
    horizon = min(config.Evaluation.PredictionHorizon, task.BatchLength - context)
    if horizon < 1:
        raise UserError(f"nothing to predict: BatchLength={task.BatchLength}, ImagineContextLength={context}")
    return context, horizon


def report_world_model(target: Target) -> None:
    """Judge the world model of a target's last checkpoint, print and write the result."""
    settings = target.config.BasicSettings
    execution = Execution(settings, resolve_device(settings.device))
    result, video = measure(target.config, execution, target.checkpoints, target.steps[-1], target.seed)
    print(table(result))
    paths = write_report(result, video, target.results, target.run.name)
    print(f"wrote {', '.join(map(str, paths))}")


def measure(
    config: Config, execution: Execution, checkpoints: Path, step: int, seed: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Play fresh episodes with a checkpoint's policy and judge its world model on them.

    Returns:
        The result, ready for JSON, and a video uint8 (T, H, W, 3) of truth, prediction and error.
    """
    context, horizon = window_lengths(config)
    settings = config.Evaluation
    environment = evaluation_environment(config, 1, seed, purpose="held-out episodes")
    with contextlib.closing(environment):
        models = load_models(config, environment.spaces, execution, checkpoints, step)
        policy = EvaluationPolicy(config, models, 1, execution, seed, settings.Greedy)
        wanted = settings.PredictionWindows * (context + horizon)
        steps, returns = play_episodes(policy, environment, wanted, config.Environment.MaxFaults)
    world_model = models[0]
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
        "steps_played": steps.action.shape[1],
        "episode_returns": returns,
        "prior": prior_quality(world_model, batch, streams),
        "by_horizon": asdict(errors_by_horizon(world_model, batch, prediction, context, streams)),
    }
    shown = settings.VideoWindows
    video = comparison_video(batch.observation[:shown], prediction.prediction[:shown], context)
    return result | {"beats_copy_where_changed": beats_copy(result["by_horizon"])}, video


def beats_copy(by_horizon: dict[str, list[float]]) -> bool:
    """Whether predictions are nearer than the copied frame at every horizon at which a picture changes.

    False if none ever changes.
    """
    pairs = zip(by_horizon["changed_model_error"], by_horizon["changed_copy_error"], strict=True)
    better = [model < copy for model, copy in pairs if not math.isnan(copy)]
    return bool(better) and all(better)


def table(result: dict[str, Any]) -> str:
    """The result as a few lines of text."""
    columns = result["by_horizon"]
    lines = [
        f"{result['env_name']}, {result['model']} at step {result['step']}: {result['windows']} windows of "
        f"{len(result['episode_returns'])} held-out episodes, context {result['context']}",
        "         changed windows            changed pixels    sign of reward     termination"
        "             prior",
        "horizon  share   error   copied    error   copied    right  (always 0)  right   (never)"
        "      KL  perplexity",
    ]
    for index in range(len(columns["model_error"])):
        at = {name: values[index] for name, values in columns.items()}
        lines.append(
            f"{index + 1:7d}  {at['changed_share']:5.0%} {at['changed_model_error']:.5f} "
            f"{at['changed_copy_error']:.5f}  {at['moved_model_error']:.5f} {at['moved_copy_error']:.5f}  "
            f"{at['reward_accuracy']:6.1%}  ({at['zero_reward_accuracy']:6.1%})  "
            f"{at['termination_accuracy']:6.1%}  ({at['no_termination_accuracy']:6.1%})  "
            f"{at['prior_kl']:6.2f}  {at['prior_perplexity']:10.2f}"
        )
    prior = result["prior"]
    verdict = "at every" if result["beats_copy_where_changed"] else "NOT at every"
    lines.append(f"better than copying {verdict} horizon at which the picture changes")
    lines.append(
        f"prior: KL {prior['kl']:.2f} nats a step, perplexity {prior['perplexity']:.2f} a latent, "
        f"entropy {prior['prior_entropy']:.2f} (posterior {prior['posterior_entropy']:.2f}) nats a latent"
    )
    return "\n".join(lines)


def plot(result: dict[str, Any]) -> Figure:
    """Errors, accuracies, and the prior's perplexity, by horizon."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    errors, accuracies, perplexity = figure.subplots(1, 3)
    draw(
        errors,
        result["by_horizon"],
        [
            ("changed_model_error", "prediction", MODEL_COLOUR, "-"),
            ("changed_copy_error", "last frame copied", COPY_COLOUR, "-"),
            ("changed_reconstruction_error", "true frame, encoded and decoded", THIRD_COLOUR, "--"),
        ],
    )
    errors.set(ylabel="squared pixel error where the picture changes", ylim=(0, None))
    draw(
        accuracies,
        result["by_horizon"],
        [
            ("reward_accuracy", "sign of the reward", MODEL_COLOUR, "-"),
            ("zero_reward_accuracy", "… always 0", MODEL_COLOUR, ":"),
            ("termination_accuracy", "termination", COPY_COLOUR, "-"),
            ("no_termination_accuracy", "… never", COPY_COLOUR, ":"),
        ],
    )
    accuracies.set(ylabel="accuracy", ylim=(0, 1.02))
    draw(
        perplexity,
        result["by_horizon"],
        [("prior_perplexity", "prior, of the true frame's latents", MODEL_COLOUR, "-")],
    )
    perplexity.set(ylabel="perplexity of a latent", ylim=(1, None))
    figure.suptitle(f"{result['env_name']}, {result['model']}, step {result['step']}: open-loop predictions")
    return figure


def draw(axes: Axes, columns: dict[str, list[float]], lines: list[tuple[str, str, str, str]]) -> None:
    """Lines (column, label, colour, style) by horizon."""
    for name, label, colour, style in lines:
        values = columns[name]
        axes.plot(range(1, len(values) + 1), values, style, color=colour, label=label)
    axes.set_xlabel("horizon in steps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def write_report(result: dict[str, Any], video: np.ndarray, folder: Path, run_name: str) -> list[Path]:
    """Write <run>_world_model.json, .png and .gif; their paths."""
    paths = [folder / f"{run_name}_world_model.{end}" for end in ("json", "png", "gif")]
    text = json.dumps(without_nan(result), indent=1)
    write_atomically(paths[0], lambda file: file.write(text.encode()))
    write_atomically(paths[1], lambda file: plot(result).savefig(file, format="png", dpi=DOTS_PER_INCH))
    write_atomically(paths[2], lambda file: file.write(encode_gif(video, VIDEO_FPS)))
    return paths


def without_nan(value: Any) -> Any:
    """The same nested dicts and lists with None, which JSON knows, in place of nan."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
