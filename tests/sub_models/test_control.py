"""Vectors and boxes: encoder, state mixers, the bounded normal actor, and what is executed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests_support import CPU, small_config, uniform
from torch.distributions import Independent, Normal

from agents import Policy, imagination_noise_size, imagine, make_models
from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.schema import BasicSettings, Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from sub_models.action_distributions import BoundedNormal, Categorical
from sub_models.batch import Batch
from sub_models.functions_losses import symexp, symlog
from sub_models.transformer_model import MIXERS, SequenceModel
from sub_models.vector import VectorDecoder, VectorEncoder

SIZE, DIMS = 3, 2
VECTOR, BOX = ObservationSpec("vector", (SIZE,)), ActionSpec("continuous", DIMS)
CONTROL = Spaces(VECTOR, BOX)


def control_config(model_type: str = "STORM", mixer: str = "concat") -> Config:
    config = small_config(model_type)
    config.Models.WorldModel.VectorHiddenDim, config.Models.WorldModel.StateMixer = 16, mixer
    return config


def control_batch(batch: int = 3, length: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        5 * torch.randn(batch, length, SIZE, generator=generator),
        2 * torch.rand(batch, length, DIMS, generator=generator) - 1,
        torch.randn(batch, length, generator=generator),
        torch.zeros(batch, length),
    )


# The bounded normal.


def normal_of(outputs: torch.Tensor) -> Independent:
    """The same distribution in PyTorch's words, by the formula of the paper."""
    mean, std = outputs.chunk(2, dim=-1)
    return Independent(Normal(mean.tanh(), 0.1 + 0.9 * torch.sigmoid(std + 2)), 1)


def test_log_probability_and_entropy_are_those_of_the_normal() -> None:
    outputs = 3 * torch.randn(50, 2 * DIMS, generator=torch.Generator().manual_seed(1))
    distribution = BoundedNormal(small_config().Models.Agent, DIMS)
    draw = distribution.draw(outputs, uniform(50, DIMS))
    assert (draw.abs() > 1).any(), "draws may lie outside the box"
    torch.testing.assert_close(distribution.log_prob(outputs, draw), normal_of(outputs).log_prob(draw))
    torch.testing.assert_close(distribution.entropy(outputs), normal_of(outputs).entropy())
    torch.testing.assert_close(distribution.mode(outputs), normal_of(outputs).mean)


def test_draws_follow_the_normal() -> None:
    outputs = torch.tensor([0.3, -1.0, -2.0, 0.5]).expand(200_000, 4)
    distribution = BoundedNormal(small_config().Models.Agent, DIMS)
    draw = distribution.draw(outputs, uniform(200_000, DIMS))
    expected = normal_of(outputs[:1])
    torch.testing.assert_close(draw.mean(0), expected.mean[0], atol=5e-3, rtol=0)
    torch.testing.assert_close(draw.std(0), expected.stddev[0], atol=5e-3, rtol=0)


def test_the_ends_of_the_noise_are_finite() -> None:
    distribution = BoundedNormal(small_config().Models.Agent, 1)
    noise = torch.tensor([[0.0], [1 - 2**-24]])
    assert distribution.draw(torch.zeros(2, 2), noise).isfinite().all()


def test_executed_actions_lie_in_the_box() -> None:
    distribution = BoundedNormal(small_config().Models.Agent, DIMS)
    assert distribution.executed(torch.tensor([-3.0, 0.5])).tolist() == [-1, 0.5]
    drawn = distribution.uniform(uniform(10_000, DIMS))
    assert drawn.min() < -0.99 and drawn.max() > 0.99 and drawn.abs().max() <= 1


def test_the_range_of_the_entropy_is_reached() -> None:
    for distribution, least, most in (
        (BoundedNormal(small_config().Models.Agent, 1), [0.0, -1e3], [0.0, 1e3]),
        (Categorical(4), [1e3, 0, 0, 0], [0.0, 0, 0, 0]),
    ):
        found = [distribution.entropy(torch.tensor([outputs])).item() for outputs in (least, most)]
        assert found == pytest.approx(distribution.entropy_range, abs=1e-5)


# The vector encoder and decoder.


def test_the_vector_loss_is_squared_error_against_symlog() -> None:
    world_model, _ = make_models(control_config(), CONTROL, CPU)
    batch = control_batch()
    latent = torch.zeros(3, 6, world_model.latent_size)
    hidden = torch.zeros(3, 6, world_model.config.TransformerHiddenDim)
    found = world_model.head_losses(batch, latent, hidden)["reconstruction_loss"]
    prediction = world_model.decode(latent)
    x = batch.observation
    symlog = torch.where(x >= 0, torch.log(1 + x.abs()), -torch.log(1 + x.abs()))
    torch.testing.assert_close(found, ((prediction - symlog) ** 2).sum(-1))
    torch.testing.assert_close(symexp(VectorDecoder.target(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["STORM", "GITSTORM"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_parameter_is_trained(model_type: str, mixer: str) -> None:
    torch.manual_seed(0)
    config = control_config(model_type, mixer)
    config.Models.WorldModel.FreeNats = 0.0
    world_model, agent = make_models(config, CONTROL, CPU)
    batch = control_batch()
    world_model.train()
    loss, metrics = world_model.loss(batch, uniform(3, 6, world_model.loss_noise_size))
    loss.backward()
    assert set(world_model.loss_weights) <= set(metrics)
    assert [name for name, p in world_model.named_parameters() if p.grad is None or not p.grad.any()] == []
    world_model.eval()
    noise = uniform(5, 3, imagination_noise_size(world_model, agent))
    rollout = imagine(world_model, agent, *batch[:2], uniform(3, 6, 4), noise)
    agent.loss(rollout)[0].backward()
    assert all(p.grad.any() for p in [*agent.actor.parameters(), *agent.critic.parameters()])


# State mixers.


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_no_mixer_sees_another_step(mixer: str, size: int) -> None:
    torch.manual_seed(0)
    config = control_config(mixer=mixer).Models.WorldModel
    model = MIXERS[mixer](config, size).eval()
    latent, action = torch.randn(2, 5, 20), torch.randn(2, 5, size)
    before = model(latent, action)
    assert before.shape == (2, 5, config.TransformerHiddenDim)
    for changed in (latent, action):
        value = changed[0, 2].clone()
        changed[0, 2] += 1
        moved = (model(latent, action) - before).abs().amax(-1) > 1e-6
        changed[0, 2] = value
        assert moved.nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mixer_takes_in_every_latent_and_the_whole_action(mixer: str) -> None:
    torch.manual_seed(0)
    model = MIXERS[mixer](control_config(mixer=mixer).Models.WorldModel, DIMS).eval()
    latent, action = torch.randn(1, 1, 20, requires_grad=True), torch.randn(1, 1, DIMS, requires_grad=True)
    model(latent, action)[0, 0, 0].backward()
    assert (latent.grad.abs() > 1e-6).all() and (action.grad.abs() > 1e-6).all()


@pytest.mark.parametrize("mixer", ["concat_attention", "latent_attention"])
def test_attention_in_a_step_is_that_of_the_library(mixer: str) -> None:
    """nn.MultiheadAttention in each step: all ask all and are averaged, or the action asks the rest."""
    torch.manual_seed(0)
    config = control_config(mixer=mixer).Models.WorldModel
    model, width = MIXERS[mixer](config, DIMS), config.TransformerHiddenDim
    library = torch.nn.MultiheadAttention(width, config.TransformerNumHeads, bias=False, batch_first=True)
    library.in_proj_weight.data = model.attention.query_key_value.weight
    library.out_proj.weight.data = model.attention.output.weight
    latent, action = torch.randn(2, 3, 20), torch.randn(2, 3, DIMS)
    tokens = torch.cat(
        [model.latent(latent.unflatten(-1, (-1, config.NumClasses))), model.action(action)[:, :, None]], 2
    )
    tokens = (tokens + model.position.weight).flatten(0, 1)
    normed = model.norm(tokens)
    if mixer == "latent_attention":
        mixed = tokens[:, -1] + library(normed[:, -1:], normed[:, :-1], normed[:, :-1])[0][:, 0]
    else:
        mixed = (tokens + library(normed, normed, normed)[0]).mean(1)
    torch.testing.assert_close(model(latent, action), model.mlp(mixed).view(2, 3, -1))


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_sequence_model_stays_causal_and_cached(mixer: str) -> None:
    torch.manual_seed(0)
    model = SequenceModel(control_config(mixer=mixer).Models.WorldModel, BOX).eval()
    latent, action = torch.randn(2, 6, 20), 2 * torch.rand(2, 6, DIMS) - 1
    whole, cache = model(latent, action), model.make_cache(6)
    parts = [model(latent[:, :4], action[:, :4], cache)]
    parts += [model(latent[:, [t]], action[:, [t]], cache) for t in (4, 5)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    latent[:, 4] += 1
    assert torch.equal(model(latent, action)[:, :4], whole[:, :4])


# What is executed is what is stored and what the model is given.


def test_imagination_gives_the_world_model_what_would_be_executed() -> None:
    torch.manual_seed(0)
    world_model, agent = make_models(control_config(), CONTROL, CPU)
    with torch.no_grad():
        agent.actor[-1].bias[:DIMS] = 3.0  # means near 1, so that about half the draws are clipped
    batch, seen = control_batch(), []
    step = world_model.step
    world_model.step = lambda state, latent, action: seen.append(action) or step(state, latent, action)
    noise = uniform(5, 3, imagination_noise_size(world_model, agent))
    rollout = imagine(world_model, agent, *batch[:2], uniform(3, 6, 4), noise)
    executed = torch.stack(seen, dim=1)
    assert (rollout.action.abs() > 1).any() and executed.abs().max() <= 1
    assert torch.equal(executed, rollout.action.clamp(-1, 1))
    outputs = agent.actor(rollout.feature[:, :-1])
    torch.testing.assert_close(
        agent.actions.log_prob(outputs, rollout.action), normal_of(outputs).log_prob(rollout.action)
    )


def test_vectors_are_seen_in_symlog_space() -> None:
    encoder = VectorEncoder(Config().Models.WorldModel, (SIZE,), 8)
    vectors = 100 * torch.randn(3, SIZE)
    torch.testing.assert_close(encoder(vectors), encoder.layers(symlog(vectors)))


@pytest.mark.parametrize("greedy", [False, True])
def test_the_policy_remembers_what_it_executes(greedy: bool) -> None:
    torch.manual_seed(0)
    world_model, agent = make_models(control_config(), CONTROL, CPU)
    with torch.no_grad():
        agent.actor[-1].bias[:DIMS] = 3.0
    execution = Execution(BasicSettings(Precision="float32"), CPU)
    policy = Policy(world_model, agent, 2, 4, RandomStreams(0, CPU), execution, greedy=greedy)
    observation = np.zeros((2, SIZE), np.float32)
    actions = [policy.act(observation) for _ in range(4)]
    assert all(action.dtype == np.float32 and np.abs(action).max() <= 1 for action in actions)
    kept = policy.state_dict()["actions"]
    assert torch.equal(kept, torch.from_numpy(np.stack(actions, axis=1)))
    if greedy:
        assert np.allclose(actions[1], math.tanh(3.0), atol=0.1)
