"""One environment behind one small interface: an emulated game, or any Gymnasium environment.

A single environment writes each picture into a given array and has
`reset(seed)`, `step(action) -> (reward, termination, episode_end)`, `state_dict()`,
`load_state_dict(state) -> why it could not be restored, or None`, `num_actions` and `close()`.
When an episode ends it begins the next one at once, in the same step. This module imports no
PyTorch, so that worker processes start fast and stay small.
"""

from __future__ import annotations

import importlib
import re
from typing import Any, Protocol

import ale_py
import cv2
import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from configuration.schema import Environment as EnvironmentSettings
from environments import diagnostic  # registers its environments
from environments.atari import AtariGame
from environments.state_checks import expect
from utils import UserError, nearest

FLOAT32_MAX = float(np.finfo(np.float32).max)
EMULATOR_SETTINGS = ("FrameSkip", "StickyActions", "MaxEpisodeFrames")  # mean nothing elsewhere
gymnasium.register_envs(ale_py)
gymnasium.register_envs(diagnostic)


class SingleEnvironment(Protocol):
    """What workers and the vector environment expect."""

    num_actions: int

    def reset(self, seed: int) -> None: ...

    def step(self, action: int) -> tuple[float, bool, bool]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> str | None: ...

    def close(self) -> None: ...


def find_spec(name: str) -> EnvSpec:
    """The registered environment of that id; `module:id` imports the module first.

    Raises:
        UserError: no such id, with the nearest valid one, or a module that cannot be imported.
    """
    module, _, registered = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UserError(
                f"environment {name!r}: module {module!r} cannot be imported ({error})"
            ) from error
    spec = gymnasium.registry.get(registered)
    if spec is None:
        raise UserError(f"unknown environment {name!r}{_suggestion(registered)}")
    return spec


def _suggestion(name: str) -> str:
    """The nearest valid id, as `nearest` words it: a game's if `name` is most like a game's bare name."""
    suffix = r"(NoFrameskip|Deterministic)?(-v\d+)?$"
    games = {re.sub(suffix, "", key[4:]): key for key in gymnasium.registry if key.startswith("ALE/")}
    others = {re.sub(suffix, "", key) for key in gymnasium.registry} - set(games)
    bare = re.sub(suffix, "", name.removeprefix("ALE/"))
    if nearest(bare, games) and nearest(bare, games) == nearest(bare, {*games, *others}):
        return nearest(f"ALE/{bare}-v5", games.values())
    return nearest(name, gymnasium.registry)


def is_atari(spec: EnvSpec) -> bool:
    """Whether that id is of an Atari game: `ALE/Breakout-v5`, or an old one as `BreakoutNoFrameskip-v4`."""
    return spec.namespace == "ALE" or spec.entry_point == "ale_py.env:AtariEnv"


def ignored_settings(name: str, settings: EnvironmentSettings) -> list[str]:
    """A line on settings that were changed and do not apply to that environment; [] if there are none."""
    defaults = EnvironmentSettings()
    changed = [key for key in EMULATOR_SETTINGS if getattr(settings, key) != getattr(defaults, key)]
    if not changed or is_atari(find_spec(name)):
        return []
    keys = ", ".join(f"Environment.{key}" for key in changed)
    return [f"warning: {keys}: applies to Atari games only, not to {name}"]


class ImageEnvironment:
    """Any Gymnasium environment with an image observation and discrete actions.

    The image is uint8 (H, W, 3), (H, W, 1) or (H, W); grey is repeated to three channels, and
    the size changed by area. A key `lives` in its info counts as an emulator's lives. One whose
    `unwrapped` defines `state_dict` and `load_state_dict` (plain values and NumPy arrays) is
    resumed exactly.

    Args:
        name: Gymnasium id. spec: found by `find_spec`. settings: of the environment; those of the
            emulator do not apply.
        frame: uint8 (S, S, 3), receives each picture.
        release_quirks: re-seed with the same seed at every episode.
        arguments: of the environment's constructor.

    Raises:
        UserError: it cannot be made, has no image observation or no discrete actions.
    """

    def __init__(
        self,
        name: str,
        spec: EnvSpec,
        settings: EnvironmentSettings,
        frame: np.ndarray,
        release_quirks: bool,
        arguments: dict[str, Any],
    ) -> None:
        try:  # the time limit is kept here, where its count can be saved
            self._env = gymnasium.make(name, max_episode_steps=-1, disable_env_checker=True, **arguments)
        except Exception as error:
            raise UserError(f"environment {name!r}: {type(error).__name__}: {error}") from error
        actions, image = self._env.action_space, self._env.observation_space
        if not isinstance(actions, gymnasium.spaces.Discrete):
            raise UserError(f"environment {name!r}: its actions must be Discrete, found {actions}")
        self._shape = getattr(image, "shape", None) or ()
        if image.dtype != np.uint8 or not (len(self._shape) == 2 or self._shape[2:] in ((1,), (3,))):
            raise UserError(
                f"environment {name!r}: its observation must be an image, uint8 (H, W, 3), (H, W, 1) or "
                f"(H, W), found {image}"
            )
        self.num_actions = int(actions.n)
        self._first_action = int(actions.start)
        self._max_steps = spec.max_episode_steps or float("inf")
        self._life_loss = settings.LifeLossTermination
        self._frame, self._release_quirks = frame, release_quirks
        self._lives: int | None = None
        self._steps = self._seed = 0

    def reset(self, seed: int) -> None:
        """Seed the environment and begin its first episode."""
        self._seed = seed
        self._begin_episode(seed)

    def _begin_episode(self, seed: int | None) -> None:
        observation, info = self._env.reset(seed=seed)
        self._lives = info.get("lives")
        self._steps = 0
        self._show(observation)

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Act once; begin the next episode if this one ended.

        Raises:
            ValueError: the environment returned a wrong reward or observation.
        """
        observation, reward, terminated, truncated, info = self._env.step(self._first_action + action)
        try:
            number = float(reward)
        except (TypeError, ValueError):
            raise ValueError(f"its reward must be a number, found {reward!r}") from None
        if not abs(number) <= FLOAT32_MAX:
            raise ValueError(f"its reward must be finite, found {number}")
        lives = info.get("lives")
        lost = self._life_loss and lives is not None and self._lives is not None and lives < self._lives
        self._lives = lives
        self._steps += 1
        episode_end = bool(terminated or truncated or self._steps >= self._max_steps)
        self._show(observation)
        if episode_end:
            self._begin_episode(self._seed if self._release_quirks else None)
        return number, bool(terminated or lost), episode_end

    def _show(self, observation: Any) -> None:
        if not isinstance(observation, np.ndarray):
            raise ValueError(f"its observation must be a NumPy array, found {type(observation).__name__}")
        if observation.dtype != np.uint8 or observation.shape != self._shape:
            raise ValueError(
                f"its observation must be uint8 {self._shape}, found {observation.dtype} {observation.shape}"
            )
        height, width = self._frame.shape[:2]
        if observation.shape[:2] != (height, width):
            observation = cv2.resize(observation, (width, height), interpolation=cv2.INTER_AREA)
        self._frame[:] = observation if observation.ndim == 3 else observation[:, :, None]

    def _hooks(self) -> Any | None:
        inner = self._env.unwrapped
        has_hooks = hasattr(inner, "state_dict") and hasattr(inner, "load_state_dict")
        return inner if has_hooks and not self._env.spec.additional_wrappers else None

    def state_dict(self) -> dict[str, Any]:
        """The environment's own state, if it offers one, with the counts kept here."""
        hooks = self._hooks()
        if hooks is None:
            return {}
        lives = -1 if self._lives is None else int(self._lives)
        return {"environment": hooks.state_dict(), "seed": self._seed, "steps": self._steps, "lives": lives}

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Continue from `state_dict()`, but for the picture.

        Returns:
            None, or why the environment could not be restored (it must then be reset).

        Raises:
            UserError: the state is malformed.
        """
        hooks = self._hooks()
        if hooks is None or not state:
            return "it has no state that can be saved"
        steps, lives = expect(state, "steps", int), expect(state, "lives", int)
        self.reset(expect(state, "seed", int))  # Gymnasium wants a reset before the first step
        try:
            hooks.load_state_dict(expect(state, "environment", dict))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"environment state: 'environment': {type(error).__name__}: {error}") from error
        self._steps, self._lives = steps, None if lives < 0 else lives
        return None

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()


def make_single(
    name: str, settings: EnvironmentSettings, release_quirks: bool, frame: np.ndarray
) -> SingleEnvironment:
    """The environment of that Gymnasium id, showing its pictures in `frame`, uint8 (S, S, 3).

    Raises:
        UserError: unknown id, or an environment that is not of images and discrete actions.
    """
    spec = find_spec(name)
    if is_atari(spec):
        return AtariGame(name, settings, frame, release_quirks)
    arguments = {"image_size": frame.shape[0]} if spec.namespace == "Diagnostic" else {}
    return ImageEnvironment(name, spec, settings, frame, release_quirks, arguments)
