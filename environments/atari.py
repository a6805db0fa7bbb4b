"""An Atari game on ale-py's plain emulator, resumable bit for bit.

Preprocessing: sticky actions on each emulator frame, the maximum of the last two frames of a
step in RGB, resized by area; no grey-scale, no no-op start, no clipped rewards (Machado et al.
2018, arXiv 1709.06009; equal to gymnasium.wrappers.AtariPreprocessing with these options).
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from configuration.schema import Environment as EnvironmentSettings
from configuration.spaces import ActionSpec, ObservationSpec
from environments.state_checks import expect, expect_array
from utils import UserError

CERTAIN = 1e-12  # a probability as good as none
SNAPSHOT_STEPS = 16  # agent steps between snapshots of the emulator
KEPT_SNAPSHOTS = 3
HELD_TRIES = 3  # actions tried as the one that the emulator was holding
SETTING_OF = {
    "frameskip": "FrameSkip",
    "repeat_action_probability": "StickyActions",
    "max_num_frames_per_episode": "MaxEpisodeFrames",
    "full_action_space": "FullActionSpace",
}
PLAYED = {"obs_type": "rgb", "continuous": False, "sound_obs": False, "render_mode": None}


def emulator_arguments(registered: dict[str, Any], settings: EnvironmentSettings) -> dict[str, Any]:
    """What a game is made with: the settings and, of its registered id, everything else.

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
    return arguments | {
        "frameskip": 1,
        "repeat_action_probability": settings.StickyActions,
        "max_num_frames_per_episode": settings.MaxEpisodeFrames,
        "full_action_space": settings.FullActionSpace or arguments.get("full_action_space", False),
    }


class AtariGame:
    """One game in colour pictures; under whatever id, it is played by the run's settings.

    ale-py's own state lacks the action that a sticky frame repeats, and a few things of the
    video chip. So the state saved here is a past snapshot of the emulator and the actions since
    then: restoring replays them, which takes milliseconds, and compares the outcome with a
    digest of what was saved. Should no snapshot lead there (Miniature Golf, at times Pitfall II),
    the whole stream is replayed from its seed.

    Args:
        spec: of a registered game. settings: of the environment. image_size: S.
        release_quirks: re-seed with the same seed at every episode.
    """

    def __init__(
        self, spec: EnvSpec, settings: EnvironmentSettings, image_size: int, release_quirks: bool
    ) -> None:
        self._spec, self._settings, self._release_quirks = spec, settings, release_quirks
        self._frame = np.empty((image_size, image_size, 3), np.uint8)
        sticky = settings.StickyActions
        frames = math.ceil(math.log(CERTAIN) / math.log(sticky)) if 0 < sticky < 1 else 1
        self._forgetting_frames = frames  # after so many, what was held before no longer matters
        self._forgetting_steps = math.ceil(frames / settings.FrameSkip)
        self._snapshot_steps = max(SNAPSHOT_STEPS, self._forgetting_steps)
        self._arguments = emulator_arguments(spec.kwargs, settings)
        self._open()
        self.observation_spec = ObservationSpec("image", self._frame.shape)
        self.action_spec = ActionSpec("discrete", len(self._actions))
        self._start_stream(0)

    def _open(self) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
        try:
            self._env = gymnasium.make(self._spec, disable_env_checker=True, **self._arguments)
        except Exception as error:
            raise UserError(f"{type(error).__name__}: {error}") from error
        self._ale = self._env.unwrapped.ale
        full = self._arguments["full_action_space"]
        self._actions = self._ale.getLegalActionSet() if full else self._ale.getMinimalActionSet()
        self._screen = np.empty((*self._ale.getScreenDims(), 3), np.uint8)
        self._screen_before = np.empty_like(self._screen)
        self._lives = 0

    def _start_stream(self, seed: int) -> None:
        self._seed = seed
        self._history = bytearray()  # all actions since the emulator was seeded
        self._snapshots: deque[dict[str, Any]] = deque(maxlen=KEPT_SNAPSHOTS)

    def reset(self, seed: int) -> np.ndarray:
        """Seed the emulator, begin its first episode and return the first picture, uint8 (S, S, 3)."""
        self._start_stream(seed)
        self._env.reset(seed=seed)
        self._show_first()
        return self._frame

    def _show_first(self) -> None:
        self._lives = self._ale.lives()
        self._ale.getScreenRGB(self._screen)
        self._resize()

    def _resize(self) -> None:
        cv2.resize(self._screen, self._frame.shape[:2], dst=self._frame, interpolation=cv2.INTER_AREA)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        """Act for FrameSkip frames, fewer if the episode ends; then begin the next one.

        Returns:
            The picture (valid until the next step), the summed raw reward, whether the game ended or
            a life was lost, and whether the episode ended (truncation included).
        """
        self._history.append(int(action))
        reward = self._act(self._actions[action])
        ale, lives = self._ale, self._ale.lives()
        terminated = ale.game_over(with_truncation=False)
        lost = self._settings.LifeLossTermination and lives < self._lives
        self._lives = lives
        episode_end = terminated or ale.game_truncated()
        if not episode_end:
            self._show()
        elif self._release_quirks:
            self.reset(self._seed)
        else:
            ale.reset_game()
            self._show_first()
        if len(self._history) % self._snapshot_steps == 0:
            self._snapshots.append(self._snapshot())
        return self._frame, float(reward), terminated or lost, episode_end

    def _act(self, action: ale_py.Action) -> int:
        ale, reward, last = self._ale, 0, self._settings.FrameSkip - 1
        for frame in range(last + 1):
            reward += ale.act(action)
            if ale.game_over():
                break
            if frame == last - 1:
                ale.getScreenRGB(self._screen_before)
        return reward

    def _show(self) -> None:
        self._ale.getScreenRGB(self._screen)
        if self._settings.FrameSkip > 1:
            np.maximum(self._screen, self._screen_before, out=self._screen)
        self._resize()

    def render(self) -> np.ndarray:
        """Return the present picture as the emulator draws it, uint8 (210, 160, 3) for most games."""
        return self._screen

    # Saving and restoring.

    def _snapshot(self) -> dict[str, Any]:
        emulator = np.frombuffer(self._ale.cloneSystemState().serialize(), np.uint8)
        return {"index": len(self._history), "lives": self._lives, "emulator": emulator}

    def _digest(self) -> str:
        state = self._ale.cloneSystemState().serialize()
        return hashlib.sha256(state + self._frame.tobytes() + bytes([self._lives & 255])).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """The actions since the seed, snapshots of the emulator, and a digest of the present."""
        return {
            "ale_py": ale_py.__version__,
            "seed": self._seed,
            "actions": np.frombuffer(bytes(self._history), np.uint8),
            "snapshots": list(self._snapshots),
            "digest": self._digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Continue from `state_dict()`, picture included.

        Returns:
            None, or why the game could not be restored (it must then be reset).

        Raises:
            UserError: the state is malformed.
        """
        version, digest = expect(state, "ale_py", str), expect(state, "digest", str)
        seed = expect(state, "seed", int)
        actions = expect_array(state, "actions", np.uint8, (None,))
        if version != ale_py.__version__:
            return f"it was saved with ale-py {version}, and this is {ale_py.__version__}"
        if seed < 0 or (actions >= self.action_spec.size).any():
            raise UserError(
                f"environment state: 'actions' must be below {self.action_spec.size} and 'seed' 0 or more, "
                f"found {actions.max(initial=0)} and {seed}"
            )
        snapshots = [self._check_snapshot(item) for item in expect(state, "snapshots", list)]
        if self._replay_snapshots(seed, actions.tobytes(), snapshots, digest):
            return None
        self.reset(seed)
        self._replay(actions.tobytes())
        return None if self._digest() == digest else "its emulator did not come back to the saved state"

    def _check_snapshot(self, item: Any) -> dict[str, Any]:
        expect(item, "index", int)
        expect(item, "lives", int)
        expect_array(item, "emulator", np.uint8, (None,))
        return item

    def _replay_snapshots(
        self, seed: int, actions: bytes, snapshots: list[dict[str, Any]], digest: str
    ) -> bool:
        """Whether one of the snapshots, the newest first, led to the saved state."""
        for count in range(len(snapshots), 0, -1):
            index = snapshots[count - 1]["index"]
            if not 0 < index <= len(actions) - self._forgetting_steps:
                continue
            before = reversed(actions[max(0, index - self._forgetting_steps) : index])
            held = dict.fromkeys([self._actions[actions[index - 1]], ale_py.Action.NOOP])
            held |= dict.fromkeys(self._actions[action] for action in before)
            for action in list(held)[:HELD_TRIES]:
                self._start_stream(seed)
                self._history.extend(actions[:index])
                self._snapshots.extend(snapshots[:count])
                if not self._restore(snapshots[count - 1], action):
                    break
                self._replay(actions[index:])
                if self._digest() == digest:
                    return True
        return False

    def _restore(self, snapshot: dict[str, Any], held: ale_py.Action) -> bool:
        """Put a new emulator into a snapshot's state, holding that action; False for bytes it cannot read."""
        self.close()
        self._open()
        for _ in range(self._forgetting_frames):
            self._ale.act(held)
        try:
            self._ale.restoreSystemState(ale_py.ALEState(snapshot["emulator"].tobytes()))
        except Exception:  # the binding turns its C++ exceptions into several kinds
            return False
        self._lives = snapshot["lives"]
        return True

    def _replay(self, actions: bytes) -> None:
        for action in actions:
            self.step(action)

    def close(self) -> None:
        """Free the emulator."""
        self._env.close()
