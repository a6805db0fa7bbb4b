"""Open-loop predictions, the video of them, and the health line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests_support import CPU, random_batch, small_config, small_models

from compute.random_streams import RandomStreams
from evaluation.open_loop import CONTEXT_MARK, MARK_HEIGHT, comparison_video, open_loop
from sub_models.action_distributions import Categorical
from sub_models.batch import Batch
from sub_models.functions_losses import one_hot
from training.health import health

BOTH = pytest.mark.parametrize("model_type", ["STORM", "GITSTORM"])
CONTEXT, LENGTH = 3, 8


def with_frames(batch: Batch, frames: torch.Tensor) -> Batch:
    return Batch(frames, batch.action, batch.reward, batch.termination)


# Open loop.


@BOTH
def test_open_loop_sees_the_context_and_nothing_after_it(model_type: str) -> None:
    world_model, _ = small_models(model_type)
    batch = random_batch(4, LENGTH)
    later, earlier = batch.observation.clone(), batch.observation.clone()
    later[:, CONTEXT:] = 255 - later[:, CONTEXT:]
    earlier[:, CONTEXT - 1] = 255 - earlier[:, CONTEXT - 1]

    def frames(observation: torch.Tensor) -> torch.Tensor:
        return open_loop(
            world_model, with_frames(batch, observation), CONTEXT, RandomStreams(0, CPU)
        ).prediction

    reference = frames(batch.observation)
    assert torch.equal(reference, frames(later))
    changed = (reference != frames(earlier)).flatten(2).any(-1)
    assert not changed[:, : CONTEXT - 1].any() and changed[:, CONTEXT - 1].any()


@BOTH
def test_open_loop_follows_the_real_actions(model_type: str) -> None:
    world_model, _ = small_models(model_type)
    batch = random_batch(4, LENGTH)
    other = Batch(batch.observation, (batch.action + 1) % 3, batch.reward, batch.termination)
    other.action[:, :5] = batch.action[:, :5]
    first, second = (open_loop(world_model, each, CONTEXT, RandomStreams(0, CPU)) for each in (batch, other))
    same = (first.hidden == second.hidden).all(-1).all(0)
    assert same.tolist() == [True] * 5 + [False] * 3


@BOTH
def test_open_loop_is_the_models_own_imagination(model_type: str) -> None:
    """The latents that it drew, given to the sequence model at once, have the same consequences."""
    world_model, _ = small_models(model_type)
    shown: list[torch.Tensor] = []
    decode = world_model.decode
    world_model.decode = lambda latent: shown.append(latent) or decode(latent)
    batch = random_batch(4, LENGTH)
    result = open_loop(world_model, batch, CONTEXT, RandomStreams(0, CPU))
    with torch.no_grad():
        hidden = world_model.sequence_model(shown[0], batch.action)
        assert torch.allclose(result.hidden, hidden, atol=1e-5)
        assert torch.allclose(result.prediction, decode(shown[0]), atol=1e-5)
        assert torch.allclose(result.reward, world_model.predict_reward(hidden), atol=1e-4)
        assert torch.equal(result.termination, world_model.predict_termination(hidden))
    assert result.prediction.shape == (4, LENGTH, 3, 16, 16) and result.prediction.dtype == torch.float32
    assert torch.equal(shown[0].unflatten(-1, (4, 5)).sum(-1), torch.ones(4, LENGTH, 4))


def test_predictions_are_drawn_from_the_prior() -> None:
    """A prior that is certain of one class each shows exactly that latent from the context's end on."""
    world_model, _ = small_models()
    world_model.prior.unimix = 0.0
    wanted = torch.tensor([3, 0, 4, 1])
    with torch.no_grad():
        world_model.prior.head.weight.zero_()
        world_model.prior.head.bias.copy_(1e3 * one_hot(wanted, 5).flatten())
        expected = world_model.decode(world_model.one_hot_latent(wanted).expand(2, LENGTH - CONTEXT, -1))
    frames = open_loop(world_model, random_batch(2, LENGTH), CONTEXT, RandomStreams(0, CPU)).prediction
    assert torch.allclose(frames[:, CONTEXT:], expected, atol=1e-5)
    assert not torch.allclose(frames[:, :CONTEXT], expected[:, :CONTEXT], atol=1e-2)


# Video and errors.


def test_the_video_shows_truth_prediction_and_error_in_rows() -> None:
    batch, time, side = 2, 4, 16
    truth = random_batch(batch, time).observation
    prediction = (
        torch.rand(batch, time, 3, side, side, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2
    )
    video = comparison_video(truth, prediction, context=1)
    assert video.shape == (time, MARK_HEIGHT + 3 * side, batch * side, 3) and video.dtype == np.uint8
    mark, rows = video[:, :MARK_HEIGHT], video[:, MARK_HEIGHT:]
    assert (mark[0] == CONTEXT_MARK).all() and not mark[1:].any()
    for column in range(batch):
        shown = rows[:, :, column * side : (column + 1) * side].reshape(time, 3, side, side, 3).astype(int)
        expected = (255 * prediction[column].clamp(0, 1)).round().int().movedim(1, -1).numpy()
        assert (shown[:, 0] == truth[column].numpy()).all()
        assert (shown[:, 1] == expected).all()
        assert (shown[:, 2] == abs(expected - shown[:, 0])).all()


# Health.


def metrics(**changes: float) -> dict[str, float]:
    """Metrics of a healthy run with 5 classes and 3 actions."""
    values = {
        "WorldModel/dynamics_real_kl_div": 2.0,
        "WorldModel/posterior_entropy": 0.5,
        "replay_buffer/recent_reward": 0.11,
        "ActorCritic/entropy_loss": 0.7,
        "ActorCritic/imagined_reward": 0.10,
        "ActorCritic/value_explained": 0.6,
    }
    return values | {name.replace("__", "/"): value for name, value in changes.items()}


def test_a_healthy_run_is_told_so() -> None:
    findings = health(metrics(), small_config(), policy_entropies=(0.0, math.log(3)))
    assert set(findings) == {"KL", "posterior", "policy", "reward", "value"}
    assert all(text.startswith("ok (") for text in findings.values())
    assert findings["KL"] == "ok (2.00 nats, free 1)"
    assert findings["policy"] == f"ok (entropy {0.7 / math.log(3):.0%} of the most)"


@pytest.mark.parametrize(
    ("subject", "change"),
    [
        ("KL", {"WorldModel__dynamics_real_kl_div": 0.9}),
        ("posterior", {"WorldModel__posterior_entropy": 0.01}),
        ("posterior", {"WorldModel__posterior_entropy": 0.995 * math.log(5)}),
        ("policy", {"ActorCritic__entropy_loss": 0.01}),
        ("reward", {"ActorCritic__imagined_reward": 0.05}),
        ("reward", {"ActorCritic__imagined_reward": -0.11}),
        ("value", {"ActorCritic__value_explained": -0.1}),
        ("value", {"ActorCritic__value_explained": math.nan}),
    ],
)
def test_what_goes_wrong_is_named(subject: str, change: dict[str, float]) -> None:
    findings = health(metrics(**change), small_config(), policy_entropies=(0.0, math.log(3)))
    assert [name for name, text in findings.items() if text.startswith("look (")] == [subject]


def test_a_policy_of_fixed_deviation_is_not_judged_by_its_entropy() -> None:
    for fixed in ((0.7, 0.7), Categorical(1).entropy_range):
        assert health(metrics(), small_config(), policy_entropies=fixed)["policy"].startswith("ok")


def test_tiny_rewards_are_not_compared() -> None:
    tiny = metrics(replay_buffer__recent_reward=0.0, ActorCritic__imagined_reward=0.004)
    assert health(tiny, small_config(), policy_entropies=(0.0, math.log(3)))["reward"].startswith("ok")
