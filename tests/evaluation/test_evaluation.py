"""Which episodes an evaluation counts."""

from __future__ import annotations

import numpy as np
import pytest

from env_wrapper import EnvironmentFault, StepResult
from evaluation.episodes import evaluate, quotas, summarise
from evaluation.scores import game_of, human_normalised
from evaluation.tables import Episode
from utils import UserError

FRAMES = np.zeros((2, 4, 4, 3), np.uint8)


class Lengths:
    """Two environments whose episodes last 2 and 5 steps; the return is the length, negative where long."""

    num_envs, observation, seeds = 2, FRAMES, (7, 8)

    def __init__(self, faults: tuple[int, ...] = ()) -> None:
        self.faults = faults
        self.time = 0
        self.elapsed = np.zeros(2, np.int64)

    def reset(self) -> np.ndarray:
        self.time, self.elapsed[:] = 0, 0
        return FRAMES

    def start_step(self, actions: np.ndarray) -> None:
        assert actions.shape == (2,)

    def finish_step(self) -> StepResult:
        self.time += 1
        if self.time in self.faults:
            self.elapsed[:] = 0
            raise EnvironmentFault("it died")
        self.elapsed += 1
        ended = self.elapsed == (2, 5)
        lengths = self.elapsed.copy()
        self.elapsed[ended] = 0
        zeros = np.zeros(2, np.float32)
        return StepResult(
            FRAMES, zeros, zeros, zeros, ended, np.where(lengths > 2, -lengths, lengths) * 1.0, lengths
        )


class Still:
    """A policy that does nothing, and counts what it was made to forget."""

    forgotten = 0

    def act(self, frames: np.ndarray) -> np.ndarray:
        return np.zeros(2, np.int64)

    def drop_last_step(self) -> None:
        self.forgotten += 1


@pytest.mark.parametrize(
    ("episodes", "envs", "shares"), [(20, 5, [4] * 5), (7, 3, [3, 2, 2]), (1, 1, [1]), (3, 3, [1, 1, 1])]
)
def test_quotas_are_nearly_equal(episodes: int, envs: int, shares: list[int]) -> None:
    assert quotas(episodes, envs).tolist() == shares


def test_every_environment_plays_its_share() -> None:
    lengths = [episode.length for episode in evaluate(Still(), Lengths(), 6)]
    assert sorted(lengths) == [2, 2, 2, 5, 5, 5]


def test_the_release_favours_short_episodes() -> None:
    lengths = [episode.length for episode in evaluate(Still(), Lengths(), 6, first_to_finish=True)]
    assert sorted(lengths) == [2, 2, 2, 2, 2, 5]


def test_returns_come_with_their_lengths() -> None:
    assert {(episode.score, episode.length) for episode in evaluate(Still(), Lengths(), 2)} == {
        (2, 2),
        (-5, 5),
    }


def test_a_fault_drops_the_episodes_under_way() -> None:
    policy = Still()
    episodes = evaluate(policy, Lengths(faults=(4,)), 2, max_faults=2)
    assert sorted(episode.length for episode in episodes) == [2, 5] and policy.forgotten == 1
    with pytest.raises(UserError, match="2 environment faults in a row, the last one: it died"):
        evaluate(policy, Lengths(faults=(4, 5)), 2, max_faults=2)


def test_summary_is_mean_and_sample_deviation() -> None:
    assert summarise([Episode(3.0, 1)]) == (3.0, 0.0)
    assert summarise([Episode(1.0, 1), Episode(3.0, 1)]) == (2.0, pytest.approx(2**0.5))


def test_human_normalised_scores() -> None:
    assert human_normalised("ALE/Boxing-v5", 12.1) == pytest.approx(1.0)
    assert human_normalised("ALE/Boxing-v5", 0.1) == pytest.approx(0.0)
    for same in ("ale_py:ALE/Boxing-v5", "BoxingNoFrameskip-v4", "BoxingDeterministic-v0"):
        assert human_normalised(same, 12.1) == pytest.approx(1.0)
    for other in ("Diagnostic/Catch-v0", "other/Boxing-v0", "my_env:ALEX/Boxing-v5", "my_env:Boxing-v0"):
        assert human_normalised(other, 1.0) is None
    assert game_of("MyDeterministic-v1") == "MyDeterministic-v1" and game_of("mine:Ball-v2") == "Ball-v2"
    assert game_of("ALE/Zaxxon-v5") == "Zaxxon"  # of Atari, if not of the 26
