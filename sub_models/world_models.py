"""The world model: posterior, sequence model, prior, decoder and heads, with its loss.

STORM and GIT-STORM are this one class; the prior it is given makes the difference. So do images and
vectors, by their encoder and decoder, and classes and boxes of actions.

At step t an action a_t is taken on an observation o_t, and leads to a reward r_t and perhaps the end, d_t:

    posterior        z_t ~ q(z | o_t)           latents: K categorical variables of C classes
    sequence model   h_t = f(z_≤t, a_≤t)
    heads            r_t, d_t from h_t
    prior            z_t+1 ~ p(z | h_t)         in imagination, where there is no o_t+1
    decoder          o_t from z_t
    agent            a_t from (z_t, h_t−1)

Whatever draws takes uniform noise as an argument, and the `…_noise_size` attributes say how much of it: so
the same noise gives the same draw, in compiled code and in CUDA graphs too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configuration.schema import ModelsConfig
from configuration.spaces import Spaces
from sub_models.attention_blocks import KeyValueCache
from sub_models.batch import Batch
from sub_models.encoders import make_decoder, make_encoder
from sub_models.functions_losses import (
    TwoHotSymlog,
    categorical_kl,
    entropy,
    free_nats,
    one_hot,
    sample,
    squared_error,
    straight_through,
    unimix_log_probs,
    weighted_sum,
)
from sub_models.image import moving_pixels
from sub_models.mlp import mlp
from sub_models.precision import compute_dtype
from sub_models.priors import make_prior
from sub_models.transformer_model import SequenceModel


@dataclass
class ImaginationState:
    """Where an imagined rollout stands."""

    latents: Tensor  # (B, T, K·C): what was appended last, one step or a context
    hiddens: Tensor  # (B, T, D): h after each of these steps
    cache: list[KeyValueCache]  # keys and values of everything up to now

    @property
    def hidden(self) -> Tensor:
        """h_t, (B, D)."""
        return self.hiddens[:, -1]


class WorldModel(nn.Module):
    """STORM's world model (STORM, section 3.1) with either prior.

    Args:
        models: the Models section.
        model_type: "STORM", "GITSTORM", or a prior as module:Class.
        spaces: what is observed and done.
    """

    def __init__(self, models: ModelsConfig, model_type: str, spaces: Spaces) -> None:
        super().__init__()
        self.config = config = models.WorldModel
        self.spaces = spaces
        width = config.TransformerHiddenDim
        self.latent_shape = (config.NumLatents, config.NumClasses)
        self.latent_size = config.NumLatents * config.NumClasses
        self.feature_size = self.latent_size + width
        self.two_hot = TwoHotSymlog(config.RewardBins, config.BinLimit, config.RewardDecoding)
        self.encoder = make_encoder(config, spaces.observation, self.latent_size)
        self.decoder = make_decoder(config, spaces.observation, self.latent_size)
        self.sequence_model = SequenceModel(config, spaces.action)
        self.prior = make_prior(models, model_type)
        self.reward_head = mlp(width, width, config.HeadLayers, config.RewardBins, config.NormEps)
        self.termination_head = mlp(width, width, config.HeadLayers, 1, config.NormEps)
        self.loss_weights = {
            "reconstruction_loss": config.ReconstructionWeight,
            "reward_loss": 1.0,
            "termination_loss": 1.0,
            "dynamics_loss": config.DynamicsWeight,
            "representation_loss": config.RepresentationWeight,
        }
        self.posterior_noise_size = config.NumLatents  # uniform numbers per observation
        self.loss_noise_size = (
            self.posterior_noise_size + self.prior.predict_noise_size
        )  # per step of a batch

    # Parts, each of which works on any number of leading axes.

    def posterior(self, observation: Tensor) -> Tensor:
        """Return q(z | o): observations (..., *shape) → log-probabilities (..., K, C), float32."""
        return unimix_log_probs(self.posterior_logits(observation), self.config.Unimix)

    def posterior_logits(self, observation: Tensor) -> Tensor:
        """Return logits (..., K, C) of q(z | o) before unimix, of observations (..., *shape)."""
        lead = observation.shape[: observation.dim() - len(self.spaces.observation.shape)]
        logits = self.encoder(observation.flatten(0, len(lead) - 1))
        return logits.unflatten(-1, self.latent_shape).unflatten(0, lead)

    def decode(self, latent: Tensor) -> Tensor:
        """Return predictions of `decoder.target(observation)` from flat latents (..., K·C).

        Of images (..., C, H, W) in about [0, 1], of vectors (..., n) in symlog space.
        """
        return self.decoder(latent.flatten(0, -2)).unflatten(0, latent.shape[:-1])

    def one_hot_latent(self, index: Tensor) -> Tensor:
        """Return flat one-hot latents (..., K·C) of class indices (..., K), in the dtype of the products."""
        return one_hot(index, self.config.NumClasses, compute_dtype(index.device)).flatten(-2)

    def feature(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """Return what the agent sees, (..., K·C + D): z_t beside h_{t−1} (STORM, eq. 7)."""
        return torch.cat([latent, hidden.to(latent.dtype)], dim=-1)

    def predict_reward(self, hidden: Tensor) -> Tensor:
        """Return the expected reward (...) of h (..., D), float32."""
        return self.two_hot.decode(self.reward_head(hidden))

    def predict_termination(self, hidden: Tensor) -> Tensor:
        """Return whether the episode ends (...), float32 0 or 1, of h (..., D)."""
        return (self.termination_head(hidden).squeeze(-1) > 0).float()

    # Learning.

    def loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss of a batch of windows (STORM, eq. 5).

        Args:
            batch: (B, L) windows.
            noise: (B, L, loss_noise_size), uniform in [0, 1).

        Returns:
            0-d loss, and metrics as detached 0-d tensors.
        """
        posterior_noise, prior_noise = noise.tensor_split([self.posterior_noise_size], dim=-1)
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
        total = weighted_sum(losses, self.loss_weights)
        metrics |= losses | {"total_loss": total, "real_reward": batch.reward.mean()}
        return total, {name: value.detach() for name, value in metrics.items()}

    def head_losses(self, batch: Batch, latent: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Return loss maps (B, L), float32, of what is predicted for each step."""
        maps = {
            "reconstruction_loss": self.reconstruction_loss(latent, batch.observation),
            "reward_loss": self.two_hot.loss(self.reward_head(hidden), batch.reward),
            "termination_loss": F.binary_cross_entropy_with_logits(
                self.termination_head(hidden).squeeze(-1).float(), batch.termination.float(), reduction="none"
            ),
        }
        assert all(values.shape == batch.reward.shape for values in maps.values())
        return maps

    def reconstruction_loss(self, latent: Tensor, observation: Tensor) -> Tensor:
        """Return the squared error (B, L), float32, of what is decoded from latents (B, L, K·C).

        Pixels of sprites are few: with `MovingWeight` they count more.
        """
        target, weight = self.decoder.target(observation), None
        if self.spaces.observation.kind == "image" and self.config.MovingWeight != 1:
            moving = moving_pixels(observation, self.config.MovingThreshold)
            weight = torch.where(moving, self.config.MovingWeight, 1.0)
        return squared_error(self.decode(latent), target, weight)

    def divergences(
        self, posterior: Tensor, index: Tensor, hidden: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return KL maps (B, L−1) between q(z_{t+1} | o_{t+1}) and p(z_{t+1} | h_t), and metrics.

        The first map carries gradient to the prior only, the second to the posterior only.
        """
        target = posterior[:, 1:]
        prediction = self.prior.predict(hidden[:, :-1], index[:, 1:], noise)
        prior, kl_weight = prediction.log_probs, prediction.kl_weight
        dynamics = (categorical_kl(target.detach(), prior) * kl_weight).sum(-1)
        representation = (categorical_kl(target, prior.detach()) * kl_weight).sum(-1)
        assert dynamics.shape == representation.shape == hidden[:, 1:, 0].shape
        metrics = {
            "dynamics_real_kl_div": dynamics.mean(),
            "representation_real_kl_div": representation.mean(),
            "posterior_entropy": entropy(posterior.detach()).mean(),
            "prior_entropy": (entropy(prior.detach()) * kl_weight).sum() / kl_weight.sum(),
        }
        return dynamics, representation, metrics

    # Imagining and acting: evaluation mode, no gradient.

    def sample_posterior(self, posterior_logits: Tensor, noise: Tensor) -> Tensor:
        """Return flat latents (..., K·C) drawn from q(z | o) by uniform noise (..., posterior_noise_size)."""
        return self.one_hot_latent(sample(posterior_logits, noise, self.config.Unimix))

    def summarise(
        self,
        posterior_logits: Tensor,
        action: Tensor,
        noise: Tensor,
        cache: list[KeyValueCache] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw the latents of a context and run the sequence model over it.

        Args:
            posterior_logits: of q(z | o), (B, T, K, C). action: (B, T, ...).
            noise: uniform (B, T, posterior_noise_size).
            cache: keys and values of the context are added to it.

        Returns:
            Flat latents (B, T, K·C) and hidden states (B, T, D).
        """
        latent = self.sample_posterior(posterior_logits, noise)
        return latent, self.sequence_model(latent, action, cache)

    def start(self, observation: Tensor, action: Tensor, noise: Tensor, horizon: int) -> ImaginationState:
        """Return where imagination starts, after a real context.

        Args:
            observation: (B, T, *shape). action: (B, T, ...).
            noise: uniform (B, T, posterior_noise_size).
            horizon: steps that will be imagined after it.
        """
        cache = self.sequence_model.make_cache(observation.shape[1] + horizon)
        latent, hidden = self.summarise(self.posterior_logits(observation), action, noise, cache)
        return ImaginationState(latent, hidden, cache)

    def step(self, state: ImaginationState, latent: Tensor, action: Tensor) -> ImaginationState:
        """Append flat latents (B, K·C) and actions (B, ...) and summarise the past anew."""
        latent = latent.unsqueeze(1)
        hidden = self.sequence_model(latent, action.unsqueeze(1), state.cache)
        return ImaginationState(latent, hidden, state.cache)
