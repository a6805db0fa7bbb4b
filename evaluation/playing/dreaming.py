"""One imagined trajectory that goes on as long as one likes, and can be held to what is really seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compute.random_streams import RandomStreams
from configuration.schema import JointTrainAgent
from configuration.spaces import ActionSpec, ObservationSpec
from evaluation.open_loop import to_pixels
from evaluation.policies import EvaluationPolicy
from sub_models.functions_losses import symexp
from sub_models.world_models import WorldModel

Uniform = Callable[..., Tensor]  # shape → float32 numbers in [0, 1) on the model's device


class Outcome(NamedTuple):
    """What the model says that an action brings."""

    reward: float
    termination: bool


class Dream:
    """The past as a world model summarises it, and the present latent: one trajectory.

    `step` lets the model imagine what an action brings, `observe` replaces the imagined present by
    what is really seen. The model looks back on as many steps as the actor has learnt on; when these
    are full, the last `context` of them, as drawn, are encoded anew from the first position on.

    Args:
        world_model: in evaluation mode. context: steps kept then.
        room: most steps that are looked back on, more than `context`.
        uniform: gives uniform random numbers.
    """

    def __init__(self, world_model: WorldModel, context: int, room: int, uniform: Uniform) -> None:
        assert not world_model.training and context < room
        self.world_model, self.context, self.room, self.uniform = world_model, context, room, uniform
        device = next(world_model.parameters()).device
        self.latent = torch.zeros(1, world_model.latent_size, device=device)  # z_t
        self.hidden = torch.zeros(1, world_model.config.TransformerHiddenDim, device=device)  # h_{t−1}
        self.posterior_logits = self.latent.unflatten(-1, world_model.latent_shape)  # of the last observation
        self._drawn: tuple[Any, Tensor] | None = None  # plan, if any, and noise that the prior drew it with
        self._past: list[tuple[Tensor, Tensor]] = []  # latents (1, K·C) and actions (1, ...)
        self._cache = world_model.sequence_model.make_cache(room)

    @staticmethod
    def of(policy: EvaluationPolicy, uniform: Uniform) -> Dream:
        """Return an empty one of a policy's world model; it looks back as imagination did in training."""
        context, horizon = imagined_lengths(policy.config.JointTrainAgent)
        return Dream(policy.world_model, context, context + horizon, uniform)

    @torch.no_grad()
    def begin(self, observation: Tensor, action: Tensor) -> Dream:
        """Forget everything; take observations (T, *shape) and the actions (T−1, ...) between them."""
        model = self.world_model
        self._past, self._cache = [], model.sequence_model.make_cache(self.room)
        logits = model.posterior_logits(observation[None])
        latent = model.sample_posterior(logits, self.uniform(*logits.shape[:2], model.posterior_noise_size))
        self.posterior_logits, self.latent, self._drawn = logits[:, -1], latent[:, -1], None
        self.hidden = torch.zeros_like(self.hidden)
        if len(action):
            self._past = [(latent[:, step], action[step : step + 1]) for step in range(len(action))]
            self._encode(self._past)
        return self

    def fork(self) -> Dream:
        """Return one that has the same past and present and goes on by itself."""
        other = copy.copy(self)
        other._past = list(self._past)
        other._cache = None
        return other

    def _encode(self, steps: list[tuple[Tensor, Tensor]]) -> None:
        latents, actions = (torch.stack(parts, dim=1) for parts in zip(*steps, strict=True))
        self.hidden = self.world_model.sequence_model(latents, actions, self._cache)[:, -1]

    @property
    def feature(self) -> Tensor:
        """What an actor sees, (1, F)."""
        return self.world_model.feature(self.latent, self.hidden)

    @property
    def groups(self) -> list[list[int]] | None:
        """Group of each latent in each sweep of the plan that drew them; None if none did."""
        plan, noise = self._drawn or (None, None)
        return None if plan is None else [sweep.tolist() for sweep in plan.groups(noise)]

    @property
    def prior_log_probs(self) -> Tensor:
        """log p(z_t | h_{t−1}), (K, C), each latent by itself."""
        return self.world_model.prior.log_probs(self.hidden)[0]

    @torch.no_grad()
    def step(self, action: Tensor) -> Outcome:
        """Take an action (...), as executed; the next latent is drawn from the prior."""
        model = self.world_model
        past = [*self._past, (self.latent, action[None])]
        if len(past) > self.room or self._cache is None:
            past = past[-self.context - 1 :] if len(past) > self.room else past
            self._cache = model.sequence_model.make_cache(self.room)
            self._encode(past)
        else:
            self._encode(past[-1:])
        self._past = past
        noise = self.uniform(1, model.prior.sample_noise_size)
        self.latent = model.one_hot_latent(model.prior.sample(self.hidden, noise))
        self._drawn = getattr(model.prior, "plan", None), noise[0]
        return Outcome(float(model.predict_reward(self.hidden)), bool(model.predict_termination(self.hidden)))

    @torch.no_grad()
    def observe(self, observation: Tensor) -> None:
        """Replace the present latent by a draw from the posterior of what is seen, (*shape)."""
        model = self.world_model
        self.posterior_logits = model.posterior_logits(observation[None])
        noise = self.uniform(1, model.posterior_noise_size)
        self.latent = model.sample_posterior(self.posterior_logits, noise)
        self._drawn = None

    @torch.no_grad()
    def picture(self) -> np.ndarray:
        """Return the present as the model draws it: an observation, uint8 (S, S, C) or float32 (n,)."""
        return as_observation(self.world_model, self.world_model.decode(self.latent)[0])


def imagined_lengths(task: JointTrainAgent) -> tuple[int, int]:
    """Return context and horizon of imagination in training."""
    return task.ImagineContextLength, task.ImagineBatchLength


def as_observation(world_model: WorldModel, decoded: Tensor) -> np.ndarray:
    """Return what `WorldModel.decode` drew, (..., C, H, W) or (..., n), as observations."""
    decoded = decoded.float()
    if world_model.spaces.observation.kind == "vector":
        return symexp(decoded).cpu().numpy()
    return to_pixels(decoded).cpu().numpy()


@dataclass(frozen=True)
class Dreamed:
    """What a model imagines after a context of T steps: H steps."""

    observation: np.ndarray  # uint8 (H, S, S, C) or float32 (H, n)
    action: np.ndarray  # (H, ...), taken on these
    reward: np.ndarray  # float32 (H,), of these actions
    termination: np.ndarray  # bool (H,)
    value: np.ndarray  # float32 (H,), the critic's, of the observations


@torch.no_grad()
def dream(
    policy: EvaluationPolicy,
    observation: np.ndarray,
    actions: np.ndarray,
    horizon: int,
    seed: int = 0,
) -> Dreamed:
    """Return what the world model imagines after a real context.

    Args:
        policy: from `load_policy`.
        observation: (T, *shape), real ones. actions: (T, ...), taken on them; up to T + horizon are
            taken as they are given, then the policy chooses.
        horizon: H, at least 1. seed: of all that is drawn.

    Raises:
        ValueError: shapes or numbers that do not fit.
    """
    spaces, device = policy.world_model.spaces, policy.streams.device
    seen = torch.from_numpy(_cast("observation", observation, spaces.observation)).to(device)
    given = torch.from_numpy(_cast("actions", actions, spaces.action)).to(device)
    low, high = (0, spaces.action.size - 1) if spaces.action.kind == "discrete" else (-1, 1)
    if not ((given >= low) & (given <= high)).all():
        raise ValueError(f"actions: must lie between {low} and {high}")
    if not (1 <= len(seen) <= len(given) <= len(seen) + horizon and horizon >= 1):
        raise ValueError(
            f"{len(given)} actions do not fit {len(seen)} observations and a horizon of {horizon}"
        )
    streams = RandomStreams(seed, device)
    context, trained = imagined_lengths(policy.config.JointTrainAgent)
    longest = policy.world_model.config.TransformerMaxLength
    kept = min(len(seen), longest - 1)
    room = min(longest, max(kept + horizon, context + trained))
    one = Dream(
        policy.world_model, min(context, room - 1), room, lambda *shape: streams.uniform("dream", *shape)
    )
    given = given[len(seen) - kept :]
    one.begin(seen[-kept:], given[: kept - 1])
    one.step(given[kept - 1])
    steps = []
    for step in range(kept, kept + horizon):
        value, picture = policy.agent.value(one.feature), one.picture()
        action = given[step] if step < len(given) else choose(policy, one)
        steps.append((picture, action.cpu().numpy(), *one.step(action), float(value)))
    return Dreamed(*(np.array(column) for column in zip(*steps, strict=True)))


def _cast(name: str, array: np.ndarray, spec: ObservationSpec | ActionSpec) -> np.ndarray:
    """Return an array (T, ...) in the spec's dtype; raise ValueError for one of another kind or shape."""
    array = np.asarray(array)
    if (
        array.ndim == 0
        or array.shape[1:] != spec.shape
        or not np.can_cast(array.dtype, spec.dtype, "same_kind")
    ):
        wanted = ", ".join(map(str, ("T", *spec.shape)))
        raise ValueError(f"{name}: {spec.dtype} ({wanted}) wanted, found {array.dtype} {array.shape}")
    return array.astype(spec.dtype)


@torch.no_grad()
def choose(policy: EvaluationPolicy, one: Dream) -> Tensor:
    """Return the action (...), as executed, that the actor takes there."""
    actions = policy.agent.actions
    outputs = policy.agent.actor(one.feature)
    draw = (
        actions.mode(outputs) if policy.greedy else actions.draw(outputs, one.uniform(1, actions.noise_size))
    )
    return actions.executed(draw)[0]
