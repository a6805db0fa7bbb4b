"""What Gymnasium and the DeepMind Control suite offer is played and resumed as promised, or refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from packaging.requirements import Requirement

from configuration.schema import EnvironmentConfig
from env_wrapper import EnvironmentFault, StepResult, VectorEnvironment
from environments import control
from environments.single import find_spec, ignored_settings
from environments.spaces import ImageReader, action_map, observation_reader
from utils import REPOSITORY, UserError

REQUIREMENTS = REPOSITORY / "requirements-control.txt"
Make = Callable[..., VectorEnvironment]
CARTPOLE = "dm_control/cartpole-balance-v0"


@pytest.fixture
def make() -> Iterable[Make]:
    """An environment by its id and settings; closed afterwards."""
    made: list[VectorEnvironment] = []

    def build(name: str, num_envs: int = 1, seed: int = 3, **settings: Any) -> VectorEnvironment:
        made.append(VectorEnvironment(name, EnvironmentConfig(**settings), 64, num_envs, seed))
        return made[-1]

    yield build
    for environment in made:
        environment.close()


def need(package: str) -> None:
    """Skip the test where a package is missing."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def need_renderer() -> None:
    """Skip the test where MuJoCo cannot draw without a display."""
    if sys.platform == "linux" and not any(map(control._works, control.LIBRARIES)):
        pytest.skip("neither EGL nor OSMesa is here")


def random_actions(environment: VectorEnvironment, count: int, seed: int = 0) -> np.ndarray:
    """Actions (count, N, ...) that the environment takes."""
    spec, rng = environment.spaces.action, np.random.default_rng(seed)
    if spec.kind == "discrete":
        return rng.integers(spec.size, size=(count, environment.num_envs))
    return rng.uniform(-1, 1, (count, environment.num_envs, spec.size)).astype(np.float32)


def play(environment: VectorEnvironment, actions: np.ndarray) -> list[StepResult]:
    results = []
    for action in actions:
        environment.start_step(action)
        results.append(environment.finish_step())
    return results


def assert_same(ours: list[StepResult], theirs: list[StepResult]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for name, value in vars(a).items():
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


# id, package that it needs, observation (vector size, or None for an image), action (kind, size), settings
SPACES = [
    ("CartPole-v1", "gymnasium", 4, ("discrete", 2), {}),
    ("Pendulum-v1", "gymnasium", 3, ("continuous", 1), {}),
    ("MountainCarContinuous-v0", "gymnasium", 2, ("continuous", 1), {"ActionRepeat": 3}),
    ("Blackjack-v1", "gymnasium", 45, ("discrete", 2), {}),
    ("CartPole-v1", "pygame", None, ("discrete", 2), {"Observation": "image"}),
    ("Diagnostic/Reach-v0", "gymnasium", 4, ("continuous", 2), {}),
    ("Diagnostic/Reach-v0", "gymnasium", None, ("continuous", 2), {"Observation": "image"}),
    ("LunarLander-v3", "Box2D", 8, ("discrete", 4), {}),
    ("LunarLanderContinuous-v3", "Box2D", 8, ("continuous", 2), {"ActionRepeat": 2}),
    ("CarRacing-v3", "Box2D", None, ("continuous", 3), {"Arguments": {"max_episode_steps": 20}}),
    ("minigrid:MiniGrid-Empty-5x5-v0", "minigrid", None, ("discrete", 7), {"Observation": "image"}),
    ("HalfCheetah-v5", "mujoco", 17, ("continuous", 6), {"Arguments": {"max_episode_steps": 40}}),
    ("Ant-v5", "mujoco", 105, ("continuous", 8), {"Arguments": {"max_episode_steps": 40}}),
    (CARTPOLE, "dm_control", 5, ("continuous", 1), {"Arguments": {"time_limit": 0.4}}),
    ("dm_control/reacher-easy-v0", "dm_control", 6, ("continuous", 2), {"Arguments": {"time_limit": 0.8}}),
    ("dm_control/walker-run-v0", "dm_control", 24, ("continuous", 6), {"ActionRepeat": 2}),
]


@pytest.mark.parametrize(("name", "package", "size", "action", "settings"), SPACES)
def test_it_is_played_and_resumed_bit_for_bit(
    name: str, package: str, size: int | None, action: tuple[str, int], settings: dict[str, Any], make: Make
) -> None:
    need(package)
    environment, resumed = (make(name, seed=seed, **settings) for seed in (3, 8))
    shape, dtype = ((64, 64, 3), np.uint8) if size is None else ((size,), np.float32)
    assert environment.spaces.observation.shape == shape
    assert (environment.spaces.action.kind, environment.spaces.action.size) == action
    first = environment.reset()
    assert first.shape == (1, *shape) and first.dtype == dtype
    played = play(environment, random_actions(environment, 25))
    assert all(result.observation.dtype == dtype for result in played)
    assert len({result.observation.tobytes() for result in played}) > 1
    assert resumed.load_state_dict(environment.state_dict()) == []
    np.testing.assert_array_equal(resumed.observation, environment.observation)
    ahead = random_actions(environment, 40, seed=1)
    assert_same(play(environment, ahead), play(resumed, ahead))


def test_a_dm_control_task_is_resumed_across_its_end_and_truncated_there(make: Make) -> None:
    need("dm_control")
    environment, resumed = make(CARTPOLE, ActionRepeat=2), make(CARTPOLE, seed=9, ActionRepeat=2)
    environment.reset()
    play(environment, random_actions(environment, 620))
    assert resumed.load_state_dict(environment.state_dict()) == []
    ahead = random_actions(environment, 520, seed=1)
    results = play(environment, ahead)
    assert_same(results, play(resumed, ahead))
    ends = [result for result in results if result.episode_end.any()]
    assert len(ends) == 1 and (ends[0].episode_length == 500).all() and not ends[0].termination.any()


def test_a_saved_drawn_episode_looks_the_same_when_resumed(make: Make) -> None:
    need("mujoco")
    need_renderer()
    environment, resumed = (make("Reacher-v5", seed=seed, Observation="image") for seed in (3, 8))
    environment.reset(), resumed.reset()
    play(environment, random_actions(environment, 3))
    assert resumed.load_state_dict(environment.state_dict()) == []
    ahead = random_actions(environment, 2, seed=1)
    assert_same(play(environment, ahead), play(resumed, ahead))


def test_time_limits_are_no_terminations_and_falls_are(make: Make) -> None:
    pendulum, cartpole = make("Pendulum-v1"), make("CartPole-v1")
    pendulum.reset(), cartpole.reset()
    ends = [result for result in play(pendulum, np.zeros((400, 1, 1))) if result.episode_end[0]]
    assert [(end.episode_length[0], end.termination[0]) for end in ends] == [(200, 0), (200, 0)]
    ends = [result for result in play(cartpole, np.ones((40, 1), np.int64)) if result.episode_end[0]]
    assert len(ends) >= 2 and all(end.termination[0] == 1 for end in ends)


def test_repeated_actions_sum_their_rewards_until_the_end(make: Make) -> None:
    stub = make("stub_envs:Stub-v0", ActionRepeat=4)
    stub.reset()
    results = play(stub, np.array([[0], [1], [2], [0]]))
    assert [result.reward[0] for result in results] == [4 * 5, 4 * 6, 2 * 7, 4 * 5]  # it ends after ten steps
    assert [bool(result.episode_end[0]) for result in results] == [False, False, True, False]
    assert results[2].episode_return[0] == 58 and results[2].episode_length[0] == 3


def test_actions_are_clipped_and_mapped_to_the_box() -> None:
    box = spaces.Box(np.array([[-2, 0, 1]]), np.array([[2, 1, 5]]), (1, 3), np.float64)
    spec, to_box = action_map(box)
    assert (spec.kind, spec.size) == ("continuous", 3)
    np.testing.assert_array_equal(to_box(np.array([-1, -1, -7])), box.low)
    np.testing.assert_array_equal(to_box(np.array([1, 1, 7])), box.high)
    np.testing.assert_array_equal(to_box(np.array([0, 0.5, -0.5])), [[0, 0.75, 2]])
    inside = np.random.default_rng(0).uniform(-1, 1, 3).astype(np.float32)
    mapped = to_box(inside)
    np.testing.assert_allclose(2 * (mapped - box.low) / (box.high - box.low) - 1, inside[None], atol=1e-12)
    assert mapped.dtype == np.float64 and box.contains(mapped)
    float32 = spaces.Box(np.float32(-0.1), np.float32(0.3), (4,))
    assert all(
        float32.contains(action_map(float32)[1](np.full(4, value))) for value in np.linspace(-1, 1, 99)
    )


def test_an_environment_gets_the_action_that_was_clipped(make: Make) -> None:
    far, bound = make("Pendulum-v1"), make("Pendulum-v1")
    far.reset(), bound.reset()
    assert_same(play(far, np.full((5, 1, 1), 9.0)), play(bound, np.full((5, 1, 1), 1.0)))
    for actions in ([[np.nan]], [1.0], [[0]], [[0.0, 0.0]]):
        with pytest.raises(ValueError, match="actions must be"):
            far.start_step(np.array(actions))


def test_vectors_are_flattened_in_gymnasiums_order() -> None:
    box = spaces.Box(-9, 9, (2,))
    pair = spaces.Tuple([box, spaces.Discrete(3)])
    space = spaces.Dict({"b": pair, "a": spaces.Box(-9, 9, (1, 2)), "c": spaces.Box(0, 9)})
    read = observation_reader(space, "auto", 64)
    seen = {"c": np.float32([7]), "b": (np.float32([3, 4]), 1), "a": np.float32([[1, 2]])}
    np.testing.assert_array_equal(read(seen), [1, 2, 3, 4, 0, 1, 0, 7])
    np.testing.assert_array_equal(read(seen), spaces.flatten(space, seen))
    assert read.spec.kind == "vector" and read.spec.shape == (8,) and read(seen).dtype == np.float32


def test_images_of_every_supported_kind_become_colour_pictures() -> None:
    grey, colour = np.full((8, 8), 51, np.uint8), np.full((4, 8, 3), 51, np.uint8)
    for image, space in [
        (grey, spaces.Box(0, 255, (8, 8), np.uint8)),
        (grey[..., None], spaces.Box(0, 255, (8, 8, 1), np.uint8)),
        (colour, spaces.Box(0, 255, (4, 8, 3), np.uint8)),
        (np.full((4, 8, 3), 0.2, np.float32), spaces.Box(0, 1, (4, 8, 3), np.float32)),
        (np.full((8, 8, 1), 0.2), spaces.Box(0, 1, (8, 8, 1), np.float64)),
    ]:
        read = observation_reader(space, "auto", 16)
        assert isinstance(read, ImageReader)
        np.testing.assert_array_equal(read(image), np.full((16, 16, 3), 51, np.uint8))
        assert observation_reader(space, "vector", 16).spec.shape == (image.size,)
        both = spaces.Dict(image=space, vector=spaces.Box(-1, 1, (2,)))
        for wanted in ("auto", "vector"):
            with pytest.raises(UserError, match=r"its observations are Dict\("):
                observation_reader(both, wanted, 16)


@pytest.mark.parametrize(
    ("trouble", "text"),
    [
        ("NaN vector", "must be finite, found nan"),
        ("huge vector", "must be finite, found inf"),
        ("short vector", "must have 2 numbers, found 1"),
        ("dict", "TypeError"),
    ],
)
def test_wrong_vectors_are_faults(trouble: str, text: str, make: Make) -> None:
    environment = make(f"stub_envs:Stub{trouble.title().replace(' ', '')}-v0", seed=1)
    environment.reset()
    with pytest.raises(EnvironmentFault, match=text):
        play(environment, np.ones((4, 1), np.int64))


# Arguments and ids.


def test_arguments_reach_the_environment_and_wrong_ones_are_named(make: Make) -> None:
    light, heavy = (make("Pendulum-v1", Arguments={"g": g, "max_episode_steps": 7}) for g in (1.0, 9.0))
    light.reset(), heavy.reset()
    ours, theirs = (play(each, np.zeros((7, 1, 1))) for each in (light, heavy))
    assert ours[0].reward[0] == theirs[0].reward[0] and ours[6].reward[0] != theirs[6].reward[0]
    assert ours[6].episode_end[0] and not ours[5].episode_end[0]
    for arguments, word in (({"gravity": 1}, "gravity"), ({"max_episode_steps": 0}, "max_episode_steps")):
        with pytest.raises(UserError, match=word) as caught:
            make("Pendulum-v1", Arguments=arguments)
        assert "\n" not in str(caught.value) and "Pendulum-v1" in str(caught.value)


@pytest.fixture
def own_game() -> Iterable[Callable[..., str]]:
    """Register a game whose entry point is ale-py's class itself."""
    import ale_py

    def register(**arguments: Any) -> str:
        gymnasium.registry.pop("OwnGame-v0", None)
        gymnasium.register("OwnGame-v0", entry_point=ale_py.AtariEnv, kwargs={"game": "breakout"} | arguments)
        return "OwnGame-v0"

    yield register
    gymnasium.registry.pop("OwnGame-v0", None)


def test_an_own_id_of_a_game_is_a_game(own_game: Callable[..., str], make: Make) -> None:
    games = [make(name) for name in (own_game(), "ALE/Breakout-v5", "ale_py:ALE/Breakout-v5")]
    first, *others = [[game.reset(), play(game, random_actions(game, 20))] for game in games]
    for other in others:
        np.testing.assert_array_equal(other[0], first[0])
        assert_same(other[1], first[1])


def test_an_own_id_keeps_its_limit_and_what_gives_way_is_said(
    own_game: Callable[..., str], make: Make
) -> None:
    name = own_game(frameskip=2, repeat_action_probability=0.25)
    gymnasium.registry[name].max_episode_steps = 10
    game = make(name)
    game.reset()
    ends = [result.episode_end[0] for result in play(game, random_actions(game, 20))]
    assert np.flatnonzero(ends).tolist() == [9, 19]
    (line,) = ignored_settings(name, EnvironmentConfig())
    assert line == "note: of OwnGame-v0, frameskip=2 by Environment.FrameSkip"
    assert ignored_settings("ALE/Breakout-v5", EnvironmentConfig()) == []


def test_modes_and_all_actions_of_a_game_can_be_chosen(own_game: Callable[..., str], make: Make) -> None:
    assert make(own_game(full_action_space=True)).spaces.action.size == 18
    assert make("ALE/Breakout-v5", FullActionSpace=True).spaces.action.size == 18
    assert make("ALE/Breakout-v5").spaces.action.size == 4
    usual, registered, given = (
        make(name, Arguments=arguments)
        for name, arguments in [
            ("ALE/Breakout-v5", {}),
            (own_game(mode=12), {}),
            ("ALE/Breakout-v5", {"mode": 12}),
        ]
    )
    assert (usual.reset() != registered.reset()).any() and (registered.observation == given.reset()).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"obs_type": "ram"}, "obs_type='ram': Atari games are played with obs_type='rgb' only"),
        ({"continuous": True}, "continuous=True"),
        ({"frameskip": 2}, "'frameskip' of an Atari game is set by Environment.FrameSkip"),
        ({"mode": 77}, "mode"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_arguments_of_a_game_that_cannot_be_are_refused(
    arguments: dict[str, Any], text: str, make: Make
) -> None:
    with pytest.raises(UserError) as caught:
        make("ALE/Breakout-v5", Arguments=arguments)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_registered_observation_type_is_refused_too(own_game: Callable[..., str], make: Make) -> None:
    with pytest.raises(UserError, match="obs_type='grayscale'"):
        make(own_game(obs_type="grayscale"))
    with pytest.raises(UserError, match="Atari games are played from pictures"):
        make("ALE/Breakout-v5", Observation="vector")


@pytest.mark.parametrize(
    "name", ["walker-walk", "ALE/walker-walk-v5", "dmc/walker-walk-v0", "dm_control/walkr-walk"]
)
def test_a_mistyped_task_is_named_with_the_nearest(name: str) -> None:
    need("dm_control")
    with pytest.raises(UserError, match=rf"'{name}' \(did you mean 'dm_control/walker-walk-v0'\?\)$"):
        find_spec(name)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("dm_control/lqr-lqr_2_1-v0", {}, "its actions are Box(-inf, inf, (1,), float64); supported"),
        (CARTPOLE, {"time_limit": -1}, "time_limit must be a number above 0, found -1"),
        (CARTPOLE, {"time_limit": 0}, "time_limit must be a number above 0, found 0"),
        (CARTPOLE, {"time_limit": "a"}, "time_limit must be a number above 0, found 'a'"),
        (CARTPOLE, {"image_size": "a"}, "'image_size' must be 1 or more, found 'a'"),
        (CARTPOLE, {"random": 3}, "unexpected keyword argument 'random'"),
    ],
)
def test_a_task_that_cannot_be_played_is_refused(
    name: str, arguments: dict[str, Any], text: str, make: Make
) -> None:
    need("dm_control")
    with pytest.raises(UserError) as caught:
        make(name, Arguments=arguments)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_drawn_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", sys)
    with pytest.raises(UserError, match=r"no render mode 'rgb_array'; use Environment\.Observation=vector$"):
        make("stub_envs:StubDict-v0", Observation="image")
    for trouble, end in [
        ("", r"\(ValueError: render\(\) returned None\)$"),
        ("Large", r"\(ValueError: large\)$"),
        ("Display", r"\(RuntimeError: display\); MuJoCo draws without a display .* set MUJOCO_GL=egl$"),
    ]:
        with pytest.raises(UserError, match=rf"it cannot draw itself {end}"):
            make(f"stub_envs:StubDrawn{trouble}-v0", Observation="image").reset()


FIND = """
from environments import control
from environments.single import find_spec
from utils import UserError
try:
    find_spec("dm_control/cartpole-balance-v0")
except UserError as error:
    print(error)
"""
WITHOUT = f"import sys; sys.modules['dm_control'] = None\n{FIND}"
NO_DRAWING = """
from configuration.schema import EnvironmentConfig
from env_wrapper import VectorEnvironment
from utils import UserError
name = "dm_control/cartpole-balance-v0"
print(VectorEnvironment(name, EnvironmentConfig(), 64, 1, 0).reset().shape)
try:
    VectorEnvironment(name, EnvironmentConfig(Observation="image"), 64, 1, 0).reset()
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("code", "package", "renderer", "words"),
    [
        (
            WITHOUT,
            "gymnasium",
            "off",
            "with Python 3.12 or older, type: python -m pip install -r requirements-control.txt",
        ),
        (FIND, "dm_control", "bogus", "MUJOCO_GL is 'bogus': MuJoCo draws without a display through EGL"),
        (FIND, "dm_control", "egl", "MUJOCO_GL is 'egl': MuJoCo draws without a display through EGL"),
        (
            NO_DRAWING,
            "dm_control",
            "off",
            "(1, 5)\nenvironment 'dm_control/cartpole-balance-v0': it cannot draw itself",
        ),
    ],
)
def test_what_is_missing_for_dm_control_is_said(code: str, package: str, renderer: str, words: str) -> None:
    need(package)
    variables = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY")}
    variables |= {"PYTHONPATH": os.pathsep.join(sys.path), "MUJOCO_GL": renderer}
    variables["__EGL_VENDOR_LIBRARY_DIRS"] = "/nowhere"  # no driver
    said = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True).stdout
    assert words in said and ("pip" in said) == (code is WITHOUT)


def test_the_newest_python_of_dm_control_is_that_of_its_requirement() -> None:
    (line,) = (line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("dm_control"))
    major, minor = control.NEWEST_PYTHON.split(".")
    marker = Requirement(line).marker
    assert [marker.evaluate({"python_version": f"{major}.{int(minor) + more}"}) for more in (0, 1)] == [
        True,
        False,
    ]


def test_drawing_falls_back_where_egl_has_no_driver() -> None:
    code = "import os; from environments.control import *; choose_renderer(); print(os.environ['MUJOCO_GL'])"
    variables = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY")}
    variables |= {"PYTHONPATH": os.pathsep.join(sys.path), "__EGL_VENDOR_LIBRARY_DIRS": "/nowhere"}
    said = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True).stdout
    assert said.strip() in ("osmesa", "off")


def test_a_missing_package_of_a_task_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    monkeypatch.setattr(gymnasium, "make", missing)
    with pytest.raises(UserError, match=r"Box2D is not installed; .* -r requirements-control\.txt"):
        make("CartPole-v1")
