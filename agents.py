"""The actor-critic, the imagination it learns in, and the policy that acts with it."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.schema import AgentConfig, Config
from configuration.spaces import ActionSpec, Spaces
from sub_models.action_distributions import make_action_distribution
from sub_models.batch import Rollout
from sub_models.functions_losses import TwoHotSymlog, lambda_return, percentile, weighted_sum
from sub_models.mlp import mlp
from sub_models.world_models import WorldModel
from utils import load_class

SMALLEST = torch.finfo(torch.float32).tiny  # keeps a ratio finite where its denominator is 0


class ReturnScale(nn.Module):
    """S: how far apart the 95th and 5th percentile of the returns are (DreamerV3, eq. 11).

    Both percentiles are averaged over updates; the averages start at 0, without debiasing. With
    `ScaleOf=advantages` they are those of the advantages, which move the actor also where states differ
    in value far more than the actions in them.

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
        """Take returns or advantages of any shape into the averages; return the new S, a 0-d tensor."""
        weight = 1 - self.config.ReturnDecay
        self.low.lerp_(percentile(returns, self.config.ReturnPercentileLow), weight)
        self.high.lerp_(percentile(returns, self.config.ReturnPercentileHigh), weight)
        return self.high - self.low


class ActorCritic(nn.Module):
    """Actor, critic and slow critic over imagined features (STORM, section 3.2).

    Args:
        config: the Agent section.
        feature_size: K·C + D. actions: what an action is.
        release_quirks: bootstrap the λ-return from V(s_t) as the STORM release does.
    """

    def __init__(
        self, config: AgentConfig, feature_size: int, actions: ActionSpec, release_quirks: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.bootstrap_shift = 0 if release_quirks else 1
        self.two_hot = TwoHotSymlog(config.ValueBins, config.BinLimit, "symexp_of_mean")
        self.actions = make_action_distribution(config, actions)
        shape = (feature_size, config.HiddenDim, config.NumLayers)
        self.actor = mlp(*shape, self.actions.output_size, config.NormEps)
        self.critic = mlp(*shape, config.ValueBins, config.NormEps)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_scale = ReturnScale(config)
        self.loss_weights = {
            "policy_loss": 1.0,
            "value_loss": 1.0,
            "slow_value_loss": 1.0,
            "entropy_loss": -config.EntropyCoef,
        }

    def value(self, feature: Tensor) -> Tensor:
        """Return the critic's value (...) of features (..., F), float32."""
        return self.two_hot.decode(self.critic(feature))

    def returns(self, rollout: Rollout, value: Tensor) -> Tensor:
        """Return the λ-returns (B, H) of a rollout under values (B, H+1)."""
        return lambda_return(
            rollout.reward,
            rollout.termination,
            value,
            self.config.Gamma,
            self.config.Lambda,
            self.bootstrap_shift,
        )

    def loss(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Return actor and critic loss of imagined rollouts (STORM, eq. 8–11); move the return scale.

        Returns:
            0-d loss, and metrics as detached 0-d tensors.
        """
        value_logits = self.critic(rollout.feature)
        value = self.two_hot.decode(value_logits.detach())
        with torch.no_grad():
            slow_value = self.two_hot.decode(self.slow_critic(rollout.feature))
        returns = self.returns(rollout, value)
        advantage = returns - value[:, :-1]
        measured = returns if self.config.ScaleOf == "returns" else advantage
        spread = self.return_scale.update(measured)
        scale = spread.clamp(min=self.config.ReturnScaleFloor)

        outputs = self.actor(rollout.feature[:, :-1])
        maps = {
            "policy_loss": -self.actions.log_prob(outputs, rollout.action) * (advantage / scale),
            "value_loss": self.two_hot.loss(value_logits[:, :-1], returns),
            "slow_value_loss": self.two_hot.loss(value_logits[:, :-1], self.returns(rollout, slow_value)),
            "entropy_loss": self.actions.entropy(outputs),
        }
        assert all(values.shape == rollout.reward.shape for values in maps.values())
        losses = {name: values.mean() for name, values in maps.items()}
        total = weighted_sum(losses, self.loss_weights)
        metrics = losses | {
            "S": spread,
            "norm_ratio": scale,
            "total_loss": total,
            "imagined_return": returns.mean(),
            "imagined_reward": rollout.reward.mean(),
            "value": value.mean(),
            "value_explained": 1 - advantage.var() / returns.var().clamp(min=SMALLEST),
        }
        return total, {name: metric.detach().clone() for name, metric in metrics.items()}

    @torch.no_grad()
    def update_slow_critic(self, updated: Tensor) -> None:
        """Move the slow critic towards the critic where `updated`, a 0-d tensor, is 1 and not 0."""
        slow, fast = list(self.slow_critic.parameters()), list(self.critic.parameters())
        step = torch._foreach_sub(fast, slow)
        torch._foreach_mul_(step, (1 - self.config.SlowCriticDecay) * updated)
        torch._foreach_add_(slow, step)


def imagination_noise_size(world_model: WorldModel, agent: ActorCritic) -> int:
    """Return the uniform numbers that `imagine` takes per step: the prior's draws, then the action's."""
    return world_model.prior.sample_noise_size + agent.actions.noise_size


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
        observation: (B, T, *shape). action: (B, T, ...), as executed.
        context_noise: uniform (B, T, world_model.posterior_noise_size).
        noise: uniform (horizon + 1, B, imagination_noise_size).
    """
    assert not world_model.training and not agent.training
    horizon = noise.shape[0] - 1
    state = world_model.start(observation, action, context_noise, horizon)
    features, actions, hiddens = [], [], []
    for step in range(horizon + 1):
        prior_noise, action_noise = noise[step].tensor_split([world_model.prior.sample_noise_size], dim=-1)
        latent = world_model.one_hot_latent(world_model.prior.sample(state.hidden, prior_noise))
        feature = world_model.feature(latent, state.hidden)
        features.append(feature)
        if step < horizon:
            actions.append(agent.actions.draw(agent.actor(feature), action_noise))
            state = world_model.step(state, latent, agent.actions.executed(actions[-1]))
            hiddens.append(state.hidden)
    hidden = torch.stack(hiddens, dim=1)
    return Rollout(
        feature=torch.stack(features, dim=1),
        action=torch.stack(actions, dim=1),
        reward=world_model.predict_reward(hidden),
        termination=world_model.predict_termination(hidden),
    )


def make_models(config: Config, spaces: Spaces, device: torch.device) -> tuple[WorldModel, ActorCritic]:
    """Return world model and agent of a config, in evaluation mode."""
    task = config.JointTrainAgent
    kind = WorldModel if task.WorldModelClass == "auto" else load_class(task.WorldModelClass)
    world_model = kind(config.Models, task.ModelType, spaces)
    quirks = config.BasicSettings.ReleaseQuirks
    agent = ActorCritic(config.Models.Agent, world_model.feature_size, spaces.action, quirks)
    world_model.to(device, memory_format=torch.channels_last)
    return world_model.eval(), agent.to(device).eval()


def acts_blindly(config: Config) -> bool:
    """Whether actions are chosen on a prior sample, as in STORM's release, without the present frame."""
    return config.JointTrainAgent.ActBlindly or config.BasicSettings.ReleaseQuirks


class Policy:
    """Acts on real observations with a world model and an actor (STORM, section 3.3).

    The feature at t is (z_t, h_{t−1}): z_t from the posterior of the current observation, h_{t−1} from
    the latest steps of this environment, kept as a rolling context that is not cleared at the end of an
    episode and is re-sampled at every step. While the context is empty actions are uniformly random.

    Args:
        world_model, agent: shared with training, or of a checkpoint.
        num_envs: N. context_length: steps of the context.
        streams: randomness; uses the streams "acting" and "exploration".
        execution: device, precision, and whether acting is a CUDA graph.
        greedy: take the most likely action instead of a sampled one.
        blind: draw z_t from the prior, without seeing the current observation, as the STORM release does.
        fixed_weights: the weights never change, so that the posteriors of the context are kept and
            only re-sampled.
    """

    def __init__(
        self,
        world_model: WorldModel,
        agent: ActorCritic,
        num_envs: int,
        context_length: int,
        streams: RandomStreams,
        execution: Execution,
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
        self._choose = execution.graph(execution.autocast(self.choose_action))
        self._encode, self._upload = execution.autocast(world_model.posterior_logits), execution.upload
        # Observations, (N, T, *shape), which each step encodes anew, as the weights change while training; or
        # posterior logits, (N, T, K, C), if the weights are fixed.
        self._context: Tensor | None = None
        self._actions: Tensor | None = None  # (N, T, ...), as executed
        latent_noise = world_model.prior.sample_noise_size if blind else world_model.posterior_noise_size
        self._noise_sizes = (latent_noise, agent.actions.noise_size)

    def drop_last_step(self) -> None:
        """Take the last step out of the context: its action was never carried out."""
        if self._context is not None:
            kept = self._actions.shape[1] - 1
            self._context = self._context[:, :kept] if kept else None
            self._actions = self._actions[:, :kept] if kept else None

    def choose_action(
        self, context: Tensor, actions: Tensor, observation: Tensor, context_noise: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return actions (N, ...), as executed, and what the context keeps of the observation.

        Args:
            context: (N, T, *shape), or (N, T, K, C) if the weights are fixed.
            actions: (N, T, ...). observation: (N, *shape).
            context_noise: uniform (N, T, posterior_noise_size).
            noise: uniform (N, latent's + action's draws).
        """
        model, distribution = self.world_model, self.agent.actions
        if self.fixed_weights:
            kept = now = model.posterior_logits(observation)
        else:
            kept = observation
            logits = model.posterior_logits(torch.cat([context, observation.unsqueeze(1)], dim=1))
            context, now = logits[:, :-1], logits[:, -1]
        _, hiddens = model.summarise(context, actions, context_noise)
        hidden = hiddens[:, -1]
        latent_noise, action_noise = noise.tensor_split([self._noise_sizes[0]], dim=-1)
        if self.blind:
            latent = model.one_hot_latent(model.prior.sample(hidden, latent_noise))
        else:
            latent = model.sample_posterior(now, latent_noise)
        outputs = self.agent.actor(model.feature(latent, hidden))
        action = distribution.mode(outputs) if self.greedy else distribution.draw(outputs, action_noise)
        return distribution.executed(action), kept

    @torch.no_grad()
    def act(self, observation: Tensor | np.ndarray) -> np.ndarray:
        """Return actions (N, ...) on observations (N, *shape), on any device; both enter the context."""
        observation = self._upload(observation)
        if self._context is None:
            return self.act_randomly(observation)
        lead = self._actions.shape[:2]
        action, kept = self._choose(
            self._context,
            self._actions,
            observation,
            self.streams.uniform("acting", *lead, self.world_model.posterior_noise_size),
            self.streams.uniform("acting", self.num_envs, sum(self._noise_sizes)),
        )
        self._append(kept, action)
        return action.cpu().numpy()

    @torch.no_grad()
    def act_randomly(self, observation: Tensor | np.ndarray) -> np.ndarray:
        """Return uniformly random actions (N, ...), as `act` does."""
        observation = self._upload(observation)
        distribution = self.agent.actions
        noise = self.streams.uniform("exploration", self.num_envs, distribution.noise_size)
        action = distribution.uniform(noise)
        self._append(self._encode(observation) if self.fixed_weights else observation, action)
        return action.cpu().numpy()

    def _append(self, observation: Tensor, action: Tensor) -> None:
        observation, action = observation.unsqueeze(1), action.unsqueeze(1)
        if self._context is None:
            self._context, self._actions = observation.clone(), action.clone()
        else:
            self._context = torch.cat([self._context, observation], dim=1)[:, -self.context_length :]
            self._actions = torch.cat([self._actions, action], dim=1)[:, -self.context_length :]

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return the rolling context."""
        return {"context": self._context, "actions": self._actions}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Continue with a saved context.

        Raises:
            KeyError, AttributeError, ValueError: it is malformed.
        """
        context, actions = state["context"], state["actions"]
        if context is not None:
            context, actions = context.to(self.streams.device), actions.to(self.streams.device)
            if context.shape[:2] != actions.shape[:2] or len(actions) != self.num_envs:
                raise ValueError(f"policy context of {tuple(context.shape)} and {tuple(actions.shape)}")
        self._context, self._actions = context, actions
