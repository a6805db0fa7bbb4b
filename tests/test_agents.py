"""Actor-critic, imagination, and the policy that acts."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tests_support import (
    ACTIONS,
    CPU,
    SPACES,
    random_batch,
    random_rollout,
    small_config,
    small_models,
    uniform,
)
from torch import Tensor

from agents import ActorCritic, Policy, ReturnScale, imagination_noise_size, imagine
from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.schema import BasicSettings
from sub_models.batch import Rollout
from sub_models.functions_losses import one_hot, sample

BOTH = pytest.mark.parametrize("model_type", ["STORM", "GITSTORM"])
JOINT = pytest.mark.parametrize("model_type", ["STORM", "GITSTORM", "GITSTORM-joint"])
EXECUTION = Execution(BasicSettings(Precision="float32"), CPU)


def models(model_type: str):  # noqa: ANN201
    """World model and agent whose distributions are far from uniform; "GITSTORM-joint" samples 2/2/1."""
    world_model, agent = small_models(model_type.removesuffix("-joint"))
    if model_type == "GITSTORM-joint":
        config = small_config("GITSTORM").Models
        config.MaskGit.T_draft = config.MaskGit.T_revise = 2
        world_model.prior = type(world_model.prior)(config).eval()
    with torch.no_grad():
        for parameter in [*world_model.prior.parameters(), *agent.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return world_model, agent


# Actor-critic.


def test_return_scale_follows_the_percentiles_slowly_from_zero() -> None:
    scale = ReturnScale(small_config().Models.Agent)
    returns = torch.randperm(200, generator=torch.Generator().manual_seed(0)).float() + 1  # 1 … 200
    low = high = 0.0
    for _ in range(3):
        low, high = 0.99 * low + 0.01 * 10, 0.99 * high + 0.01 * 190
        assert scale.update(returns.view(20, 10)).item() == pytest.approx(high - low, rel=1e-5)
    assert {name: value.item() for name, value in scale.state_dict().items()} == pytest.approx(
        {"low": low, "high": high}, rel=1e-5
    )


@pytest.mark.parametrize("scale_of", ["returns", "advantages"])  # the paper's, and ours
@pytest.mark.parametrize("reward_scale", [0.1, 1e4])
def test_losses_are_those_of_the_paper(reward_scale: float, scale_of: str) -> None:
    _, agent = models("STORM")
    agent.config.ScaleOf = scale_of
    rollout = random_rollout(agent, reward_scale=reward_scale)
    horizon = rollout.action.shape[1]
    total, metrics = agent.loss(rollout)

    def returns(network: torch.nn.Module) -> tuple[Tensor, Tensor]:
        value = agent.two_hot.decode(network(rollout.feature)).detach()
        g, rows = value[:, -1], []
        for t in reversed(range(horizon)):
            future = 0.05 * value[:, t + 1] + 0.95 * g
            g = rollout.reward[:, t] + 0.985 * (1 - rollout.termination[:, t]) * future
            rows.append(g)
        return torch.stack(rows[::-1], dim=1), value

    g, value = returns(agent.critic)
    slow_g, _ = returns(agent.slow_critic)
    ordered = (g if scale_of == "returns" else g - value[:, :-1]).flatten().sort().values
    n = len(ordered)
    spread = 0.01 * (ordered[math.floor(0.95 * n) - 1] - ordered[math.floor(0.05 * n) - 1])
    assert (spread > 1) == (reward_scale > 1), "both sides of max(1, S) are tried"
    advantage = (g - value[:, :-1]) / max(1.0, spread.item())
    policy = torch.distributions.Categorical(logits=agent.actor(rollout.feature[:, :-1]))
    log_critic = agent.critic(rollout.feature[:, :-1]).log_softmax(-1)
    expected = {
        "policy_loss": -(policy.log_prob(rollout.action) * advantage).mean(),
        "value_loss": -(agent.two_hot.encode(g) * log_critic).sum(-1).mean(),
        "slow_value_loss": -(agent.two_hot.encode(slow_g) * log_critic).sum(-1).mean(),
        "entropy_loss": policy.entropy().mean(),
        "S": spread,
        "norm_ratio": spread.clamp(min=1),
        "imagined_return": g.mean(),
        "imagined_reward": rollout.reward.mean(),
        "value": value.mean(),
        "value_explained": 1 - (g - value[:, :-1]).var() / g.var(),
    }
    expected["total_loss"] = (
        expected["policy_loss"]
        + expected["value_loss"]
        + expected["slow_value_loss"]
        - 3e-4 * expected["entropy_loss"]
    )
    for name, quantity in expected.items():
        torch.testing.assert_close(metrics[name], quantity.detach(), rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(total.detach(), expected["total_loss"].detach(), rtol=1e-4, atol=1e-5)


def test_gradients_reach_actor_and_critic_through_their_own_losses_only() -> None:
    _, agent = models("STORM")
    total, _ = agent.loss(random_rollout(agent))
    total.backward()
    trained = [*agent.actor.parameters(), *agent.critic.parameters()]
    assert all(p.grad.any() for p in trained)
    assert all(p.grad is None and not p.requires_grad for p in agent.slow_critic.parameters())
    critic_gradient = [p.grad.clone() for p in agent.critic.parameters()]
    agent.zero_grad()
    rollout = random_rollout(agent)
    value_logits = agent.critic(rollout.feature)
    for targets in (value_logits, agent.slow_critic(rollout.feature)):
        g = agent.returns(rollout, agent.two_hot.decode(targets).detach())
        agent.two_hot.loss(value_logits[:, :-1], g).mean().backward(retain_graph=True)
    for ours, gradient in zip(critic_gradient, agent.critic.parameters(), strict=True):
        torch.testing.assert_close(ours, gradient.grad)


def test_the_last_feature_serves_the_bootstrap_only() -> None:
    _, agent = models("STORM")
    rollout = random_rollout(agent)
    feature = rollout.feature.clone().requires_grad_()
    agent.loss(Rollout(feature, rollout.action, rollout.reward, rollout.termination))[0].backward()
    assert (feature.grad[:, -1] == 0).all() and (feature.grad[:, :-1] != 0).any()


def test_release_quirk_bootstraps_from_the_present_state() -> None:
    config = small_config().Models.Agent
    torch.manual_seed(0)
    quirky, plain = (
        ActorCritic(config, 36, SPACES.action, release_quirks=True),
        ActorCritic(config, 36, SPACES.action),
    )
    plain.load_state_dict(quirky.state_dict())
    rollout, value = random_rollout(plain), torch.randn(6, 5)
    last = rollout.reward[:, -1] + 0.985 * (1 - rollout.termination[:, -1]) * value[:, -1]
    torch.testing.assert_close(plain.returns(rollout, value)[:, -1], last)
    mixed = 0.05 * value[:, -2] + 0.95 * value[:, -1]
    expected = rollout.reward[:, -1] + 0.985 * (1 - rollout.termination[:, -1]) * mixed
    torch.testing.assert_close(quirky.returns(rollout, value)[:, -1], expected)


def test_slow_critic_is_a_moving_average() -> None:
    _, agent = models("STORM")
    slow, fast = copy.deepcopy(agent.slow_critic), copy.deepcopy(agent.critic)
    agent.update_slow_critic(torch.tensor(1.0))
    for new, old, target in zip(
        agent.slow_critic.parameters(), slow.parameters(), fast.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.98 * old + 0.02 * target)
    before = copy.deepcopy(agent.slow_critic.state_dict())
    agent.update_slow_critic(torch.tensor(0.0))
    assert all(torch.equal(value, before[name]) for name, value in agent.slow_critic.state_dict().items())


def test_slow_critic_starts_equal() -> None:
    _, agent = small_models()
    assert all(
        torch.equal(a, b)
        for a, b in zip(agent.critic.parameters(), agent.slow_critic.parameters(), strict=True)
    )
    assert all(
        a is not b for a, b in zip(agent.critic.parameters(), agent.slow_critic.parameters(), strict=True)
    )


# Imagination.


@JOINT
@torch.no_grad()
def test_cached_imagination_equals_uncached(model_type: str) -> None:
    world_model, agent = models(model_type)
    batch, context_noise = random_batch(6, 3), uniform(6, 3, 4, seed=1)
    noise = uniform(6, 6, imagination_noise_size(world_model, agent), seed=2)
    rollout = imagine(world_model, agent, batch.observation, batch.action, context_noise, noise)
    assert rollout.feature.shape == (6, 6, 36) and rollout.action.shape == (6, 5)
    assert rollout.reward.shape == rollout.termination.shape == (6, 5)
    assert not rollout.feature.requires_grad

    index = sample(world_model.posterior(batch.observation), context_noise)
    latents, actions = world_model.one_hot_latent(index), batch.action
    for step in range(6):
        hidden = world_model.sequence_model(latents, actions)[:, -1]
        if step:
            torch.testing.assert_close(rollout.reward[:, step - 1], world_model.predict_reward(hidden))
            assert torch.equal(rollout.termination[:, step - 1], world_model.predict_termination(hidden))
        latent = world_model.one_hot_latent(world_model.prior.sample(hidden, noise[step, :, :-1]))
        feature = torch.cat([latent, hidden], dim=-1)
        torch.testing.assert_close(rollout.feature[:, step], feature, rtol=1e-5, atol=1e-5)
        if step < 5:
            action = sample(agent.actor(feature), noise[step, :, -1])
            assert torch.equal(rollout.action[:, step], action)
            latents = torch.cat([latents, latent.unsqueeze(1)], dim=1)
            actions = torch.cat([actions, action.unsqueeze(1)], dim=1)


@pytest.mark.parametrize("which", [0, 1])
def test_imagination_runs_in_evaluation_mode_only(which: int) -> None:
    pair = small_models()
    pair[which].train()
    batch = random_batch(2, 3)
    with pytest.raises(AssertionError):
        imagine(*pair, batch.observation, batch.action, uniform(2, 3, 4), uniform(3, 2, 5))


def test_imagined_actions_follow_the_policy() -> None:
    world_model, agent = models("STORM")
    batch = random_batch(1, 3)
    rows = 20_000
    context = [x.expand(rows, *x.shape[1:]) for x in (batch.observation, batch.action)]
    context_noise = uniform(1, 3, 4).expand(rows, 3, 4)
    noise = uniform(2, rows, imagination_noise_size(world_model, agent))
    rollout = imagine(world_model, agent, *context, context_noise, noise)
    expected = agent.actor(rollout.feature[:, 0]).softmax(-1).mean(0)
    torch.testing.assert_close(one_hot(rollout.action[:, 0], ACTIONS).mean(0), expected, rtol=0, atol=0.015)


# Acting.


def frames(number: int, num_envs: int = 2) -> Tensor:
    return random_batch(num_envs, number, seed=7).observation.transpose(0, 1)


def make_policy(model_type: str = "STORM", num_envs: int = 2, **options: bool) -> Policy:
    return Policy(*models(model_type), num_envs, 16, RandomStreams(3, CPU), EXECUTION, **options)


def watch_features(policy: Policy) -> list[Tensor]:
    """The features that the policy's actor will see."""
    seen: list[Tensor] = []
    policy.agent.actor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    return seen


def step_noise(policy: Policy, remembered: int) -> tuple[Tensor, Tensor]:
    """The noise that the next call of `act` will draw."""
    streams = RandomStreams(0, CPU)
    streams.generator("acting").set_state(policy.streams.generator("acting").get_state())
    prior_draws = policy.world_model.prior.sample_noise_size
    context = streams.uniform("acting", policy.num_envs, remembered, 4)
    return context, streams.uniform("acting", policy.num_envs, (prior_draws if policy.blind else 4) + 1)


@BOTH
@torch.no_grad()
def test_the_feature_is_the_present_latent_beside_the_past(model_type: str) -> None:
    policy = make_policy(model_type)
    seen, observations, actions = watch_features(policy), frames(25), []
    for t, frame in enumerate(observations):
        if t < 3:
            actions.append(policy.act_randomly(frame))
            continue
        if t == 20:
            policy.world_model.encoder.head.weight.mul_(1.3)  # the context is re-encoded as weights change
        start = max(0, t - 16)
        context_noise, noise = step_noise(policy, t - start)
        actions.append(policy.act(frame))
        model = policy.world_model
        past = sample(model.posterior(observations[start:t].transpose(0, 1)), context_noise)
        past_actions = torch.as_tensor(np.stack(actions[start:t], axis=1))
        hidden = model.sequence_model(model.one_hot_latent(past), past_actions)[:, -1]
        latent = model.one_hot_latent(sample(model.posterior(frame), noise[:, :-1]))
        feature = torch.cat([latent, hidden], dim=-1)
        torch.testing.assert_close(seen[-1], feature, rtol=1e-5, atol=1e-5)
        assert actions[-1].tolist() == sample(policy.agent.actor(feature), noise[:, -1]).tolist()
    assert actions[-1].dtype == np.int64 and actions[-1].shape == (2,)


def test_an_empty_context_acts_uniformly_at_random() -> None:
    policy = make_policy(num_envs=3000)
    seen = watch_features(policy)
    counts = np.bincount(policy.act(frames(1, 3000)[0]), minlength=ACTIONS)
    assert seen == [] and np.abs(counts / 3000 - 1 / ACTIONS).max() < 0.04


@BOTH
def test_a_blind_policy_ignores_the_present_frame(model_type: str) -> None:
    for blind in (True, False):
        features = []
        for last in (0, 1):
            policy = make_policy(model_type, blind=blind)
            seen = watch_features(policy)
            for frame in frames(5):
                policy.act_randomly(frame)
            policy.act(255 * torch.full((2, 16, 16, 3), last, dtype=torch.uint8))
            features.append(seen[-1])
        assert torch.equal(*features) == blind


def test_a_greedy_policy_takes_the_most_likely_action() -> None:
    policy = make_policy(greedy=True)
    seen = watch_features(policy)
    for frame in frames(6):
        action = policy.act(frame)
    assert action.tolist() == policy.agent.actor(seen[-1]).argmax(-1).tolist()


@pytest.mark.parametrize("blind", [False, True])
def test_fixed_weights_change_nothing_but_the_work(blind: bool) -> None:
    plain, fixed = make_policy(blind=blind), make_policy(blind=blind, fixed_weights=True)
    plain_features, fixed_features = watch_features(plain), watch_features(fixed)
    encoded = []
    fixed.world_model.encoder.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    for frame in frames(22):
        assert plain.act(frame).tolist() == fixed.act(frame).tolist()
    for a, b in zip(plain_features, fixed_features, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert encoded == [2] * 22, "each frame is encoded once"


def test_acting_advances_no_other_stream() -> None:
    policy = make_policy()
    for name in ("exploration", "world_model", "imagination", "replay"):
        policy.streams.generator(name)
    policy.act_randomly(frames(1)[0])
    state, default = policy.streams.state_dict(), torch.get_rng_state()
    policy.act(frames(1)[0])
    after = policy.streams.state_dict()["streams"]
    assert torch.equal(torch.get_rng_state(), default)
    for name, saved in state["streams"].items():
        assert torch.equal(after[name]["state"], saved["state"]), name


def test_a_saved_context_continues() -> None:
    policy, other = make_policy(), make_policy()
    for frame in frames(18):
        policy.act(frame)
    other.load_state_dict(policy.state_dict())
    other.streams.load_state_dict(policy.streams.state_dict())
    for frame in frames(4):
        assert policy.act(frame).tolist() == other.act(frame).tolist()
    fresh = make_policy()
    other.load_state_dict(fresh.state_dict())
    assert other.state_dict() == {"context": None, "actions": None}


def test_a_forgotten_step_was_never_taken() -> None:
    policy, other = make_policy(), make_policy()
    for frame in frames(5):
        policy.act_randomly(frame)
        other.act_randomly(frame)
    policy.act(frames(1)[0])
    policy.drop_last_step()
    for name, value in policy.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for _ in range(5):
        policy.drop_last_step()
    policy.drop_last_step()
    assert policy.state_dict() == {"context": None, "actions": None}
