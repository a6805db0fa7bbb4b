"""The learner: world model, agent, their optimizers, and one update of each."""

from __future__ import annotations

from torch import Tensor

from agents import Policy, acts_blindly, imagination_noise_size, imagine, make_models
from compute.execution import Execution
from compute.optimization import GuardedOptimizer
from compute.random_streams import RandomStreams
from configuration.schema import Config
from configuration.spaces import Spaces
from sub_models.batch import Batch, Rollout
from training.metrics import MeanMetrics
from utils import UserError

SAVED_PARTS = ("world_model", "agent", "world_model_optimizer", "agent_optimizer", "metrics")


class Learner:
    """Owns what learning changes: both models, their optimizers, and the metrics of their updates.

    Args:
        config: of the run. spaces: what is observed and done.
        execution: device, precision, compilation.
        streams: randomness; uses "world_model" and "imagination".
    """

    def __init__(self, config: Config, spaces: Spaces, execution: Execution, streams: RandomStreams) -> None:
        self.config = config
        self.streams = streams
        self.world_model, self.agent = make_models(config, spaces, execution.device)
        model, agent = config.Models.WorldModel, config.Models.Agent
        self.world_model_optimizer = GuardedOptimizer(
            self.world_model,
            self.world_model.loss,
            model.LearningRate,
            model.AdamEps,
            model.MaxGradNorm,
            execution,
        )
        self.agent_optimizer = GuardedOptimizer(
            self.agent, self.agent.loss, agent.LearningRate, agent.AdamEps, agent.MaxGradNorm, execution
        )
        self.metrics = MeanMetrics(execution.device)

        def roll_out(*inputs: Tensor) -> Rollout:
            return imagine(self.world_model, self.agent, *inputs)

        # Compiled, in the run's precision, as one CUDA graph: each only where the run does so.
        self._roll_out = execution.graph(execution.autocast(execution.compile(roll_out)))

    def update_world_model(self, batch: Batch) -> None:
        """Take one gradient step of the world model on (B, L) windows."""
        noise = self.streams.uniform("world_model", *batch.reward.shape, self.world_model.loss_noise_size)
        self.metrics.add("WorldModel", self.world_model_optimizer.update(batch, noise))

    def imagine(self, context: Batch) -> Rollout:
        """Roll the policy out in the world model from (B, T) contexts."""
        batch_size, length = context.reward.shape
        return self._roll_out(
            context.observation,
            context.action,
            self.streams.uniform("imagination", batch_size, length, self.world_model.posterior_noise_size),
            self.streams.uniform(
                "imagination",
                self.config.JointTrainAgent.ImagineBatchLength + 1,
                batch_size,
                imagination_noise_size(self.world_model, self.agent),
            ),
        )

    def update_agent(self, rollout: Rollout) -> None:
        """Take one gradient step of actor and critic on imagined rollouts; the slow critic follows."""
        metrics = self.agent_optimizer.update(rollout)
        self.agent.update_slow_critic(metrics["updated"])
        self.metrics.add("ActorCritic", metrics)

    def stop_if_diverged(self, max_bad_updates: int) -> None:
        """Stop after too many updates in a row that were not finite; waits for the device.

        Raises:
            UserError: names the model, the losses and the parameters that are not finite.
        """
        optimizers = {"WorldModel": self.world_model_optimizer, "ActorCritic": self.agent_optimizer}
        for group, optimizer in optimizers.items():
            if optimizer.bad_streak >= max_bad_updates:
                raise UserError(
                    f"{group}: {int(optimizer.bad_streak)} updates in a row were not finite; "
                    f"losses: {', '.join(self.metrics.not_finite(group)) or 'none'}; "
                    f"gradients: {', '.join(optimizer.bad_parameters()) or 'none'}"
                )

    def state_dict(self) -> dict[str, object]:
        """Return models, optimizers, and the metrics that are yet to be read."""
        return {name: getattr(self, name).state_dict() for name in SAVED_PARTS}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict`."""
        for name in SAVED_PARTS:
            getattr(self, name).load_state_dict(state[name])


def make_policy(config: Config, learner: Learner, execution: Execution, streams: RandomStreams) -> Policy:
    """Return the policy that collects the learner's data."""
    return Policy(
        learner.world_model,
        learner.agent,
        config.JointTrainAgent.NumEnvs,
        config.JointTrainAgent.ActingContextLength,
        streams,
        execution,
        blind=acts_blindly(config),
    )
