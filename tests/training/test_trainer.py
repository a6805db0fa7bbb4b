"""The learner: updates that learn, survive bad numbers, and continue from a saved state."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from tests_support import CPU, random_batch, random_rollout, small_config, small_learner
from torch import Tensor

from compute.execution import Execution
from configuration.schema import Config
from evaluation.policies import EvaluationPolicy
from training.learner import Learner, make_policy
from utils import UserError

BOTH = pytest.mark.parametrize("model_type", ["STORM", "GITSTORM"])
RELEASE_TAGS = {
    "WorldModel": "reconstruction_loss reward_loss termination_loss dynamics_loss dynamics_real_kl_div "
    "representation_loss representation_real_kl_div total_loss",
    "ActorCritic": "policy_loss value_loss entropy_loss S norm_ratio total_loss",
}


def learning_config(model_type: str, precision: str = "float32") -> Config:
    config = small_config(model_type)
    config.BasicSettings.Precision = precision
    config.Models.WorldModel.LearningRate = 3e-3
    config.Models.Agent.LearningRate = 3e-3
    return config


def flat(state: object, prefix: str = "") -> dict[str, object]:
    """Nested dicts and lists as one dict of leaves."""
    if not isinstance(state, (dict, list, tuple)):
        return {prefix: copy.deepcopy(state)}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {k: v for key, value in items for k, v in flat(value, f"{prefix}/{key}").items()}


def same(first: object, second: object) -> bool:
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


@BOTH
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_updates_learn(model_type: str, precision: str) -> None:
    learner = small_learner(learning_config(model_type, precision))
    batch = random_batch(4, 8)
    losses = []
    for _ in range(40):
        learner.update_world_model(batch)
        metrics = learner.metrics.read()
        losses.append(metrics["WorldModel/total_loss"])
    assert losses[-1] < 0.8 * losses[0]
    halvings = 16  # of the initial loss scale, at most
    assert metrics["WorldModel/bad_updates"] <= (halvings if precision == "float16" else 0)
    assert all(p.dtype == torch.float32 for p in learner.world_model.parameters())


@BOTH
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_agent_learns_from_a_rollout(model_type: str, precision: str) -> None:
    learner = small_learner(learning_config(model_type, precision))
    rollout = random_rollout(learner.agent, batch=32)
    metrics = [learner.agent_optimizer.update(rollout) for _ in range(60)]
    assert metrics[-1]["value_loss"] < 0.8 * metrics[0]["value_loss"]
    assert all(metric["bad_updates"] == 0 for metric in metrics)


@BOTH
def test_metrics_have_the_tags_of_the_release(model_type: str) -> None:
    learner = small_learner(small_config(model_type))
    assert learner.metrics.read() == {}
    learner.update_world_model(random_batch(2, 6))
    learner.update_agent(learner.imagine(random_batch(5, 3)))
    metrics = learner.metrics.read()
    expected = {f"{group}/{name}" for group, names in RELEASE_TAGS.items() for name in names.split()}
    expected |= {f"{group}/gradient_norm" for group in RELEASE_TAGS}
    expected |= {"WorldModel/posterior_entropy", "WorldModel/prior_entropy"}
    assert expected <= set(metrics)
    assert all(isinstance(value, float) and value == value for value in metrics.values())


def test_models_return_to_evaluation_mode() -> None:
    learner = small_learner()
    modes = []
    learner.world_model.sequence_model.register_forward_pre_hook(
        lambda module, _: modes.append(module.training)
    )
    learner.update_world_model(random_batch(2, 6))
    learner.update_agent(learner.imagine(random_batch(5, 3)))
    assert modes[0] and not any(modes[1:]) and len(modes) == 1 + 1 + 5
    assert not learner.world_model.training


def test_agent_updates_leave_the_world_model_alone_and_the_other_way_round() -> None:
    learner = small_learner()
    model, agent = (copy.deepcopy(part.state_dict()) for part in (learner.world_model, learner.agent))
    learner.update_world_model(random_batch(2, 6))
    assert all(torch.equal(value, agent[name]) for name, value in learner.agent.state_dict().items())
    assert not all(
        torch.equal(value, model[name]) for name, value in learner.world_model.state_dict().items()
    )
    model = copy.deepcopy(learner.world_model.state_dict())
    learner.update_agent(learner.imagine(random_batch(5, 3)))
    assert all(torch.equal(value, model[name]) for name, value in learner.world_model.state_dict().items())
    for part in ("actor.0.weight", "critic.0.weight", "slow_critic.6.weight", "return_scale.high"):
        assert not torch.equal(learner.agent.state_dict()[part], agent[part]), part


def test_the_slow_critic_follows_after_the_update() -> None:
    learner = small_learner(learning_config("STORM"))
    before = learner.agent.slow_critic[-1].bias.detach().clone()
    learner.update_agent(random_rollout(learner.agent))
    expected = 0.98 * before + 0.02 * learner.agent.critic[-1].bias
    torch.testing.assert_close(learner.agent.slow_critic[-1].bias, expected)


@BOTH
def test_a_bad_batch_leaves_no_trace(model_type: str) -> None:
    learner = small_learner(small_config(model_type))
    learner.update_world_model(random_batch(2, 6))
    learner.update_agent(learner.imagine(random_batch(5, 3)))
    before = flat(learner.state_dict())
    bad = random_batch(2, 6)
    learner.update_world_model(bad._replace(reward=bad.reward.index_fill(1, torch.tensor(3), torch.nan)))
    rollout = random_rollout(learner.agent)
    for name in ("feature", "reward"):
        poisoned = getattr(rollout, name).clone()
        poisoned[0, 0] = torch.nan
        learner.update_agent(rollout._replace(**{name: poisoned}))
    after = flat(learner.state_dict())
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not same(value, before[name])}
    changed = {name for name in changed if not name.startswith("/metrics/")}
    counters = {
        f"/{name}_optimizer/bad_{kind}" for name in ("world_model", "agent") for kind in ("streak", "total")
    }
    assert changed == counters


@pytest.mark.parametrize(
    ("group", "culprits"), [("WorldModel", "reward_loss.*reward_head"), ("ActorCritic", "value_loss.*critic")]
)
def test_too_many_bad_updates_stop_the_run_and_name_the_culprits(group: str, culprits: str) -> None:
    learner = small_learner()
    batch = random_batch(2, 6)
    rollout = learner.imagine(random_batch(5, 3))

    def update(reward: float) -> None:
        poisoned = [each._replace(reward=each.reward * reward) for each in (batch, rollout)]
        learner.update_world_model(poisoned[0] if group == "WorldModel" else batch)
        learner.update_agent(poisoned[1] if group == "ActorCritic" else rollout)

    for _ in range(2):
        update(torch.nan)
    learner.stop_if_diverged(3)
    update(torch.nan)
    with pytest.raises(UserError, match=rf"^{group}: 3 updates .*{culprits}"):
        learner.stop_if_diverged(3)
    update(1.0)
    learner.stop_if_diverged(3)


def train_a_little(learner: Learner, first: int, last: int) -> None:
    for number in range(first, last):
        learner.update_world_model(random_batch(2, 6, seed=number))
        learner.update_agent(learner.imagine(random_batch(5, 3, seed=100 + number)))


@BOTH
def test_a_saved_learner_continues_bit_for_bit(model_type: str) -> None:
    whole = small_learner(small_config(model_type))
    whole.streams.seed_default()
    train_a_little(whole, 0, 3)
    file = io.BytesIO()
    torch.save({"learner": whole.state_dict(), "streams": whole.streams.state_dict()}, file)
    train_a_little(whole, 3, 6)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = small_learner(small_config(model_type), seed=9)
    resumed.load_state_dict(saved["learner"])
    resumed.streams.load_state_dict(saved["streams"])
    train_a_little(resumed, 3, 6)
    expected, found = flat(whole.state_dict()), flat(resumed.state_dict())
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not same(value, found[name])] == []
    assert whole.metrics.read() == resumed.metrics.read()


def test_checkpoint_names_are_those_of_the_modules() -> None:
    config = small_config()
    config.BasicSettings.Compile = "always"
    learner = small_learner(config)
    for part in ("world_model", "agent"):
        names = getattr(learner, part).state_dict()
        assert not any("_orig_mod" in name for name in names)
        assert names.keys() == getattr(small_learner(), part).state_dict().keys()


@pytest.mark.parametrize(("quirks", "blind"), [(False, False), (True, False), (False, True)])
def test_release_quirks_reach_policies_and_returns(quirks: bool, blind: bool) -> None:
    config = small_config()
    config.BasicSettings.ReleaseQuirks, config.JointTrainAgent.ActBlindly = quirks, blind
    learner, execution = small_learner(config), Execution(config.BasicSettings, CPU)
    models = (learner.world_model, learner.agent, False)
    for policy in (
        make_policy(config, learner, execution, learner.streams),
        EvaluationPolicy(config, models, 1, execution, 0, greedy=False),
    ):
        assert policy.blind == (quirks or blind)
    original = (learner.world_model, learner.agent, True)  # of the original STORM's checkpoints
    assert EvaluationPolicy(config, original, 1, execution, 0, greedy=False).blind
    assert learner.agent.bootstrap_shift == (0 if quirks else 1)
