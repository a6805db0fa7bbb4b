"""The actor-critic, the imagination it learns in, and the policy that acts with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.schema import Agent as AgentConfig
from configuration.schema import Config
from sub_models.batch import Rollout
from sub_models.functions_losses import TwoHotSymlog, entropy, lambda_return, percentile, sample
from sub_models.perceptron import perceptron
from sub_models.world_models import WorldModel

SMALLEST = torch.finfo(torch.float32).tiny  # keeps a ratio finite where its denominator is 0


class ReturnScale(nn.Module):
    """S: how far apart the 95th and 5th percentile of the returns are (DreamerV3, eq. 11).

    Both percentiles are averaged over updates; the averages start at 0, without debiasing.

    Args:
        config: the Agent section.
    """

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Take a batch of returns (any shape) into the averages; the new S, a 0-d tensor."""
        weight = 1 - self.config.ReturnDecay
        self.low.lerp_(percentile(returns, self.config.ReturnPercentileLow), weight)
        self.high.lerp_(percentile(returns, self.config.ReturnPercentileHigh), weight)
        return self.high - self.low


class ActorCritic(nn.Module):
    """Actor, critic and slow critic over imagined features (STORM, section 3.2).

    Args:
        config: the Agent section.
        feature_size: K·C + D. num_actions: A.
        release_quirks: bootstrap the λ-return from V(s_t) as the STORM release does.
    """

    def __init__(
        self, config: AgentConfig, feature_size: int, num_actions: int, release_quirks: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.bootstrap_shift = 0 if release_quirks else 1
        self.two_hot = TwoHotSymlog(config.ValueBins, config.BinLimit)
        shape = (feature_size, config.HiddenDim, config.NumLayers)
        self.actor = perceptron(*shape, num_actions, config.NormEps)
        self.critic = perceptron(*shape, config.ValueBins, config.NormEps)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_scale = ReturnScale(config)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters of actor and critic, which one optimizer updates."""
        return [*self.actor.parameters(), *self.critic.parameters()]

    def value(self, feature: Tensor) -> Tensor:
        """The critic's value (...) of features (..., F), float32."""
        return self.two_hot.decode(self.critic(feature))

    def returns(self, rollout: Rollout, value: Tensor) -> Tensor:
        """λ-returns (B, H) of a rollout under values (B, H+1)."""
        return lambda_return(
            rollout.reward,
            rollout.termination,
            value,
            self.config.Gamma,
            self.config.Lambda,
            self.bootstrap_shift,
        )

    def loss(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor and critic loss of imagined rollouts (STORM, eq. 8–11); moves the return scale.

        Returns:
            0-d loss, and metrics as detached 0-d tensors.
        """
        value_logits = self.critic(rollout.feature)
        value = self.two_hot.decode(value_logits.detach())
        with torch.no_grad():
            slow_value = self.two_hot.decode(self.slow_critic(rollout.feature))
        returns = self.returns(rollout, value)
        scale = self.return_scale.update(returns).clamp(min=self.config.ReturnScaleFloor)
        advantage = (returns - value[:, :-1]) / scale

        log_policy = F.log_softmax(self.actor(rollout.feature[:, :-1]).float(), dim=-1)
        log_prob = log_policy.gather(-1, rollout.action.unsqueeze(-1)).squeeze(-1)
        maps = {
            "policy_loss": -log_prob * advantage,
            "value_loss": self.two_hot.loss(value_logits[:, :-1], returns),
            "slow_value_loss": self.two_hot.loss(value_logits[:, :-1], self.returns(rollout, slow_value)),
            "entropy_loss": entropy(log_policy),
        }
        assert all(values.shape == rollout.action.shape for values in maps.values())
        losses = {name: values.mean() for name, values in maps.items()}
        total = (
            losses["policy_loss"]
            + losses["value_loss"]
            + losses["slow_value_loss"]
            - self.config.EntropyCoef * losses["entropy_loss"]
        )
        metrics = losses | {
            "S": self.return_scale.high - self.return_scale.low,
            "norm_ratio": scale,
            "total_loss": total,
            "imagined_return": returns.mean(),
            "imagined_reward": rollout.reward.mean(),
            "value": value.mean(),
            "value_explained": 1 - (returns - value[:, :-1]).var() / returns.var().clamp(min=SMALLEST),
        }
        return total, {name: metric.detach().clone() for name, metric in metrics.items()}

    @torch.no_grad()
    def update_slow_critic(self, weight: Tensor) -> None:
        """Move the slow critic towards the critic by `weight` in [0, 1], a 0-d tensor."""
        slow, fast = list(self.slow_critic.parameters()), list(self.critic.parameters())
        step = torch._foreach_sub(fast, slow)
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(slow, step)


def imagination_noise_size(world_model: WorldModel) -> int:
    """Uniform numbers per imagined step: the prior's draws, and the action's."""
    return world_model.prior.sample_noise_size + 1


@torch.no_grad()
def imagine(
    world_model: WorldModel,
    agent: ActorCritic,
    observation: Tensor,
    action: Tensor,
    context_noise: Tensor,
    noise: Tensor,
) -> Rollout:
    """Roll the policy out in the world model, from the end of real contexts (STORM, section 3.2).

    Args:
        world_model, agent: in evaluation mode.
        observation: uint8 (B, T, H, W, C). action: int64 (B, T).
        context_noise: uniform (B, T, K).
        noise: uniform (horizon + 1, B, imagination_noise_size).
    """
    assert not world_model.training and not agent.training
    horizon = noise.shape[0] - 1
    state = world_model.start(observation, action, context_noise, horizon)
    features, actions, hiddens = [], [], []
    for step in range(horizon + 1):
        index = world_model.prior.sample(state.hidden, noise[step, :, :-1])
        latent = world_model.one_hot_latent(index)
        feature = world_model.feature(latent, state.hidden)
        features.append(feature)
        if step < horizon:
            actions.append(sample(agent.actor(feature), noise[step, :, -1]))
            state = world_model.step(state, latent, actions[-1])
            hiddens.append(state.hidden)
    hidden = torch.stack(hiddens, dim=1)
    return Rollout(
        feature=torch.stack(features, dim=1),
        action=torch.stack(actions, dim=1),
        reward=world_model.predict_reward(hidden),
        termination=world_model.predict_termination(hidden),
    )


def make_models(config: Config, num_actions: int, device: torch.device) -> tuple[WorldModel, ActorCritic]:
    """World model and agent of a config, in evaluation mode."""
    settings, task = config.BasicSettings, config.JointTrainAgent
    world_model = WorldModel(config.Models, task.ModelType, settings.ImageSize, num_actions)
    agent = ActorCritic(config.Models.Agent, world_model.feature_size, num_actions, settings.ReleaseQuirks)
    world_model.to(device, memory_format=torch.channels_last)
    return world_model.eval(), agent.to(device).eval()


class Policy:
    """Acts on real frames with a world model and an actor (STORM, section 3.3).

    The feature at t is (z_t, h_{t−1}): z_t from the current frame's posterior, h_{t−1} from the
    latest steps of this environment, kept as a rolling context that is not cleared at the end
    of an episode and is re-sampled at every step. While the context is empty actions are
    uniformly random.

    Args:
        world_model, agent: shared with training, or of a checkpoint.
        num_envs: N. context_length: steps remembered.
        streams: randomness; uses the streams "acting" and "exploration".
        greedy: take the most likely action instead of a sampled one.
        blind: draw z_t from the prior, without seeing the current frame, as the STORM release does.
        fixed_weights: the weights never change, so that the posteriors of remembered frames are
            kept and only re-sampled.
    """

    def __init__(
        self,
        world_model: WorldModel,
        agent: ActorCritic,
        num_envs: int,
        context_length: int,
        streams: RandomStreams,
        greedy: bool = False,
        blind: bool = False,
        fixed_weights: bool = False,
    ) -> None:
        self.world_model = world_model
        self.agent = agent
        self.num_envs = num_envs
        self.context_length = context_length
        self.streams = streams
        self.greedy = greedy
        self.blind = blind
        self.fixed_weights = fixed_weights
        self._choose, self._encode = self.choose_action, world_model.posterior
        self._upload: Callable[[Any], Tensor] = lambda frames: torch.as_tensor(frames).to(streams.device)
        self._memory: Tensor | None = None  # frames, or posteriors if the weights are fixed, (N, T, ...)
        self._actions: Tensor | None = None  # (N, T)

    def prepare(self, execution: Execution) -> Policy:
        """Act in the precision, and as the CUDA graph, that `execution` says; returns itself."""
        self._choose = execution.graph(execution.autocast(self.choose_action))
        self._encode = execution.autocast(self.world_model.posterior)
        self._upload = execution.upload
        return self

    def forget_last(self) -> None:
        """Drop the last remembered step, whose action was never carried out."""
        if self._memory is not None:
            kept = self._actions.shape[1] - 1
            self._memory = self._memory[:, :kept] if kept else None
            self._actions = self._actions[:, :kept] if kept else None

    def choose_action(
        self, memory: Tensor, actions: Tensor, frame: Tensor, context_noise: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Actions on frames, given remembered steps.

        Args:
            memory: uint8 (N, T, H, W, C), or float32 (N, T, K, C) if the weights are fixed.
            actions: int64 (N, T). frame: uint8 (N, H, W, C).
            context_noise: uniform (N, T, K). noise: uniform (N, latent draws + 1).

        Returns:
            Actions int64 (N,), and what to remember of the frame.
        """
        model = self.world_model
        if self.fixed_weights:
            remembered = now = model.posterior(frame)
            context = memory
        else:
            remembered = frame
            posterior = model.posterior(torch.cat([memory, frame.unsqueeze(1)], dim=1))
            context, now = posterior[:, :-1], posterior[:, -1]
        past = model.one_hot_latent(sample(context, context_noise))
        hidden = model.sequence_model(past, actions)[:, -1]
        draws = noise[:, :-1]
        index = model.prior.sample(hidden, draws) if self.blind else sample(now, draws)
        feature = model.feature(model.one_hot_latent(index), hidden)
        logits = self.agent.actor(feature)
        action = logits.argmax(-1) if self.greedy else sample(logits, noise[:, -1])
        return action, remembered

    @torch.no_grad()
    def act(self, observation: Tensor | np.ndarray) -> np.ndarray:
        """Actions int64 (N,) on frames uint8 (N, H, W, C), on any device; remembers both."""
        observation = self._upload(observation)
        if self._memory is None:
            return self.act_randomly(observation)
        num_latents = self.world_model.config.NumLatents
        draws = self.world_model.prior.sample_noise_size if self.blind else num_latents
        action, remembered = self._choose(
            self._memory,
            self._actions,
            observation,
            self.streams.uniform("acting", *self._actions.shape, num_latents),
            self.streams.uniform("acting", self.num_envs, draws + 1),
        )
        self._remember(remembered, action)
        return action.cpu().numpy()

    @torch.no_grad()
    def act_randomly(self, observation: Tensor | np.ndarray) -> np.ndarray:
        """Uniformly random actions int64 (N,) on frames uint8 (N, H, W, C), on any device; remembers both."""
        observation = self._upload(observation)
        action = self.streams.uniform("exploration", self.num_envs) * self.world_model.num_actions
        self._remember(self._encode(observation) if self.fixed_weights else observation, action.long())
        return action.long().cpu().numpy()

    def _remember(self, step: Tensor, action: Tensor) -> None:
        step, action = step.unsqueeze(1), action.unsqueeze(1)
        if self._memory is None:
            self._memory, self._actions = step.clone(), action.clone()
        else:
            self._memory = torch.cat([self._memory, step], dim=1)[:, -self.context_length :]
            self._actions = torch.cat([self._actions, action], dim=1)[:, -self.context_length :]

    def state_dict(self) -> dict[str, Tensor | None]:
        """The rolling context."""
        return {"memory": self._memory, "actions": self._actions}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Continue with a saved context.

        Raises:
            KeyError, AttributeError, ValueError: it is malformed.
        """
        memory, actions = state["memory"], state["actions"]
        if memory is not None:
            memory, actions = memory.to(self.streams.device), actions.to(self.streams.device)
            if not memory.shape[:2] == actions.shape or len(actions) != self.num_envs:
                raise ValueError(f"policy context of {tuple(memory.shape)} and {tuple(actions.shape)}")
        self._memory, self._actions = memory, actions
