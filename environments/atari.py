"""Atari games on ale-py's plain emulator.

Preprocessing: sticky actions on each emulator frame, the maximum of the last two frames of a step
in RGB; no grey-scale, no no-op start, no clipped rewards (Machado et al. 2018, arXiv 1709.06009;
with the picture resized by area, equal to gymnasium.wrappers.AtariPreprocessing with these options).
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from configuration.schema import EnvironmentConfig
from utils import UserError

SETTING_OF = {
    "frameskip": "FrameSkip",
    "repeat_action_probability": "StickyActions",
    "max_num_frames_per_episode": "MaxEpisodeFrames",
    "full_action_space": "FullActionSpace",
}
PLAYED = {"obs_type": "rgb", "continuous": False, "sound_obs": False, "render_mode": None}


def is_atari(spec: EnvSpec) -> bool:
    """Return whether that id is of an Atari game: `ALE/Breakout-v5`, an old one or one of the user's own."""
    return spec.entry_point in ("ale_py.env:AtariEnv", "ale_py:AtariEnv", ale_py.AtariEnv)


def overruled(spec: EnvSpec, settings: EnvironmentConfig) -> list[tuple[str, str]]:
    """Return (argument, setting) for what an id registers and a setting at its default says otherwise."""
    defaults = EnvironmentConfig()
    left = {name: key for name, key in SETTING_OF.items() if getattr(settings, key) == getattr(defaults, key)}
    left.pop("full_action_space", None)  # either may ask for it
    said = [(name, key) for name, key in left.items() if name in spec.kwargs]
    return [(name, key) for name, key in said if spec.kwargs[name] != getattr(settings, key)]


def emulator_arguments(registered: dict[str, Any], settings: EnvironmentConfig) -> dict[str, Any]:
    """Return what a game is made with: the settings and, of its registered id, everything else.

    Raises:
        UserError: Environment.Arguments says what another key says, or either asks for another game
            than one of colour pictures and discrete actions.
    """
    for name, key in SETTING_OF.items():
        if name in settings.Arguments:
            raise UserError(f"Environment.Arguments: {name!r} of an Atari game is set by Environment.{key}")
    arguments = registered | settings.Arguments
    for name, only in PLAYED.items():
        if arguments.get(name, only) != only:
            raise UserError(f"{name}={arguments[name]!r}: Atari games are played with {name}={only!r} only")
    if settings.Observation == "vector":
        raise UserError("Environment.Observation=vector: Atari games are played from pictures")
    chosen = {name: getattr(settings, key) for name, key in SETTING_OF.items()}
    chosen["full_action_space"] |= arguments.get("full_action_space", False)
    return arguments | chosen | {"frameskip": 1}


class AtariGame(gymnasium.Wrapper):
    """A game whose steps are of several frames; its pictures are valid until the next step.

    Args:
        env: made with `emulator_arguments`. frame_skip: emulator frames of a step, fewer at an end.
    """

    def __init__(self, env: gymnasium.Env, frame_skip: int) -> None:
        super().__init__(env)
        self._frame_skip = frame_skip
        self._ale = env.unwrapped.ale
        minimal, legal = self._ale.getMinimalActionSet(), self._ale.getLegalActionSet()
        self._actions = minimal if len(minimal) == env.action_space.n else legal
        self._screen = np.empty(env.observation_space.shape, np.uint8)
        self._screen_before = np.empty_like(self._screen)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; with a seed, load the game anew."""
        screen, _ = self.env.reset(seed=seed)
        return screen, {"lives": self._ale.lives()}

    def step(self, action: int) -> tuple[np.ndarray, int, bool, bool, dict[str, Any]]:
        """Act for the frames of a step and sum their rewards."""
        ale, reward, last = self._ale, 0, self._frame_skip - 1
        for frame in range(last + 1):
            reward += ale.act(self._actions[action])
            if ale.game_over():
                break
            if frame == last - 1:
                ale.getScreenRGB(self._screen_before)
        ale.getScreenRGB(self._screen)
        if self._frame_skip > 1 and not ale.game_over():
            np.maximum(self._screen, self._screen_before, out=self._screen)
        terminated = ale.game_over(with_truncation=False)
        return self._screen, reward, terminated, ale.game_truncated(), {"lives": ale.lives()}

    def chance(self) -> bytes:
        """Return the emulator's state, but for what a reset makes good (held action, video chip)."""
        return self._ale.cloneSystemState().serialize()

    def restore_chance(self, state: bytes) -> None:
        """Continue from `chance()`, up to the next reset; any exception for bytes that are none."""
        self._ale.restoreSystemState(ale_py.ALEState(state))
