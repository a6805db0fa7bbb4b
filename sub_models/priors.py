"""The two priors p(z_{t+1} | h_t): STORM's factorised one (MLPPrior, one layer) and GIT-STORM's MaskGIT.

A prior answers two questions, each with its randomness as an argument: how likely is a given
latent (`predict`, in training), and what could come next (`sample`, in imagination).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from configuration.schema import ModelsConfig
from sub_models.functions_losses import sample, unimix_log_probs
from sub_models.linear import Linear
from sub_models.torch_maskgit.masking import mask_count, random_mask
from sub_models.torch_maskgit.sampling import DraftAndRevise
from sub_models.torch_maskgit.transformer import MaskedTokenTransformer
from utils import load_class


@dataclass(frozen=True)
class PriorPrediction:
    """What a prior says about given latents."""

    log_probs: Tensor  # (..., K, C) float32
    kl_weight: Tensor  # (..., K) float32: weight of the latent's KL, 0 where the prior saw it


class Prior(Protocol):
    """What the world model needs of a prior; made of the Models section."""

    predict_noise_size: int  # uniform numbers per position that `predict` takes
    sample_noise_size: int  # uniform numbers per position that `sample` takes

    def predict(self, hidden: Tensor, tokens: Tensor, noise: Tensor) -> PriorPrediction:
        """hidden (..., D), tokens (..., K) int64, noise (..., predict_noise_size)."""

    def sample(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """hidden (..., D), noise (..., sample_noise_size) → tokens (..., K) int64."""

    def log_probs(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) → log-probabilities (..., K, C) of each latent given h alone, float32."""


class MLPPrior(nn.Module):
    """STORM's prior: one linear layer, the K latents independent given h_t (STORM, eq. 4).

    Args:
        models: the Models section.
    """

    def __init__(self, models: ModelsConfig) -> None:
        super().__init__()
        config = models.WorldModel
        self.shape = (config.NumLatents, config.NumClasses)
        self.unimix = config.Unimix
        self.head = Linear(config.TransformerHiddenDim, config.NumLatents * config.NumClasses)
        self.predict_noise_size = 0
        self.sample_noise_size = config.NumLatents

    def log_probs(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) → log-probabilities (..., K, C), float32."""
        return unimix_log_probs(self.logits(hidden), self.unimix)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) → logits (..., K, C), before unimix."""
        return self.head(hidden).unflatten(-1, self.shape)

    def predict(self, hidden: Tensor, tokens: Tensor, noise: Tensor) -> PriorPrediction:
        """The prior of every latent; all of them count."""
        log_probs = self.log_probs(hidden)
        return PriorPrediction(log_probs, torch.ones_like(log_probs[..., 0]))

    def sample(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """Independent draws of the K latents."""
        return sample(self.logits(hidden), noise, self.unimix)


class MaskGITPrior(nn.Module):
    """GIT-STORM's prior: a masked token model of z_{t+1} given h_t (GIT-STORM, section 3.1).

    Args:
        models: the Models section.
    """

    def __init__(self, models: ModelsConfig) -> None:
        super().__init__()
        world_model, config = models.WorldModel, models.MaskGit
        self.num_latents = world_model.NumLatents
        self.unimix = world_model.Unimix
        self.schedule, self.min_mask_ratio = config.MaskSchedule, config.MinMaskRatio
        self.estimates_all = config.KLOver == "all"
        self.transformer = MaskedTokenTransformer(
            config, world_model.NumLatents, world_model.NumClasses, world_model.TransformerHiddenDim
        )
        sweeps = (config.T_draft, config.T_revise, config.M)
        self.plan = DraftAndRevise(self.num_latents, *sweeps, unimix=self.unimix)
        if config.T_draft > 1 and not self.plan.is_joint:
            warnings.warn(
                f"T_draft={config.T_draft} has no effect: the last revise sweep has one group, which "
                "redraws every token without looking at the draft; set T_revise > 1 or M=0",
                stacklevel=2,
            )
        self.predict_noise_size = 1 + self.num_latents

    @property
    def sample_noise_size(self) -> int:
        """Uniform numbers per position that the present plan takes."""
        return self.plan.noise_size

    def predict(self, hidden: Tensor, tokens: Tensor, noise: Tensor) -> PriorPrediction:
        """Hide a random part of the tokens and predict it; only the hidden part counts.

        By `KLOver` its KL counts as it is, or scaled to estimate that of all K tokens (TECO).
        """
        hidden_rows, token_rows, noise_rows = (x.flatten(0, -2) for x in (hidden, tokens, noise))
        count = mask_count(noise_rows[:, 0], self.schedule, self.num_latents, self.min_mask_ratio)
        masked = random_mask(count, noise_rows[:, 1:])
        visible = token_rows.masked_fill(masked, self.transformer.mask_token)
        logits = self.transformer(visible, self.transformer.condition(hidden_rows))
        log_probs = unimix_log_probs(logits, self.unimix)
        lead = tokens.shape[:-1]
        kl_weight = masked.float()
        if self.estimates_all:
            kl_weight = kl_weight * (self.num_latents / count).unsqueeze(-1)
        return PriorPrediction(log_probs.unflatten(0, lead), kl_weight.unflatten(0, lead))

    def log_probs(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) → log-probabilities (..., K, C) from the fully masked input, float32."""
        rows = hidden.flatten(0, -2)
        tokens = torch.full(
            (len(rows), self.num_latents), self.transformer.mask_token, dtype=torch.long, device=rows.device
        )
        logits = self.transformer(tokens, self.transformer.condition(rows))
        return unimix_log_probs(logits, self.unimix).unflatten(0, hidden.shape[:-1])

    def sample(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """Draft-and-Revise draws of the K latents."""
        condition = self.transformer.condition(hidden.flatten(0, -2))

        def predict(tokens: Tensor, positions: Tensor | None) -> Tensor:
            return self.transformer(tokens, condition, positions)

        tokens = self.plan.draw(predict, self.transformer.mask_token, noise.flatten(0, -2))
        return tokens.unflatten(0, hidden.shape[:-1])


PRIORS = {"STORM": MLPPrior, "GITSTORM": MaskGITPrior}


def make_prior(models: ModelsConfig, model_type: str) -> Prior:
    """Return the prior of a model type: a name in PRIORS, or module:Class.

    Raises:
        UserError: there is no such class.
    """
    return (PRIORS.get(model_type) or load_class(model_type))(models)
