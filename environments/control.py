"""The DeepMind Control suite as Gymnasium environments `dm_control/<domain>-<task>-v0`, and MuJoCo's drawing.

The ids are Shimmy's. An episode is 1,000 steps of the task, whose end is a truncation. The two tasks of
`lqr` have actions without bounds, and are refused for it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from utils import UserError

PREFIX = "dm_control/"
ACTION_REPEAT = 2  # of the protocol that published results follow
INSTALL = "type: python -m pip install -r requirements-control.txt"
NEWEST_PYTHON = "3.12"  # that dm_control can be installed on
DRAWING = (
    "MuJoCo draws without a display through EGL or OSMesa: on Debian or Ubuntu, install libegl1 and "
    "libgl1-mesa-dri and set MUJOCO_GL=egl"
)
UNBOUNDED = 1e10  # MuJoCo's mjMAXVAL, which dm_control reports for actuators without limits
CAMERAS = {"quadruped": 2}  # what others' agents see; 0 elsewhere
LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}


def choose_renderer() -> bool:
    """Choose what MuJoCo draws with where there is no display, before it is loaded; return whether it was."""
    if sys.platform != "linux" or {"MUJOCO_GL", "DISPLAY"} & set(os.environ):
        return False
    os.environ["MUJOCO_GL"] = next(filter(_works, LIBRARIES), "off")
    return True


def _works(renderer: str) -> bool:
    """Whether its library can be loaded and, of EGL, finds a driver."""
    try:
        library = ctypes.CDLL(LIBRARIES[renderer])
        if renderer != "egl":
            return True
        library.eglGetProcAddress.restype = ctypes.c_void_p
        query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
            library.eglGetProcAddress(b"eglQueryDevicesEXT") or 0
        )
        count = ctypes.c_int(0)
        return bool(query and query(0, None, ctypes.byref(count)) and count.value)
    except (OSError, AttributeError):
        return False


def load_suite() -> Any:
    """Return the module `dm_control.suite`; ImportError if it is not installed, or does not work."""
    chosen_here = choose_renderer()
    try:
        from dm_control import suite
    except ImportError:
        if not chosen_here:
            raise
        os.environ["MUJOCO_GL"] = "off"  # a library that does not work; states need no drawing
        os.environ.pop("PYOPENGL_PLATFORM", None)
        from dm_control import suite
    return suite


def register_tasks() -> None:
    """Register the suite's tasks with Gymnasium.

    Raises:
        UserError: dm_control cannot be loaded.
    """
    try:
        suite = load_suite()
    except Exception as error:
        renderer = os.environ.get("MUJOCO_GL", "off")
        if isinstance(error, ModuleNotFoundError) or renderer == "off":
            cure = f"with Python {NEWEST_PYTHON} or older, {INSTALL}"
        else:
            cure = f"MUJOCO_GL is {renderer!r}: {DRAWING}, or MUJOCO_GL=off to learn from states"
        raise UserError(f"dm_control cannot be loaded ({error}); {cure}") from error
    for domain, task in suite.ALL_TASKS:
        name, arguments = f"{PREFIX}{domain}-{task}-v0", {"domain": domain, "task": task}
        gymnasium.registry[name] = EnvSpec(name, f"{__name__}:DeepMindControl", kwargs=arguments)


class DeepMindControl(gymnasium.Env):
    """One task: observations by name, actions between the actuators' bounds, chance from `np_random`.

    Args:
        domain, task: as the suite names them. image_size: side of pictures.
        render_mode: None or "rgb_array". time_limit: seconds of an episode, None: the task's own.
        environment_kwargs: of `dm_control.suite.load`.

    Raises:
        ValueError: a time limit that is no time.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's way)

    def __init__(
        self,
        domain: str,
        task: str,
        image_size: int = 64,
        render_mode: str | None = None,
        time_limit: float | None = None,
        environment_kwargs: dict[str, Any] | None = None,
    ) -> None:
        limit = {} if time_limit is None else {"time_limit": time_limit}
        if limit and not (isinstance(time_limit, (int, float)) and time_limit > 0):
            raise ValueError(f"time_limit must be a number above 0, found {time_limit!r}")
        self._env = load_suite().load(domain, task, {"random": 0} | limit, environment_kwargs)
        self._camera = CAMERAS.get(domain, 0)
        self.image_size, self.render_mode = image_size, render_mode
        actions, observations = self._env.action_spec(), self._env.observation_spec()
        bounds = [np.broadcast_to(bound, actions.shape) for bound in (actions.minimum, actions.maximum)]
        bounds = [np.where(abs(bound) < UNBOUNDED, bound, np.copysign(np.inf, bound)) for bound in bounds]
        self.action_space = spaces.Box(*bounds, dtype=np.float64)
        shapes = {key: spec.shape for key, spec in observations.items()}
        boxes = {key: spaces.Box(-np.inf, np.inf, shape, np.float64) for key, shape in shapes.items()}
        self.observation_space = spaces.Dict(boxes)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, on a seed of the task that follows from `np_random`."""
        super().reset(seed=seed)
        self._env.task.random.seed(int(self.np_random.integers(2**32)))
        return self._env.reset().observation, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Act for one control step; only an end with discount 0 is a termination."""
        after = self._env.step(action)
        terminated = after.last() and after.discount == 0
        return after.observation, float(after.reward), terminated, after.last() and not terminated, {}

    def render(self) -> np.ndarray:
        """The present picture, uint8 (S, S, 3)."""
        return self._env.physics.render(self.image_size, self.image_size, self._camera)

    def close(self) -> None:
        """Free the physics and what it draws with."""
        self._env.close()
