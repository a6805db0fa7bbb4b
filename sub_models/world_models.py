"""The world model: posterior, sequence model, prior, decoder and heads, with its loss.

STORM and GIT-STORM are this one class; the prior it is given makes the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configuration.schema import Models as ModelsConfig
from configuration.schema import WorldModel as WorldModelConfig
from sub_models.attention_blocks import KeyValueCache
from sub_models.batch import Batch
from sub_models.cnn import PIXEL_MAX, Decoder, Encoder, code_size
from sub_models.functions_losses import (
    TwoHotSymlog,
    categorical_kl,
    entropy,
    free_nats,
    one_hot,
    sample,
    straight_through,
    unimix_log_probs,
)
from sub_models.perceptron import perceptron
from sub_models.precision import compute_dtype
from sub_models.priors import make_prior
from sub_models.transformer_model import SequenceModel


@dataclass
class ImaginationState:
    """Where an imagined rollout stands."""

    hidden: Tensor  # (B, D): h_t
    cache: list[KeyValueCache]  # keys and values of everything up to t


def to_unit_range(observation: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return observation.float() / PIXEL_MAX


class WorldModel(nn.Module):
    """STORM's world model (STORM, section 3.1) with either prior.

    Args:
        config: the Models section.
        model_type: "STORM" or "GITSTORM".
        image_size: side of the images. num_actions: A.
    """

    def __init__(self, config: ModelsConfig, model_type: str, image_size: int, num_actions: int) -> None:
        super().__init__()
        self.config: WorldModelConfig = config.WorldModel
        self.num_actions = num_actions
        width = self.config.TransformerHiddenDim
        self.latent_shape = (self.config.NumLatents, self.config.NumClasses)
        self.latent_size = self.config.NumLatents * self.config.NumClasses
        self.feature_size = self.latent_size + width
        self.two_hot = TwoHotSymlog(self.config.RewardBins, self.config.BinLimit)
        self.encoder = Encoder(self.config, image_size)
        self.posterior_head = nn.Linear(code_size(image_size, self.config.StemChannels), self.latent_size)
        self.decoder = Decoder(self.config, image_size)
        self.sequence_model = SequenceModel(self.config, num_actions)
        self.prior = make_prior(config, model_type)
        heads = (width, self.config.HeadLayers)
        self.reward_head = perceptron(width, *heads, self.config.RewardBins, self.config.NormEps)
        self.termination_head = perceptron(width, *heads, 1, self.config.NormEps)

    # Parts, each of which works on any number of leading axes.

    def posterior(self, observation: Tensor) -> Tensor:
        """q(z | o): uint8 (..., H, W, C) → log-probabilities (..., K, C), float32."""
        return unimix_log_probs(self.posterior_logits(observation), self.config.Unimix)

    def posterior_logits(self, observation: Tensor) -> Tensor:
        """Logits (..., K, C) of q(z | o) before unimix, of uint8 (..., H, W, C).

        Images and feature maps lie channels-last in memory. The head's weights, which are
        stored for channel-major features, are turned to match: they are smaller than the features.
        """
        code = self.encoder(observation.flatten(0, -4).permute(0, 3, 1, 2))
        weight = self.posterior_head.weight.unflatten(1, code.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        logits = F.linear(code.permute(0, 2, 3, 1).flatten(1), weight, self.posterior_head.bias)
        return logits.unflatten(-1, self.latent_shape).unflatten(0, observation.shape[:-3])

    def decode(self, latent: Tensor) -> Tensor:
        """Images (..., C, H, W) in about [0, 1] of flat latents (..., K·C)."""
        return self.decoder(latent.flatten(0, -2)).unflatten(0, latent.shape[:-1])

    def one_hot_latent(self, index: Tensor) -> Tensor:
        """Flat one-hot latents (..., K·C) of class indices (..., K), in the dtype of the products."""
        return one_hot(index, self.config.NumClasses, compute_dtype(index.device)).flatten(-2)

    def feature(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """What the agent sees, (..., K·C + D): z_t beside h_{t−1} (STORM, eq. 7)."""
        return torch.cat([latent, hidden.to(latent.dtype)], dim=-1)

    def predict_reward(self, hidden: Tensor) -> Tensor:
        """Expected reward (...) of h (..., D), float32."""
        return self.two_hot.decode(self.reward_head(hidden))

    def predict_termination(self, hidden: Tensor) -> Tensor:
        """Whether the episode ends (...), float32 0 or 1, of h (..., D)."""
        return (self.termination_head(hidden).squeeze(-1) > 0).float()

    # Learning.

    def loss_noise_size(self) -> int:
        """Uniform numbers per step of a batch that `loss` takes."""
        return self.config.NumLatents + self.prior.predict_noise_size

    def loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of a batch of windows (STORM, eq. 5).

        Args:
            batch: (B, L) windows.
            noise: (B, L, loss_noise_size), uniform in [0, 1).

        Returns:
            0-d loss, and metrics as detached 0-d tensors.
        """
        posterior_noise, prior_noise = noise.split(
            [self.config.NumLatents, self.prior.predict_noise_size], dim=-1
        )
        posterior = self.posterior(batch.observation)
        index = sample(posterior.detach(), posterior_noise)
        latent = straight_through(index, posterior).flatten(-2)
        hidden = self.sequence_model(latent, batch.action)
        maps = self.head_losses(batch, latent, hidden)
        dynamics, representation, metrics = self.divergences(posterior, index, hidden, prior_noise[:, 1:])
        losses = {
            **{name: values.mean() for name, values in maps.items()},
            "dynamics_loss": free_nats(dynamics, self.config.FreeNats),
            "representation_loss": free_nats(representation, self.config.FreeNats),
        }
        total = (
            losses["reconstruction_loss"]
            + losses["reward_loss"]
            + losses["termination_loss"]
            + self.config.DynamicsWeight * losses["dynamics_loss"]
            + self.config.RepresentationWeight * losses["representation_loss"]
        )
        metrics |= losses | {"total_loss": total, "real_reward": batch.reward.mean()}
        return total, {name: value.detach() for name, value in metrics.items()}

    def head_losses(self, batch: Batch, latent: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Loss maps (B, L), float32, of what is predicted for each step."""
        error = self.decode(latent).float() - to_unit_range(batch.observation).movedim(-1, -3)
        maps = {
            "reconstruction_loss": error.square().sum((-3, -2, -1)),
            "reward_loss": self.two_hot.loss(self.reward_head(hidden), batch.reward),
            "termination_loss": F.binary_cross_entropy_with_logits(
                self.termination_head(hidden).squeeze(-1).float(), batch.termination.float(), reduction="none"
            ),
        }
        assert all(values.shape == batch.reward.shape for values in maps.values())
        return maps

    def divergences(
        self, posterior: Tensor, index: Tensor, hidden: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """KL maps (B, L−1) between q(z_{t+1} | o_{t+1}) and p(z_{t+1} | h_t), and metrics.

        The first map carries gradient to the prior only, the second to the posterior only.
        """
        target = posterior[:, 1:]
        prediction = self.prior.predict(hidden[:, :-1], index[:, 1:], noise)
        prior, counted = prediction.log_probs, prediction.counted
        dynamics = (categorical_kl(target.detach(), prior) * counted).sum(-1)
        representation = (categorical_kl(target, prior.detach()) * counted).sum(-1)
        assert dynamics.shape == representation.shape == hidden[:, 1:, 0].shape
        metrics = {
            "dynamics_real_kl_div": dynamics.mean(),
            "representation_real_kl_div": representation.mean(),
            "posterior_entropy": entropy(posterior.detach()).mean(),
            "prior_entropy": (entropy(prior.detach()) * counted).sum() / counted.sum(),
        }
        return dynamics, representation, metrics

    # Imagining and acting: evaluation mode, no gradient.

    def start(self, observation: Tensor, action: Tensor, noise: Tensor, horizon: int) -> ImaginationState:
        """Run the sequence model over a real context.

        Args:
            observation: uint8 (B, T, H, W, C). action: (B, T) int64.
            noise: (B, T, K), uniform, draws the posterior samples.
            horizon: steps that will be imagined after it.
        """
        index = sample(self.posterior_logits(observation), noise, self.config.Unimix)
        cache = self.sequence_model.make_cache(observation.shape[1] + horizon)
        hidden = self.sequence_model(self.one_hot_latent(index), action, cache)
        return ImaginationState(hidden[:, -1], cache)

    def step(self, state: ImaginationState, latent: Tensor, action: Tensor) -> ImaginationState:
        """Append flat latents (B, K·C) and actions (B,) and summarise the past anew."""
        hidden = self.sequence_model(latent.unsqueeze(1), action.unsqueeze(1), state.cache)
        return ImaginationState(hidden[:, 0], state.cache)
