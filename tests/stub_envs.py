"""Environments that misbehave on purpose, for workers to import; no PyTorch here."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import gymnasium
import numpy as np

TROUBLE_AT = 4  # step of the first episode
FRESH_SEED = 1_000  # seeds from here on are those of a restart, and behave


class Stub(gymnasium.Env):
    """Frames count the steps; what goes wrong, and only on an odd low seed, is `trouble`."""

    def __init__(self, trouble: str = "", shape: tuple[int, ...] = (16, 16, 3), lives: int = 0) -> None:
        self.trouble, self.shape, self.start_lives = trouble, shape, lives
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3, start=5)
        self.seed, self.steps = FRESH_SEED, 0
        if trouble == "torch" and "torch" in sys.modules:
            raise RuntimeError("PyTorch is loaded")
        if trouble.startswith("start "):
            self._misbehave(trouble.removeprefix("start "))

    def _misbehave(self, trouble: str) -> None:
        if trouble == "dies":
            os._exit(3)
        if trouble == "exits":
            sys.exit(0)
        if trouble == "interrupts":
            raise KeyboardInterrupt
        if trouble == "leaves":
            raise GeneratorExit
        if trouble == "hangs":
            time.sleep(1_000)
        if trouble == "raises":
            raise RuntimeError("the stub raises")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Remember the seed."""
        super().reset(seed=seed)
        self.seed = self.seed if seed is None else seed
        self.steps = 0
        return self._picture(), self._info()

    def _picture(self) -> np.ndarray:
        return np.full(self.shape, self.steps, np.uint8)

    def _info(self) -> dict[str, Any]:
        return {"lives": self.start_lives - self.steps // 3} if self.start_lives else {}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The action is the reward; trouble at its time."""
        if not self.action_space.contains(action):
            raise ValueError(f"stub got action {action}")
        self.steps += 1
        observation, reward = self._picture(), float(action)
        if self.seed < FRESH_SEED and self.seed % 2 and self.steps == TROUBLE_AT:
            self._misbehave(self.trouble)
            reward = {"NaN": float("nan"), "huge": 1e200, "text": "much"}.get(self.trouble, reward)
            if self.trouble == "shape":
                observation = observation[1:]
            if self.trouble == "dtype":
                observation = observation.astype(np.float32)
        return observation, reward, self.steps == 10, False, self._info()


class OtherSpaces(Stub):
    """The stub with one of its spaces exchanged."""

    def __init__(self, **exchanged: gymnasium.Space) -> None:
        super().__init__()
        vars(self).update(exchanged)


class Vector(Stub):
    """Observes two numbers, wrong ones at their time."""

    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Box(-9, 9, (2,))
        self.wrong = trouble

    def _picture(self) -> Any:
        vector = np.full(2, self.steps, np.float64)
        wrong = {"NaN": vector * np.nan, "huge": vector * 1e200, "short": vector[1:], "dict": {"a": 1}}
        return wrong[self.wrong] if self.steps == TROUBLE_AT else vector


class Chance(Stub):
    """Draws from a generator that no seed reaches."""

    def _picture(self) -> np.ndarray:
        return np.random.default_rng().integers(256, size=self.shape, dtype=np.uint8)


class Steady(Stub):
    """Pays 2, 0 and -3 in turn whatever is done, with four lives of three steps each."""

    def __init__(self, pay: float = 2.0) -> None:
        super().__init__(lives=4)
        self.pay = pay

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Go on."""
        observation, _, *rest = super().step(action)
        return observation, (self.pay, 0.0, -3.0)[self.steps % 3], *rest


class Stumbling(Steady):
    """Fails on some of the steps that are taken in this process, two of them in a row."""

    taken = 0
    FAILS = (5, 6, 10, 15)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Go on, or fail."""
        Stumbling.taken += 1
        if Stumbling.taken in self.FAILS:
            raise RuntimeError("the stub stumbles")
        return super().step(action)


class Slow(Steady):
    """Takes its time for one step of the first episode."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Go on, late."""
        if self.seed < FRESH_SEED and self.steps == TROUBLE_AT:
            time.sleep(2)
        return super().step(action)


gymnasium.register("StubSteady-v0", entry_point=Steady)
gymnasium.register("StubStumbling-v0", entry_point=Stumbling)
gymnasium.register("StubSlow-v0", entry_point=Slow)

TROUBLES = (
    "dies",
    "exits",
    "interrupts",
    "leaves",
    "hangs",
    "raises",
    "NaN",
    "huge",
    "text",
    "shape",
    "dtype",
    "torch",
)
for _trouble in ("", *TROUBLES, "start dies", "start hangs", "start raises"):
    _id = f"Stub{_trouble.title().replace(' ', '')}-v0"
    gymnasium.register(_id, entry_point=Stub, kwargs={"trouble": _trouble})
gymnasium.register("StubGrey-v0", entry_point=Stub, kwargs={"shape": (20, 30)}, max_episode_steps=7)
gymnasium.register("StubGreyChannel-v0", entry_point=Stub, kwargs={"shape": (20, 30, 1)})
gymnasium.register("StubLives-v0", entry_point=Stub, kwargs={"lives": 4})


class ExtraLife(Stub):
    """Wins a life and loses it again: 3, 4, 3 lives."""

    def _info(self) -> dict[str, int]:
        return {"lives": 4 if self.steps == 1 else 3}


gymnasium.register("StubExtraLife-v0", entry_point=ExtraLife)
gymnasium.register("StubChannelsFirst-v0", entry_point=Stub, kwargs={"shape": (3, 20, 30)})
gymnasium.register("StubFourFrames-v0", entry_point=Stub, kwargs={"shape": (20, 30, 4)})
for _trouble in ("NaN", "huge", "short"):
    _arguments = {"trouble": _trouble}
    gymnasium.register(f"Stub{_trouble.title()}Vector-v0", entry_point=Vector, kwargs=_arguments)
gymnasium.register("StubDict-v0", entry_point=Vector, kwargs={"trouble": "dict"})
gymnasium.register("StubChance-v0", entry_point=Chance)


class Drawn(OtherSpaces):
    """Claims that it can be drawn, and returns no picture."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's way)

    def __init__(self, trouble: str = "", render_mode: str | None = None) -> None:
        super().__init__(observation_space=_box)
        self.render_mode, self.drawing = render_mode, trouble

    def _picture(self) -> np.ndarray:
        return np.zeros(2, np.float32)

    def render(self) -> None:
        """Return nothing, or raise what a picture too large or a missing display would."""
        if self.drawing:
            raise {"large": ValueError, "display": RuntimeError}[self.drawing](self.drawing)


_box = gymnasium.spaces.Box(-1, 1, (2,))
for _trouble in ("", "large", "display"):
    _arguments = {"trouble": _trouble}
    gymnasium.register(f"StubDrawn{_trouble.title()}-v0", entry_point=Drawn, kwargs=_arguments)
for _name, _actions in {
    "Unbounded": gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
    "MultiDiscrete": gymnasium.spaces.MultiDiscrete([2, 3]),
    "MultiBinary": gymnasium.spaces.MultiBinary(3),
    "DictActions": gymnasium.spaces.Dict(a=_box),
}.items():
    gymnasium.register(f"Stub{_name}-v0", entry_point=OtherSpaces, kwargs={"action_space": _actions})
gymnasium.register(
    "StubImageAndVector-v0",
    entry_point=OtherSpaces,
    kwargs={
        "observation_space": gymnasium.spaces.Dict(
            image=gymnasium.spaces.Box(0, 255, (20, 30, 3), np.uint8), vector=_box
        )
    },
)
