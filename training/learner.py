"""The learner: world model, agent, their optimizers, and one update of each."""

from __future__ import annotations

import torch
from torch import Tensor

from agents import Policy, imagination_noise_size, imagine, make_models
from compute.execution import Execution
from compute.optimization import GuardedOptimizer
from compute.random_streams import RandomStreams
from configuration.schema import Config
from sub_models.batch import Batch, Rollout
from utils import UserError

SAVED_PARTS = ("world_model", "agent", "world_model_optimizer", "agent_optimizer")


class Learner:
    """Owns what learning changes; `update_world_model` and `update_agent` are one update each.

    Metrics stay on the device until `read_metrics`.

    Args:
        config: of the run. num_actions: A.
        execution: device, precision, compilation.
        streams: randomness; uses "world_model" and "imagination".
    """

    def __init__(
        self, config: Config, num_actions: int, execution: Execution, streams: RandomStreams
    ) -> None:
        self.config = config
        self.streams = streams
        self.horizon = config.JointTrainAgent.ImagineBatchLength
        self.world_model, self.agent = make_models(config, num_actions, execution.device)
        model, agent = config.Models.WorldModel, config.Models.Agent
        self.world_model_optimizer = GuardedOptimizer(
            self.world_model,
            list(self.world_model.parameters()),
            model.LearningRate,
            model.AdamEps,
            model.MaxGradNorm,
            execution.scales_loss,
            execution.initial_loss_scale,
        )
        self.agent_optimizer = GuardedOptimizer(
            self.agent,
            self.agent.trained_parameters(),
            agent.LearningRate,
            agent.AdamEps,
            agent.MaxGradNorm,
            execution.scales_loss,
            execution.initial_loss_scale,
        )
        self._world_model_loss = execution.autocast(execution.compile(self.world_model.loss))
        self._agent_loss = execution.autocast(execution.compile(self.agent.loss))
        self._imagine = execution.graph(execution.autocast(execution.compile(self.imagine_step)))
        self._fit_world_model = execution.graph(self.world_model_step)
        self._fit_agent = execution.graph(self.agent_step)
        self._metrics: dict[str, Tensor] = {}

    # One update as functions of tensors.

    def world_model_step(
        self, observation: Tensor, action: Tensor, reward: Tensor, termination: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """One world-model update on (B, L) windows with noise (B, L, loss_noise_size); metrics."""
        self.world_model.train()
        before = self.world_model_optimizer.remember()
        loss, metrics = self._world_model_loss(Batch(observation, action, reward, termination), noise)
        _, more = self.world_model_optimizer.step(loss, before)
        self.world_model.eval()
        return metrics | more

    def imagine_step(
        self, observation: Tensor, action: Tensor, context_noise: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`imagine` with the learner's models, as a tuple of tensors."""
        rollout = imagine(self.world_model, self.agent, observation, action, context_noise, noise)
        return rollout.feature, rollout.action, rollout.reward, rollout.termination

    def agent_step(
        self, feature: Tensor, action: Tensor, reward: Tensor, termination: Tensor
    ) -> dict[str, Tensor]:
        """One actor-critic update on imagined rollouts; metrics."""
        before = self.agent_optimizer.remember()
        loss, metrics = self._agent_loss(Rollout(feature, action, reward, termination))
        finite, more = self.agent_optimizer.step(loss, before)
        self.agent.update_slow_critic((1 - self.config.Models.Agent.SlowCriticDecay) * finite)
        return metrics | more

    # What the loop calls.

    def update_world_model(self, batch: Batch) -> None:
        """One gradient step of the world model on (B, L) windows."""
        noise = self.streams.uniform("world_model", *batch.action.shape, self.world_model.loss_noise_size())
        self._keep("WorldModel", self._fit_world_model(*vars(batch).values(), noise))

    def update_agent(self, context: Batch) -> None:
        """Imagine from (B, T) contexts, then one gradient step of actor and critic."""
        self.fit_agent(self.imagine_from(context))

    def imagine_from(self, context: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of a Rollout that starts from (B, T) contexts."""
        num_latents = self.world_model.config.NumLatents
        batch_size = context.action.shape[0]
        context_noise = self.streams.uniform("imagination", *context.action.shape, num_latents)
        noise = self.streams.uniform(
            "imagination", self.horizon + 1, batch_size, imagination_noise_size(self.world_model)
        )
        return self._imagine(context.observation, context.action, context_noise, noise)

    def fit_agent(self, rollout: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """One gradient step of actor and critic on the fields of a Rollout."""
        self._keep("ActorCritic", self._fit_agent(*rollout))

    def _keep(self, group: str, metrics: dict[str, Tensor]) -> None:
        self._metrics |= {f"{group}/{name}": value for name, value in metrics.items()}

    def read_metrics(self) -> dict[str, float]:
        """The latest update's metrics; waits for the device."""
        if not self._metrics:
            return {}
        values = torch.stack([value.float() for value in self._metrics.values()]).tolist()
        return dict(zip(self._metrics, values, strict=True))

    def check_health(self, max_bad_updates: int) -> None:
        """Stop after too many non-finite updates in a row; waits for the device.

        Raises:
            UserError: names the model, the losses and the parameters that are not finite.
        """
        optimizers = {"WorldModel": self.world_model_optimizer, "ActorCritic": self.agent_optimizer}
        for group, optimizer in optimizers.items():
            if optimizer.bad_streak >= max_bad_updates:
                bad = {name: value for name, value in self.read_metrics().items() if name.startswith(group)}
                losses = [name for name, value in bad.items() if value != value or abs(value) == float("inf")]
                raise UserError(
                    f"{group}: {int(optimizer.bad_streak)} updates in a row were not finite; "
                    f"losses: {', '.join(losses) or 'none'}; "
                    f"gradients: {', '.join(optimizer.bad_parameters()) or 'none'}"
                )

    def state_dict(self) -> dict[str, object]:
        """Models, optimizers, and the metrics that are yet to be read."""
        parts = {name: getattr(self, name).state_dict() for name in SAVED_PARTS}
        return parts | {"metrics": dict(self._metrics)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict`."""
        for name in SAVED_PARTS:
            getattr(self, name).load_state_dict(state[name])
        device = self.streams.device
        self._metrics = {name: value.to(device).reshape(()) for name, value in state["metrics"].items()}


def make_policy(config: Config, learner: Learner, execution: Execution, streams: RandomStreams) -> Policy:
    """The policy that collects the learner's data."""
    policy = Policy(
        learner.world_model,
        learner.agent,
        config.JointTrainAgent.NumEnvs,
        config.JointTrainAgent.ActingContextLength,
        streams,
        blind=config.BasicSettings.ReleaseQuirks,
    )
    return policy.prepare(execution)
