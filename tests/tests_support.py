"""A small configuration and random inputs that many tests share."""

from __future__ import annotations

import torch

from agents import ActorCritic, make_models
from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from sub_models.batch import Batch, Rollout
from sub_models.world_models import WorldModel
from training.learner import Learner

CPU = torch.device("cpu")
ACTIONS = 3


def image_spaces(side: int, actions: int) -> Spaces:
    """Pictures of `side` pixels, and so many classes of actions."""
    return Spaces(ObservationSpec("image", (side, side, 3)), ActionSpec("discrete", actions))


SPACES = image_spaces(16, ACTIONS)


def small_config(model_type: str = "STORM") -> Config:
    """Images of 16 pixels, 4 latents of 5 classes, width 16: fractions of a second per update."""
    config = Config()
    config.BasicSettings.ImageSize = 16
    config.BasicSettings.Precision = "float32"
    config.BasicSettings.Compile = "never"
    task, world_model = config.JointTrainAgent, config.Models.WorldModel
    task.ModelType = model_type
    task.ImagineContextLength, task.ImagineBatchLength = 3, 5
    world_model.StemChannels = 4
    world_model.NumLatents, world_model.NumClasses = 4, 5
    world_model.TransformerHiddenDim, world_model.TransformerNumHeads = 16, 4
    world_model.TransformerMaxLength = 32
    config.Models.Agent.HiddenDim = 16
    mask_git = config.Models.MaskGit
    mask_git.VocabDim = mask_git.TmfArgs.EmbedDim = mask_git.TmfArgs.MlpDim = 16
    mask_git.TmfArgs.NumHeads, mask_git.TmfArgs.NumLayers = 2, 2
    return config


def small_models(model_type: str = "STORM", seed: int = 0) -> tuple[WorldModel, ActorCritic]:
    """World model and agent in evaluation mode, with random BatchNorm statistics."""
    torch.manual_seed(seed)
    world_model, agent = make_models(small_config(model_type), SPACES, CPU)
    for name, buffer in world_model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.01, 0.2)
    return world_model, agent


def small_learner(config: Config | None = None, seed: int = 0) -> Learner:
    """A learner with seeded weights and streams."""
    torch.manual_seed(seed)
    config = config or small_config()
    return Learner(config, SPACES, Execution(config.BasicSettings, CPU), RandomStreams(seed, CPU))


def random_batch(batch: int, length: int, seed: int = 0, image_size: int = 16) -> Batch:
    """Windows of noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length)
    return Batch(
        torch.randint(256, (*shape, image_size, image_size, 3), generator=generator, dtype=torch.uint8),
        torch.randint(ACTIONS, shape, generator=generator),
        torch.randn(shape, generator=generator),
        (torch.rand(shape, generator=generator) < 0.2).float(),
    )


def random_rollout(
    agent: ActorCritic, batch: int = 6, horizon: int = 4, reward_scale: float = 1.0
) -> Rollout:
    """An imagined rollout of noise."""
    generator = torch.Generator().manual_seed(1)
    size = agent.actor[0].in_features
    return Rollout(
        torch.randn(batch, horizon + 1, size, generator=generator),
        torch.randint(ACTIONS, (batch, horizon), generator=generator),
        reward_scale * torch.randn(batch, horizon, generator=generator),
        (torch.rand(batch, horizon, generator=generator) < 0.2).float(),
    )


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform numbers in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
