"""One environment as an agent meets it: seen and played in one form, and resumed bit for bit.

This module imports no PyTorch, so that worker processes start fast and stay small.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
import sys
from typing import Any

import ale_py
import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from configuration.schema import EnvironmentConfig
from configuration.spaces import Spaces
from environments import control, diagnostic  # the latter registers its environments
from environments.atari import SETTING_OF, AtariGame, emulator_arguments, is_atari, overruled
from environments.spaces import ImageReader, action_map, observation_reader
from utils import UserError, is_interrupt, nearest

FLOAT32_MAX = float(np.finfo(np.float32).max)
SCENE_SIZE = 240  # side of pictures that people look at and the agent does not
NOT_BACK = "it did not come back to the saved state"
gymnasium.register_envs(ale_py)
gymnasium.register_envs(diagnostic)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner


def environment_id(name: str) -> str:
    """Return the Gymnasium id of a game given by its bare name: ALE/Boxing-v5 of Boxing."""
    return name if re.search(r"[/:]|-v\d", name) else f"ALE/{name}-v5"


def action_repeat(name: str, settings: EnvironmentConfig) -> int:
    """Return the environment's steps per agent step."""
    return settings.ActionRepeat or (control.ACTION_REPEAT if name.startswith(control.PREFIX) else 1)


def find_spec(name: str) -> EnvSpec:
    """Return the registered environment of that id; `module:id` imports the module first.

    Raises:
        UserError: no such id, with the nearest valid one, or a module that cannot be imported.
    """
    module, _, registered = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"environment {name!r}: module {module!r} cannot be imported ({error})"
            ) from error
    if registered not in gymnasium.registry:
        try:
            control.register_tasks()  # one of them may be meant
        except UserError:
            if registered.startswith(control.PREFIX):
                raise
    spec = gymnasium.registry.get(registered)
    if spec is None:
        raise UserError(f"unknown environment {name!r}{nearest(registered, gymnasium.registry, key=_bare)}")
    return spec


def _bare(name: str) -> str:
    """An id without what users leave out or mistake."""
    return re.sub(r"^(ale|dm_control)/|-v\d+$", "", name.lower())


def ignored_settings(name: str, settings: EnvironmentConfig) -> list[str]:
    """Return lines on settings that mean nothing to that environment, or that its own id had otherwise."""
    defaults, spec = EnvironmentConfig(), find_spec(name)
    changed = [key for key in SETTING_OF.values() if getattr(settings, key) != getattr(defaults, key)]
    if is_atari(spec):
        other = [f"{one}={spec.kwargs[one]} by Environment.{key}" for one, key in overruled(spec, settings)]
        return [f"note: of {name}, {', '.join(other)}"] if other else []
    if not changed:
        return []
    keys = ", ".join(f"Environment.{key}" for key in changed)
    return [f"warning: {keys}: applies to Atari games only, not to {name}"]


class SingleEnvironment:
    """An environment that begins the next episode in the same step in which one ends.

    A key `lives` in its info counts as an emulator's lives. Its state is how the present episode came
    to be: the seed, the state of its chance (its `np_random`, or the emulator) when the episode began,
    and the actions since, which are played again to restore it. A digest of all that was seen tells
    whether it came back to the same state.

    Args:
        name: Gymnasium id. settings: of the environment. image_size: side S of pictures.
        release_quirks: re-seed with the same seed at every episode.

    Raises:
        UserError: it cannot be made, or its spaces are not supported.
    """

    def __init__(self, name: str, settings: EnvironmentConfig, image_size: int, release_quirks: bool) -> None:
        self._spec = find_spec(name)
        self._settings, self._release_quirks = settings, release_quirks
        self._repeat = action_repeat(name, settings)
        self._arguments = self._choose_arguments(image_size)
        self._env = self._make()
        read = observation_reader(self._env.observation_space, settings.Observation, image_size)
        self._draws = read is None
        self._read = read or ImageReader(None, image_size)
        can_draw = "rgb_array" in self._env.metadata.get("render_modes", ())
        if self._draws and not can_draw:
            raise UserError("it has no render mode 'rgb_array'; use Environment.Observation=vector")
        if self._draws or (can_draw and self._read.spec.kind == "vector"):
            self._arguments["render_mode"] = "rgb_array"
            if not self._draws and "image_size" in self._arguments:
                self._arguments["image_size"] = settings.Arguments.get("image_size", SCENE_SIZE)
            self._make_anew()
        action_spec, self._act = action_map(self._env.action_space)
        self.spaces = Spaces(self._read.spec, action_spec)

    def _choose_arguments(self, image_size: int) -> dict[str, Any]:
        limit = {"max_episode_steps": self._spec.max_episode_steps}
        size = {"image_size": image_size} if self._spec.namespace in ("Diagnostic", "dm_control") else {}
        chosen = limit | size | self._settings.Arguments
        for key in (*limit, *size):
            if chosen[key] is not None and (type(chosen[key]) is not int or chosen[key] < 1):
                raise UserError(f"Environment.Arguments: {key!r} must be 1 or more, found {chosen[key]!r}")
        self._max_steps = chosen["max_episode_steps"] or np.inf  # kept here, where the count is restored
        if is_atari(self._spec):
            chosen = emulator_arguments(self._spec.kwargs, self._settings)
        return chosen | {"max_episode_steps": -1, "disable_env_checker": True}

    def _make(self) -> gymnasium.Env:
        if "mujoco" in str(self._spec.entry_point):
            control.choose_renderer()
        try:
            env = gymnasium.make(self._spec, **self._arguments)
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"{error}; of MuJoCo and Box2D, {control.INSTALL}") from error
        except Exception as error:
            raise UserError(f"{type(error).__name__}: {error}") from error
        return AtariGame(env, self._settings.FrameSkip) if is_atari(self._spec) else env

    def _make_anew(self) -> None:
        self._env.close()
        self._env = self._make()

    def reset(self, seed: int) -> np.ndarray:
        """Seed the environment, begin its first episode and return the first observation."""
        self._seed = seed
        return self._shown(self._begin_episode(seed))

    def _begin_episode(self, seed: int | None) -> np.ndarray | None:
        self._start = b"" if seed is not None else self._chance()
        self._history, self._digest = bytearray(), hashlib.sha256()
        observation, info = self._env.reset(seed=seed)
        self._lives, self._steps = info.get("lives"), 0
        return self._look(observation)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Act ActionRepeat times, fewer if the episode ends; then begin the next one.

        Returns:
            The observation, the summed reward, whether the environment ended or a life was lost,
            and whether the episode ended (truncation included).

        Raises:
            ValueError: the environment returned a wrong reward or observation.
        """
        seen, reward, termination, episode_end = self._advance(action)
        if episode_end:
            seen = self._begin_episode(self._seed if self._release_quirks else None)
        return self._shown(seen), reward, termination, episode_end

    def _advance(self, action: Any) -> tuple[np.ndarray | None, float, bool, bool]:
        self._history += np.asarray(action, self.spaces.action.dtype).tobytes()
        total, lost, own_action = 0.0, False, self._act(action)
        for _ in range(self._repeat):
            observation, reward, terminated, truncated, info = self._env.step(own_action)
            try:
                total += float(reward)
            except (TypeError, ValueError):
                raise ValueError(f"its reward must be a number, found {reward!r}") from None
            lives, before, self._lives = info.get("lives"), self._lives, info.get("lives")
            lost |= lives is not None and before is not None and lives < before
            self._steps += 1
            episode_end = bool(terminated or truncated or self._steps >= self._max_steps)
            if episode_end:
                break
        if not abs(total) <= FLOAT32_MAX:
            raise ValueError(f"its reward must be finite, found {total}")
        lost &= self._settings.LifeLossTermination
        self._digest.update(repr(total).encode())
        return self._look(observation), total, bool(terminated or lost), episode_end

    def _look(self, observation: Any) -> np.ndarray | None:
        """The observation as the agent sees it, None if it has to be drawn for that."""
        self._latest = observation
        seen = None if self._draws else self._read(observation)
        self._digest.update(repr(observation).encode() if seen is None else seen.tobytes())
        return seen

    def _shown(self, seen: np.ndarray | None) -> np.ndarray:
        return self._read(self._draw()) if seen is None else seen

    def _draw(self) -> np.ndarray:
        try:
            picture = self._env.render()
            if picture is None:
                raise ValueError("render() returned None")
            return picture
        except Exception as error:
            own = isinstance(error, (ValueError, NotImplementedError))  # not for want of a display
            hint = f"; {control.DRAWING}" if "mujoco" in sys.modules and not own else ""
            raise UserError(f"it cannot draw itself ({type(error).__name__}: {error}){hint}") from error

    def render(self) -> np.ndarray:
        """Return the present picture, uint8 (height, width, 3), in the environment's own size.

        Raises:
            UserError: it offers none.
        """
        if self._env.render_mode == "rgb_array":
            return self._draw()
        if self.spaces.observation.kind == "vector":
            raise UserError("it offers no picture")
        return self._read.in_colour(self._latest)

    def action_meanings(self) -> list[str]:
        """Return the environment's own names of its actions, [] if it has none."""
        return [str(name) for name in getattr(self._env.unwrapped, "get_action_meanings", list)()]

    # Saving and restoring.

    def _chance(self) -> bytes:
        """The state of whatever draws its chance, b"" if it cannot be told."""
        if isinstance(self._env, AtariGame):
            return self._env.chance()
        with contextlib.suppress(AttributeError, TypeError):
            return json.dumps(self._env.unwrapped.np_random.bit_generator.state).encode()
        return b""

    def state_dict(self) -> dict[str, Any]:
        """Return how the present episode came to be, in plain values and arrays."""
        action = self.spaces.action
        return {
            "seed": self._seed,
            "start": np.frombuffer(self._start, np.uint8),
            "actions": np.frombuffer(bytes(self._history), action.dtype).reshape(-1, *action.shape),
            "digest": self._digest.hexdigest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Continue from `state_dict()`, but for the observation.

        Returns:
            None, or why the environment could not be restored (it must then be reset).
        """
        try:
            self._make_anew()  # MuJoCo's camera stands where the first picture ever was taken
            self.reset(int(state["seed"]))
            if start := state["start"].tobytes():
                self._restore_chance(start)
                self._begin_episode(None)
            ended = any(self._advance(action)[-1] for action in state["actions"])
            if not ended and self._digest.hexdigest() == state["digest"]:
                return None
        except BaseException as error:  # the environment is not what it was, or the state
            if is_interrupt(error):
                raise
            return f"{NOT_BACK} ({type(error).__name__}: {error})"
        return NOT_BACK

    def _restore_chance(self, start: bytes) -> None:
        if isinstance(self._env, AtariGame):
            self._env.restore_chance(start)
        else:
            self._env.unwrapped.np_random.bit_generator.state = json.loads(start)

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()
