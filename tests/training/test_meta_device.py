"""Every step runs where there are no numbers: nothing reads the device, nothing lies on another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agents import ActorCritic
from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.loading import load_config
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from sub_models.batch import Batch
from sub_models.world_models import WorldModel
from training.learner import Learner, make_policy

CONFIGS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "config_files").glob("*.yaml"))
META = torch.device("meta")
IMAGE = ObservationSpec("image", (64, 64, 3))
SPACES = {
    "game": Spaces(IMAGE, ActionSpec("discrete", 6)),
    "control": Spaces(ObservationSpec("vector", (17,)), ActionSpec("continuous", 6)),
    "control from pixels": Spaces(IMAGE, ActionSpec("continuous", 6)),
}


def make_batch(spaces: Spaces, batch: int, length: int) -> Batch:
    def empty(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        return torch.empty(batch, length, *shape, dtype=getattr(torch, dtype), device=META)

    parts = (spaces.observation, spaces.action)
    return Batch(
        *(empty(part.shape, part.dtype) for part in parts), empty((), "float32"), empty((), "float32")
    )


def check(config: Config, spaces: Spaces) -> None:
    config.BasicSettings.Precision, config.BasicSettings.Compile = "float32", "never"
    execution, streams = Execution(config.BasicSettings, META), RandomStreams(0, META)
    learner, task = Learner(config, spaces, execution, streams), config.JointTrainAgent
    learner.update_world_model(make_batch(spaces, task.BatchSize, task.BatchLength))
    rollout = learner.imagine(make_batch(spaces, task.ImagineBatchSize, task.ImagineContextLength))
    assert rollout.reward.shape == (task.ImagineBatchSize, task.ImagineBatchLength)
    learner.update_agent(rollout)
    policy = make_policy(config, learner, execution, streams)
    observation = make_batch(spaces, task.NumEnvs, 1).observation[:, 0]
    action, kept = policy.choose_action(
        *make_batch(spaces, task.NumEnvs, task.ActingContextLength)[:2],
        observation,
        streams.uniform(
            "acting", task.NumEnvs, task.ActingContextLength, config.Models.WorldModel.NumLatents
        ),
        streams.uniform("acting", task.NumEnvs, sum(policy._noise_sizes)),
    )
    assert action.device == META and action.shape == (task.NumEnvs, *spaces.action.shape)
    assert kept.shape == observation.shape


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_runs_without_numbers(name: str) -> None:
    config = load_config([f"BasicSettings.config_path=config_files/{name}.yaml"])
    spaces = SPACES["control" if name.endswith("-control") else "game"]
    if name.endswith("-pixels"):
        spaces = SPACES["control from pixels"]
    side = config.BasicSettings.ImageSize
    if spaces.observation.kind == "image":
        spaces = Spaces(ObservationSpec("image", (side, side, 3)), spaces.action)
    check(config, spaces)


@pytest.mark.parametrize("mixer", ["concat", "concat_attention", "latent_attention"])
@pytest.mark.parametrize("model_type", ["STORM", "GITSTORM"])
@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_every_pair_of_spaces_runs_without_numbers(spaces: Spaces, model_type: str, mixer: str) -> None:
    config = Config()
    config.JointTrainAgent.ModelType, config.Models.WorldModel.StateMixer = model_type, mixer
    check(config, spaces)


def test_a_number_that_is_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = ActorCritic.loss
    monkeypatch.setattr(
        ActorCritic,
        "loss",
        lambda agent, rollout: loss(agent, rollout) if float(rollout.reward.mean()) else 0,
    )
    with pytest.raises(RuntimeError, match="meta"):
        check(Config(), SPACES["game"])


def test_a_tensor_on_another_device_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = WorldModel.decode
    monkeypatch.setattr(WorldModel, "decode", lambda model, latent: decode(model, latent) + torch.ones(64))
    with pytest.raises(RuntimeError, match="device"):
        check(Config(), SPACES["game"])
