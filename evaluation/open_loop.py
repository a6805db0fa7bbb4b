"""What a world model predicts when it sees only a context: open-loop predictions and their videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from compute.random_streams import RandomStreams
from sub_models.batch import Batch
from sub_models.image import PIXEL_MAX
from sub_models.world_models import WorldModel

CONTEXT_MARK = (255, 200, 0)  # colour of the line above frames that the model was shown
MARK_HEIGHT = 2


@dataclass(frozen=True)
class OpenLoop:
    """What the model predicts when it sees only a context and the actions that follow."""

    prediction: Tensor  # float32 (B, T, ...), as decoder.target: reconstructions, then predictions
    hidden: Tensor  # (B, T, D): h after each step, of which the last horizon are predictions
    reward: Tensor  # float32 (B, T)
    termination: Tensor  # float32 (B, T), 0 or 1
    latent: Tensor  # one-hot (B, T, K·C): posterior samples, then prior samples


@torch.no_grad()
def open_loop(world_model: WorldModel, batch: Batch, context: int, streams: RandomStreams) -> OpenLoop:
    """Predict (B, T) windows from posterior samples of the first `context` steps, then prior samples.

    The real actions are taken throughout. Draws from the stream "open_loop" of `streams`,
    which should not be the training's.
    """
    batch_size, length = batch.reward.shape
    noise = streams.uniform("open_loop", batch_size, context, world_model.posterior_noise_size)
    state = world_model.start(
        batch.observation[:, :context], batch.action[:, :context], noise, length - context
    )
    states = [state]
    for step in range(context, length):
        noise = streams.uniform("open_loop", batch_size, world_model.prior.sample_noise_size)
        latent = world_model.one_hot_latent(world_model.prior.sample(state.hidden, noise))
        state = world_model.step(state, latent, batch.action[:, step])
        states.append(state)
    latent = torch.cat([state.latents for state in states], dim=1)
    hidden = torch.cat([state.hiddens for state in states], dim=1)
    return OpenLoop(
        prediction=world_model.decode(latent).float(),
        hidden=hidden,
        reward=world_model.predict_reward(hidden),
        termination=world_model.predict_termination(hidden),
        latent=latent,
    )


def to_pixels(pictures: Tensor) -> Tensor:
    """Return pictures (..., C, H, W) in about [0, 1] as uint8 (..., H, W, C)."""
    return (pictures.clamp(0, 1) * PIXEL_MAX).round().to(torch.uint8).movedim(-3, -1)


def comparison_video(truth: Tensor, prediction: Tensor, context: int) -> np.ndarray:
    """Truth, prediction and absolute error in three rows, one column per trajectory.

    Args:
        truth: uint8 (B, T, H, W, C). prediction: float (B, T, C, H, W) in about [0, 1].
        context: the first frames, which the model was shown, are marked by a line on top.

    Returns:
        uint8 (T, 3·H + mark, B·W, 3).
    """
    predicted, truth = to_pixels(prediction).cpu(), truth.cpu()
    error = (predicted.int() - truth.int()).abs().to(torch.uint8)
    rows = torch.stack([truth, predicted, error])
    video = rearrange(rows, "row b t h w c -> t (row h) (b w) c")
    mark = torch.zeros(len(video), MARK_HEIGHT, video.shape[2], len(CONTEXT_MARK), dtype=torch.uint8)
    mark[:context] = torch.tensor(CONTEXT_MARK, dtype=torch.uint8)
    return torch.cat([mark, video], dim=1).numpy()
