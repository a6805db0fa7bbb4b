"""Both models learn Catch, side by side on one thread each."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from experiments import catch, training

LIMIT = 3000  # environment steps


EVERY_SPEED_SETTING = ("BasicSettings.Precision=bfloat16", "BasicSettings.Compile=always")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "overrides", [(), pytest.param(EVERY_SPEED_SETTING, marks=pytest.mark.slow)], ids=["preset", "fastest"]
)
def test_storm_and_gitstorm_learn_catch(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    processes = {model: catch.start(model, 0, tmp_path, *overrides) for model in catch.MODELS}
    needed: dict[str, int] = {}
    codes: dict[str, int] = {}
    try:
        while len(codes) < len(processes):
            time.sleep(catch.PAUSE)
            for model in processes.keys() - codes.keys():
                ended = processes[model].poll() is not None
                step = catch.steps_needed(training.training_returns(catch.run_name(model, 0), tmp_path))
                if step is not None:
                    needed[model] = step
                if ended or step is not None:
                    codes[model] = training.stop(processes[model])
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    logs = {model: (tmp_path / f"{catch.run_name(model, 0)}.log").read_text() for model in processes}
    assert all(code in catch.SAVED for code in codes.values()), logs
    assert needed.keys() == processes.keys() and max(needed.values()) < LIMIT, (needed, logs)
    assert not any("running it eagerly" in log for log in logs.values())


@pytest.mark.parametrize(
    ("returns", "step"),
    [
        ([1.0] * 49, None),
        ([1.0] * 50, 450),
        ([-1.0] * 30 + [1.0] * 50, 9 * 75),  # 45 of 50 caught
        ([-1.0, 1.0] * 100, None),
    ],
)
def test_steps_needed_is_when_fifty_episodes_average_the_target(
    returns: list[float], step: int | None
) -> None:
    assert catch.steps_needed([(9 * (index + 1), value) for index, value in enumerate(returns)]) == step


def test_training_returns_are_read_from_whole_lines(tmp_path: Path) -> None:
    assert training.training_returns("run", tmp_path) == []
    file = tmp_path / "outputs" / "run" / "metrics.jsonl"
    file.parent.mkdir(parents=True)
    episode = '{"step": 9, "sample/Diagnostic/Catch-v0_reward": -1.0, "sample/x_episode_steps": 9}\n'
    file.write_text(episode + '{"step": 10, "WorldModel/real_reward": 0.5}\n{"step": 18, "sample/Diagn')
    assert training.training_returns("run", tmp_path) == [(9, -1.0)]
