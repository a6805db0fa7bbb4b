"""The world model as an environment, and dreams from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tests_support import CPU, SPACES, random_batch, small_config

from agents import make_models
from compute.execution import Execution
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from evaluation import DreamEnvironment, dream
from evaluation.open_loop import open_loop
from evaluation.playing.beside import DreamingPolicy
from evaluation.playing.dreaming import Dream, as_observation
from evaluation.policies import EvaluationPolicy, TrainedModels
from run_files.directory import RunDirectory
from run_files.weights import save_weights
from sub_models.batch import Batch

VECTORS = Spaces(ObservationSpec("vector", (4,)), ActionSpec("continuous", 2))


def make_policy(
    model_type: str = "STORM", spaces: Spaces = SPACES, kind: type[EvaluationPolicy] = EvaluationPolicy
) -> EvaluationPolicy:
    torch.manual_seed(0)
    config = small_config(model_type)
    config.BasicSettings.env_name = "Diagnostic/Catch-v0"
    models = TrainedModels(*make_models(config, spaces, CPU))
    return kind(config, models, 1, Execution(config.BasicSettings, CPU), 0, False)


def half(*shape: int) -> torch.Tensor:
    """Noise that is always the same, whatever is drawn first."""
    return torch.full(shape, 0.5)


class HalfStreams:
    """The same as random streams."""

    def uniform(self, purpose: str, *shape: int) -> torch.Tensor:
        return half(*shape)


@pytest.mark.parametrize("model_type", ["STORM", "GITSTORM"])
def test_a_dream_is_the_open_loop_prediction(model_type: str) -> None:
    policy, steps, context = make_policy(model_type), random_batch(1, 9), 4
    expected = open_loop(policy.world_model, steps, context, HalfStreams())
    real = Dream(policy.world_model, 3, 20, half)
    real.begin(steps.observation[0, :context], steps.action[0, : context - 1])
    one = real.fork()
    real.step(steps.action[0, context - 1])  # what happens to one does not touch the other
    for step in range(context - 1, 9):
        drawn = as_observation(policy.world_model, expected.prediction[0, step])
        np.testing.assert_allclose(one.picture().astype(float), drawn.astype(float), atol=1)
        reward, termination = one.step(steps.action[0, step])
        assert reward == pytest.approx(expected.reward[0, step].item(), abs=1e-4)
        assert termination == bool(expected.termination[0, step])


def test_a_full_past_is_shortened_and_the_dream_goes_on() -> None:
    policy, steps = make_policy(), random_batch(1, 12)
    one = Dream(policy.world_model, 3, 5, half).begin(steps.observation[0, :1], steps.action[0, :0])
    for step in range(6):  # of 5 that fit; then the last 3 and the present one are encoded anew
        one.observe(steps.observation[0, step])
        one.step(steps.action[0, step])
    short = Dream(policy.world_model, 3, 5, half).begin(steps.observation[0, 2:6], steps.action[0, 2:5])
    short.step(steps.action[0, 5])
    torch.testing.assert_close(one.hidden, short.hidden)


@pytest.mark.parametrize("spaces", [SPACES, VECTORS])
@pytest.mark.filterwarnings("ignore::UserWarning")  # unbounded vectors, no registered id
def test_it_passes_gymnasiums_check(spaces: Spaces) -> None:
    policy = make_policy(spaces=spaces)
    contexts = random_batch(1, 20)
    if spaces is VECTORS:
        contexts = Batch(torch.randn(1, 20, 4), torch.rand(1, 20, 2), *contexts[2:])
    environment = DreamEnvironment(policy, contexts, horizon=4)
    check_env(environment, skip_render_check=True)
    first, _ = environment.reset(seed=3)
    ends = [environment.step(environment.action_space.sample())[2:4] for _ in range(1)]
    while not any(ends[-1]):
        ends.append(environment.step(environment.action_space.sample())[2:4])
    assert len(ends) <= 4 and (ends[-1][0] or len(ends) == 4)
    assert (first == contexts.observation[0].numpy()).reshape(20, -1).all(1).any()
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(environment.action_space.sample())


def test_it_is_loaded_by_name_and_begins_in_the_real_game(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy, run = make_policy(), RunDirectory("catch")
    policy.config.JointTrainAgent.BatchLength = 12
    run.save_config(policy.config)
    for name, model in (("world_model", policy.world_model), ("agent", policy.agent)):
        save_weights(run.checkpoints / f"{name}_7.pth", model)
    environment = DreamEnvironment.load("catch", device="cpu", context_steps=20)
    observation, _ = environment.reset(seed=1)
    assert observation.shape == (16, 16, 3) and (observation == environment.render()).all()
    assert len(np.unique(observation.reshape(-1, 3), axis=0)) in (2, 3)  # background, ball, paddle
    observation, reward, *_ = environment.step(2)
    assert isinstance(reward, float) and environment.observation_space.contains(observation)
    with pytest.raises(ValueError, match="not in"):
        environment.step(3)


def test_dream_takes_no_noise_and_says_what_does_not_fit() -> None:
    policy, steps = make_policy(), random_batch(1, 10)
    seen, actions = steps.observation[0, :4].numpy(), steps.action[0].numpy()
    results = [dream(policy, seen, actions[:given], 5, seed=seed) for given, seed in ((4, 0), (4, 0), (9, 1))]
    assert (results[0].observation == results[1].observation).all()
    assert results[0].observation.shape == (5, 16, 16, 3) and results[0].observation.dtype == np.uint8
    assert results[0].reward.shape == results[0].termination.shape == results[0].value.shape == (5,)
    assert (results[2].action == actions[4:9]).all()
    assert len(dream(policy, np.repeat(seen, 20, 0), np.repeat(actions[:4], 20), 40).reward) == 40
    assert len(dream(policy, list(seen), actions[:4].astype(np.int32).tolist(), 2).reward) == 2
    for wrong, word in (
        ((seen, actions[:3], 5), "3 actions do not fit 4 observations"),
        ((seen, actions, 5), "10 actions do not fit"),
        ((seen, actions[:4], 0), "a horizon of 0"),
        ((seen[:, :8], actions[:4], 5), r"uint8 \(T, 16, 16, 3\) wanted, found uint8 \(4, 8, 16, 3\)"),
        ((seen / 255, actions[:4], 5), "found float64"),
        ((seen, actions[:4] / 1, 5), "actions: int64 .* found float64"),
        ((seen, actions[:4] + 3, 5), "between 0 and 2"),
        ((seen, 1, 5), "actions"),
    ):
        with pytest.raises(ValueError, match=word):
            dream(policy, *wrong)


def test_after_a_fault_the_dream_beside_the_game_begins_with_the_next_episode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy(kind=DreamingPolicy)
    lengths: list[int] = []
    begin = policy._dream.begin
    monkeypatch.setattr(
        policy._dream, "begin", lambda seen, done: (lengths.append(len(seen)), begin(seen, done))
    )
    frame = np.zeros((1, *SPACES.observation.shape), np.uint8)
    policy.act(frame), policy.act(frame)
    policy.drop_last_step()
    policy.act(frame)
    assert lengths == [1, 1]  # of the frame that came after it
