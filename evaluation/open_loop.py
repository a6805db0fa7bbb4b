"""What a world model predicts when it sees only a context: open-loop predictions and their videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from compute.random_streams import RandomStreams
from sub_models.batch import Batch
from sub_models.cnn import PIXEL_MAX
from sub_models.functions_losses import entropy, one_hot, sample
from sub_models.world_models import WorldModel

CONTEXT_MARK = (255, 200, 0)  # colour of the line above frames that the model was shown
MARK_HEIGHT = 2


@dataclass(frozen=True)
class OpenLoop:
    """What the model predicts when it sees only a context and the actions that follow."""

    frames: Tensor  # float32 (B, T, C, H, W) in about [0, 1]: reconstructions, then predictions
    hidden: Tensor  # (B, T, D): h after each step, of which the last horizon are predictions
    reward: Tensor  # float32 (B, T)
    termination: Tensor  # float32 (B, T), 0 or 1


@torch.no_grad()
def open_loop(world_model: WorldModel, batch: Batch, context: int, streams: RandomStreams) -> OpenLoop:
    """Posterior samples for the first `context` steps of (B, T) windows, then prior samples.

    The real actions are taken throughout. Draws from the stream "open_loop" of `streams`,
    which should not be the training's.
    """
    batch_size, length = batch.action.shape
    num_latents, prior = world_model.config.NumLatents, world_model.prior
    index = sample(
        world_model.posterior(batch.observation[:, :context]),
        streams.uniform("open_loop", batch_size, context, num_latents),
    )
    latents = [world_model.one_hot_latent(index)]
    cache = world_model.sequence_model.make_cache(length)
    hiddens = [world_model.sequence_model(latents[0], batch.action[:, :context], cache)]
    for step in range(context, length):
        noise = streams.uniform("open_loop", batch_size, prior.sample_noise_size)
        latents.append(world_model.one_hot_latent(prior.sample(hiddens[-1][:, -1], noise)).unsqueeze(1))
        hiddens.append(world_model.sequence_model(latents[-1], batch.action[:, step : step + 1], cache))
    hidden = torch.cat(hiddens, dim=1)
    return OpenLoop(
        frames=world_model.decode(torch.cat(latents, dim=1)).float(),
        hidden=hidden,
        reward=world_model.predict_reward(hidden),
        termination=world_model.predict_termination(hidden),
    )


def comparison_video(truth: Tensor, prediction: Tensor, context: int) -> np.ndarray:
    """Truth, prediction and absolute error in three rows, one column per trajectory.

    Args:
        truth: uint8 (B, T, H, W, C). prediction: float (B, T, C, H, W) in about [0, 1].
        context: the first frames, which the model was shown, are marked by a line on top.

    Returns:
        uint8 (T, 3·H + mark, B·W, 3).
    """
    predicted = (prediction.clamp(0, 1) * PIXEL_MAX).round().to(torch.uint8).movedim(2, -1).cpu()
    truth = truth.cpu()
    error = (predicted.int() - truth.int()).abs().to(torch.uint8)
    rows = torch.stack([truth, predicted, error])
    video = rearrange(rows, "row b t h w c -> t (row h) (b w) c").expand(-1, -1, -1, len(CONTEXT_MARK))
    mark = torch.zeros(len(video), MARK_HEIGHT, video.shape[2], len(CONTEXT_MARK), dtype=torch.uint8)
    mark[:context] = torch.tensor(CONTEXT_MARK, dtype=torch.uint8)
    return torch.cat([mark, video], dim=1).numpy()


def imagination_video(
    world_model: WorldModel, batch: Batch, context: int, streams: RandomStreams
) -> np.ndarray:
    """`comparison_video` of an open-loop prediction on (B, T) windows."""
    return comparison_video(
        batch.observation, open_loop(world_model, batch, context, streams).frames, context
    )


def mean_squared_errors(truth: Tensor, prediction: Tensor) -> Tensor:
    """Mean squared pixel error (B, T) in [0, 1]² of (B, T, C, H, W) against uint8 (B, T, H, W, C)."""
    return (prediction - truth.float().movedim(-1, 2) / PIXEL_MAX).square().mean((2, 3, 4))


@torch.no_grad()
def prior_quality(world_model: WorldModel, batch: Batch, streams: RandomStreams) -> dict[str, float]:
    """How well the prior knows the posterior's next latent, on (B, L) windows.

    For MaskGIT the fully masked input is judged, from which sampling starts, so that both
    priors are asked the same question: every latent from h alone.

    Returns:
        kl: nats per step, summed over latents; perplexity: per latent, exp of the
        cross-entropy of sampled latents; prior_entropy and posterior_entropy: nats per latent.
    """
    posterior = world_model.posterior(batch.observation)
    shape = (*batch.action.shape, world_model.config.NumLatents)
    index = sample(posterior, streams.uniform("open_loop", *shape))
    hidden = world_model.sequence_model(world_model.one_hot_latent(index), batch.action)[:, :-1]
    prior = world_model.prior.log_probs(hidden)
    target = posterior[:, 1:]
    chosen = one_hot(index[:, 1:], world_model.config.NumClasses)
    return {
        "kl": float((target.exp() * (target - prior)).sum((-2, -1)).mean()),
        "perplexity": float((-(chosen * prior).sum(-1)).mean().exp()),
        "prior_entropy": float(entropy(prior).mean()),
        "posterior_entropy": float(entropy(posterior).mean()),
    }
