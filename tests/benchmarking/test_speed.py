"""What an iteration costs in arithmetic, which no machine's mood can change."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from tests_support import image_spaces
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from agents import ActorCritic, imagination_noise_size, imagine
from configuration.loading import load_config
from configuration.schema import Config
from sub_models.batch import Batch, Rollout
from sub_models.world_models import WorldModel

META = torch.device("meta")  # shapes without numbers: paper size costs nothing here

SPACES = image_spaces(64, 18)


def make_models(config: Config) -> tuple[WorldModel, ActorCritic]:
    with META:
        task = config.JointTrainAgent
        model = WorldModel(config.Models, task.ModelType, SPACES)
        agent = ActorCritic(config.Models.Agent, model.feature_size, SPACES.action)
    return model, agent


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device=META, dtype=dtype)


def count(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def world_model_flop(config: Config) -> int:
    model, _ = make_models(config)
    task, side = config.JointTrainAgent, config.BasicSettings.ImageSize
    shape = (task.BatchSize, task.BatchLength)
    batch = Batch(
        empty(*shape, side, side, 3, dtype=torch.uint8),
        empty(*shape, dtype=torch.int64),
        empty(*shape),
        empty(*shape),
    )
    return count(lambda: model.train().loss(batch, empty(*shape, model.loss_noise_size))[0].backward())


def imagination_flop(config: Config) -> int:
    model, agent = (part.eval() for part in make_models(config))
    task, side = config.JointTrainAgent, config.BasicSettings.ImageSize
    shape = (task.ImagineBatchSize, task.ImagineContextLength)
    noise = (task.ImagineBatchLength + 1, task.ImagineBatchSize, imagination_noise_size(model, agent))
    observation = empty(*shape, side, side, 3, dtype=torch.uint8)
    context_noise = empty(*shape, model.config.NumLatents)
    action = empty(*shape, dtype=torch.int64)
    return count(lambda: imagine(model, agent, observation, action, context_noise, empty(*noise)))


def context_flop(config: Config) -> int:
    """Imagination's share that does not depend on the horizon: its cost at horizon 0, by extrapolation."""
    costs = [imagination_flop(with_horizon(config, horizon)) for horizon in (1, 2)]
    return 2 * costs[0] - costs[1]


def agent_flop(config: Config) -> int:
    model, agent = make_models(config)
    task = config.JointTrainAgent
    batch, horizon = task.ImagineBatchSize, task.ImagineBatchLength
    rollout = Rollout(
        empty(batch, horizon + 1, model.feature_size),
        empty(batch, horizon, dtype=torch.int64),
        empty(batch, horizon),
        empty(batch, horizon),
    )
    return count(lambda: agent.loss(rollout)[0].backward())


def with_horizon(config: Config, horizon: int) -> Config:
    config = load_config([f"BasicSettings.config_path={config.BasicSettings.config_path}"])
    config.Models.WorldModel.TransformerMaxLength = 128
    config.JointTrainAgent.ImagineBatchLength = horizon
    return config


def paper_config(name: str) -> Config:
    return load_config([f"BasicSettings.config_path=config_files/{name}.yaml"])


def test_an_iteration_at_paper_size_needs_no_more_than_it_must() -> None:
    config = paper_config("STORM")
    assert world_model_flop(config) == pytest.approx(0.42e12, rel=0.03)
    assert imagination_flop(config) == pytest.approx(0.84e12, rel=0.03)
    assert agent_flop(config) == pytest.approx(0.22e12, rel=0.06)


def test_maskgit_adds_to_the_prior_only() -> None:
    storm, gitstorm = paper_config("STORM"), paper_config("GITSTORM")
    assert imagination_flop(gitstorm) - imagination_flop(storm) == pytest.approx(0.54e12, rel=0.1)
    assert world_model_flop(gitstorm) - world_model_flop(storm) == pytest.approx(0.09e12, rel=0.1)
    assert agent_flop(gitstorm) == agent_flop(storm)


def test_imagination_grows_linearly_with_the_horizon() -> None:
    config = paper_config("STORM")
    context = context_flop(config)
    long, short = (imagination_flop(with_horizon(config, horizon)) - context for horizon in (64, 16))
    assert long / short <= 4.4


def test_imagination_computes_no_head_in_vain() -> None:
    config = paper_config("STORM")
    model, agent = (part.eval() for part in make_models(config))
    calls = {"reward_head": 1, "termination_head": 1, "decoder": 0}
    task = config.JointTrainAgent
    noise = empty(task.ImagineBatchLength + 1, 2, imagination_noise_size(model, agent))
    spies = {
        name: mock.patch.object(getattr(model, name), "forward", wraps=getattr(model, name).forward)
        for name in calls
    }
    started = {name: spy.start() for name, spy in spies.items()}
    observation = empty(2, task.ImagineContextLength, 64, 64, 3, dtype=torch.uint8)
    action = empty(2, task.ImagineContextLength, dtype=torch.int64)
    imagine(model, agent, observation, action, empty(2, task.ImagineContextLength, 32), noise)
    mock.patch.stopall()
    assert {name: spy.call_count for name, spy in started.items()} == calls
