"""One environment behind one small interface: an emulated game, or any Gymnasium environment.

When an episode ends, a single environment begins the next one at once, in the same step. This
module imports no PyTorch, so that worker processes start fast and stay small.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import ale_py
import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from configuration.schema import Environment as EnvironmentSettings
from configuration.spaces import ActionSpec, ObservationSpec
from environments import control, diagnostic  # registers its environments
from environments.atari import AtariGame
from environments.spaces import ImageReader, action_map, observation_reader
from environments.state_checks import expect, expect_array, is_plain
from utils import UserError, nearest

FLOAT32_MAX = float(np.finfo(np.float32).max)
ATARI_SETTINGS = ("FrameSkip", "StickyActions", "MaxEpisodeFrames", "FullActionSpace")
OTHERS_SETTINGS = ("ActionRepeat",)
gymnasium.register_envs(ale_py)
gymnasium.register_envs(diagnostic)


class SingleEnvironment(Protocol):
    """What workers and the vector environment expect."""

    observation_spec: ObservationSpec
    action_spec: ActionSpec

    def reset(self, seed: int) -> np.ndarray:
        """Seed the environment, begin its first episode and return the first observation."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Act; return observation (a new episode's first at an end), reward, termination, episode end."""

    def render(self) -> np.ndarray:
        """Return the present picture as the environment draws it, uint8 (height, width, 3)."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the future depends on, in plain values and arrays."""

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Continue from `state_dict()`; return why that was not possible (it must then be reset), or None."""

    def close(self) -> None:
        """Free what the environment holds."""


def environment_id(name: str) -> str:
    """Return the Gymnasium id of a game given by its bare name: ALE/Boxing-v5 of Boxing."""
    return name if re.search(r"[/:]|-v\d", name) else f"ALE/{name}-v5"


def action_repeat(name: str, settings: EnvironmentSettings) -> int:
    """Return the environment's steps per agent step."""
    return settings.ActionRepeat or (control.ACTION_REPEAT if name.startswith(control.PREFIX) else 1)


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
    if registered.startswith(control.PREFIX):
        control.register(registered)
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
    """Whether that id is of an Atari game: `ALE/Breakout-v5`, an old one or one of the user's own."""
    return spec.entry_point in ("ale_py.env:AtariEnv", "ale_py:AtariEnv", ale_py.AtariEnv)


def ignored_settings(name: str, settings: EnvironmentSettings) -> list[str]:
    """A line on settings that were changed and do not apply to that environment; [] if there are none."""
    defaults, atari = EnvironmentSettings(), is_atari(find_spec(name))
    keys = OTHERS_SETTINGS if atari else ATARI_SETTINGS
    changed = [f"Environment.{key}" for key in keys if getattr(settings, key) != getattr(defaults, key)]
    place = "means nothing to an Atari game" if atari else f"applies to Atari games only, not to {name}"
    return [f"warning: {', '.join(changed)}: {place}"] if changed else []


class GymnasiumEnvironment:
    """Any Gymnasium environment whose spaces `environments.spaces` supports.

    A key `lives` in its info counts as an emulator's lives. It is resumed exactly by playing the
    present episode again: from the state of its `np_random` when the episode began, with the same
    actions; a digest of all that it returned tells whether it came back to the same state. One
    whose `unwrapped` defines `state_dict` and `load_state_dict` (plain values and NumPy arrays) is
    restored by these instead.

    Args:
        spec: found by `find_spec`. settings: of the environment; those of Atari games do not apply.
        image_size: side S of pictures.
        release_quirks: re-seed with the same seed at every episode.

    Raises:
        UserError: it cannot be made, or has other spaces.
    """

    def __init__(
        self, spec: EnvSpec, settings: EnvironmentSettings, image_size: int, release_quirks: bool
    ) -> None:
        self._spec, self._settings, self._release_quirks = spec, settings, release_quirks
        self._repeat = action_repeat(spec.id, settings)
        self._arguments = settings.Arguments
        if spec.namespace in ("Diagnostic", "dm_control"):
            self._arguments = {"image_size": image_size} | self._arguments
        if "mujoco" in str(spec.entry_point):
            control.choose_renderer()
        self._env = self._make()
        self._read = observation_reader(self._env.observation_space, settings.Observation, image_size)
        self._draws = self._read is None
        self._read = self._read or ImageReader(None, image_size)
        can_draw = "rgb_array" in self._env.metadata.get("render_modes", ())
        if self._draws or (can_draw and self._read.spec.kind == "vector"):
            self._arguments = self._arguments | {"render_mode": "rgb_array"}
            self._make_anew()
        self._act = action_map(self._env.action_space)
        self.observation_spec, self.action_spec = self._read.spec, self._act.spec
        limit = settings.Arguments.get("max_episode_steps", spec.max_episode_steps)
        if limit is not None and (type(limit) is not int or limit < 1):
            raise UserError(f"Environment.Arguments: 'max_episode_steps' must be 1 or more, found {limit!r}")
        self._max_steps = limit or float("inf")
        self._seed = self._steps = 0
        self._lives: int | None = None

    def _make(self) -> gymnasium.Env:
        try:  # the time limit is kept here, where its count can be saved
            fixed = {"max_episode_steps": -1, "disable_env_checker": True}
            return gymnasium.make(self._spec, **self._arguments | fixed)
        except Exception as error:
            raise UserError(f"{type(error).__name__}: {error}") from error

    def _make_anew(self) -> None:
        self._env.close()
        self._env = self._make()

    def reset(self, seed: int) -> np.ndarray:
        """Seed the environment, begin its first episode and return the first observation."""
        self._seed = seed
        return self._observe(self._begin_episode(seed))

    def _begin_episode(self, seed: int | None) -> Any:
        self._random = "" if seed is not None else self._random_state()
        self._history, self._digest = bytearray(), hashlib.sha256()
        observation, info = self._env.reset(seed=seed)
        self._lives, self._steps = info.get("lives"), 0
        _add(self._digest, observation)
        return observation

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Act ActionRepeat times, fewer if the episode ends; then begin the next one.

        Returns:
            The observation, the summed reward, whether the environment ended or a life was lost,
            and whether the episode ended (truncation included).

        Raises:
            ValueError: the environment returned a wrong reward or observation.
        """
        observation, reward, termination, episode_end = self._advance(action)
        if episode_end:
            observation = self._begin_episode(self._seed if self._release_quirks else None)
        return self._observe(observation), reward, termination, episode_end

    def _advance(self, action: Any) -> tuple[Any, float, bool, bool]:
        self._history += np.asarray(action, self.action_spec.dtype).tobytes()
        total, lost, own_action = 0.0, False, self._act(action)
        for _ in range(self._repeat):
            observation, reward, terminated, truncated, info = self._env.step(own_action)
            _add(self._digest, (observation, reward))
            total += _number(reward)
            lives, before, self._lives = info.get("lives"), self._lives, info.get("lives")
            lost |= lives is not None and before is not None and lives < before
            self._steps += 1
            episode_end = bool(terminated or truncated or self._steps >= self._max_steps)
            if episode_end:
                break
        if not abs(total) <= FLOAT32_MAX:
            raise ValueError(f"its reward must be finite, found {total}")
        lost &= self._settings.LifeLossTermination
        return observation, total, bool(terminated or lost), episode_end

    def _observe(self, observation: Any) -> np.ndarray:
        self._latest = self._draw() if self._draws else observation
        return self._read(self._latest)

    def _draw(self) -> Any:
        try:
            return self._env.render()
        except Exception as error:
            hint = f"; {control.DRAWING}" if "mujoco" in sys.modules else ""
            raise UserError(f"it cannot draw itself ({error}){hint}") from error

    def render(self) -> np.ndarray:
        """Return the present picture, uint8 (height, width, 3), in the environment's own size.

        Raises:
            UserError: it offers none.
        """
        if self.observation_spec.kind == "image":
            picture = self._latest if self._latest.dtype == np.uint8 else self._read(self._latest)
        elif self._env.render_mode == "rgb_array":
            picture = self._draw()
        else:
            raise UserError("it offers no picture")
        picture = picture if picture.ndim == 3 else picture[:, :, None]
        return np.broadcast_to(picture, (*picture.shape[:2], 3))

    # Saving and restoring.

    def _random_state(self) -> str:
        """Its random generator's state as JSON, "" if it has none that is plain."""
        try:
            return json.dumps(self._env.unwrapped.np_random.bit_generator.state)
        except (AttributeError, TypeError):
            return ""

    def _hooks(self) -> Any | None:
        inner = self._env.unwrapped
        has_hooks = hasattr(inner, "state_dict") and hasattr(inner, "load_state_dict")
        return inner if has_hooks and not self._env.spec.additional_wrappers else None

    def state_dict(self) -> dict[str, Any]:
        """Return the environment's own state, if it offers one, else how its episode came to be."""
        hooks = self._hooks()
        if hooks is not None:
            lives = -1 if self._lives is None else int(self._lives)
            own = hooks.state_dict()
            if not is_plain(own):
                raise ValueError("its state_dict must return plain values and arrays of numbers")
            return {"seed": self._seed, "environment": own, "steps": self._steps, "lives": lives}
        actions = np.frombuffer(bytes(self._history), self.action_spec.dtype)
        return {
            "seed": self._seed,
            "random": self._random,
            "actions": actions.reshape(-1, *self.action_spec.shape),
            "digest": self._digest.hexdigest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Continue from `state_dict()`, but for the observation.

        Returns:
            None, or why the environment could not be restored (it must then be reset).

        Raises:
            UserError: the state is malformed.
        """
        self._make_anew()  # MuJoCo's camera stands where the first picture ever was taken
        self.reset(expect(state, "seed", int))
        hooks = self._hooks()
        if hooks is None:
            return self._replay(state)
        steps, lives = expect(state, "steps", int), expect(state, "lives", int)
        with _malformed("environment"):
            hooks.load_state_dict(expect(state, "environment", dict))
        self._steps, self._lives = steps, None if lives < 0 else lives
        return None

    def _replay(self, state: dict[str, Any]) -> str | None:
        random, digest = expect(state, "random", str), expect(state, "digest", str)
        spec = self.action_spec
        actions = expect_array(state, "actions", spec.dtype, (None, *spec.shape))
        if spec.kind == "discrete" and ((actions < 0) | (actions >= spec.size)).any():
            raise UserError(f"environment state: 'actions' must be below {spec.size}, found {actions.max()}")
        if random:
            with _malformed("random"):
                self._env.unwrapped.np_random.bit_generator.state = json.loads(random)
            self._begin_episode(None)
        try:
            ended = any(self._advance(action)[-1] for action in actions)
        except Exception:  # of the environment's, which is then not what it was
            ended = True
        return (
            "it did not come back to the saved state" if ended or self._digest.hexdigest() != digest else None
        )

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()


def _number(reward: Any) -> float:
    try:
        return float(reward)
    except (TypeError, ValueError):
        raise ValueError(f"its reward must be a number, found {reward!r}") from None


def _add(digest: Any, value: Any) -> None:
    """Let a digest depend on a value, whatever it is made of."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(value.tobytes())
    elif isinstance(value, (dict, tuple, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())


@contextlib.contextmanager
def _malformed(key: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"environment state: {key!r}: {type(error).__name__}: {error}") from error


def make_single(
    name: str, settings: EnvironmentSettings, image_size: int, release_quirks: bool
) -> SingleEnvironment:
    """The environment of that Gymnasium id, with pictures of side S = `image_size`.

    Raises:
        UserError: unknown id, an environment that cannot be made, or whose spaces are not supported.
    """
    spec = find_spec(name)
    kind = AtariGame if is_atari(spec) else GymnasiumEnvironment
    return kind(spec, settings, image_size, release_quirks)
