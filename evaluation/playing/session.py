"""What play.py shows: a game, the model that watches it, and the dream that splits off."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compute.random_streams import RandomStreams, derive_seed
from env_wrapper import EnvironmentFault, raw_reward_of
from evaluation.playing.dreaming import Dream, choose
from evaluation.playing.frames import Frame, encode
from evaluation.playing.recording import Recording
from evaluation.policies import EvaluationPolicy
from sub_models.functions_losses import entropy, unimix_log_probs
from sub_models.torch_maskgit.sampling import DraftAndRevise
from utils import UserError

log = logging.getLogger(__name__)

MODES = ("game", "dream", "branch")
PLAYERS = ("agent", "you")
PLANS = ("1/1/1", "4/4/1", "8/8/1")  # T_draft/T_revise/M
REMEMBERED = 300  # steps that one can go back to


@dataclass
class Controls:
    """How it goes on; the page changes these."""

    mode: str = "game"
    player: str = "agent"
    held: Any = None  # the action of who plays, as executed
    tapped: Any = None  # one that was begun and ended between two steps


class Moment(NamedTuple):
    """A step that one can go back to."""

    number: int
    message: bytes  # the frame, encoded
    dream: Dream  # forked there
    apart: int  # steps since it split off


class Session:
    """One game and one dream of a policy, for everyone who watches.

    Args:
        policy: of one environment, from `load_policy`.
        folder: where recordings go. name: that they begin with.
    """

    def __init__(self, policy: EvaluationPolicy, folder: Path, name: str) -> None:
        self.policy, self.spaces = policy, policy.world_model.spaces
        self.environment = policy.make_environment()
        streams = RandomStreams(derive_seed(policy.seed, "playing"), policy.streams.device)
        self._model = Dream.of(policy, lambda *shape: streams.uniform("playing", *shape))
        self.controls = Controls(held=self.idle)
        self._own_plan = self.plan
        self._folder, self._name = folder, name
        self.recording: Recording | None = None
        self.saved: list[str] = []  # files of the last recording
        self.problem = ""  # why it could not be saved
        self.moments: deque[Moment] = deque(maxlen=REMEMBERED)
        self.number = 0  # of the step
        self._came: dict[str, Any] = {}  # what there was to say of it
        self._last_return: float | None = None  # of the episode before
        self._apart = 0  # steps since the dream split off
        self._has_picture = True
        self.restart()

    # What the page needs to know once.

    @functools.cached_property
    def meanings(self) -> list[str]:
        """The environment's own names of its actions, [] where it has none."""
        return self.environment.action_meanings()

    @functools.cached_property
    def idle(self) -> Any:
        """The action of a player who does nothing."""
        if self.spaces.action.kind == "continuous":
            return [0.0] * self.spaces.action.size
        idle = [index for index, name in enumerate(self.meanings) if name in ("NOOP", "STAY")]
        return idle[0] if idle else 0

    @property
    def plans(self) -> list[str]:
        """The ways of sampling that its prior can be switched between."""
        if self._plan is None:
            return []
        known = [name for name in PLANS if int(name.split("/")[0]) <= self._plan.num_tokens]
        return known if self._own_plan in known else [self._own_plan, *known]

    @property
    def plan(self) -> str:
        """The way that it samples now, "" of a prior without one."""
        return str(self._plan or "")

    @property
    def _plan(self) -> DraftAndRevise | None:
        """How its prior samples now, None of one without a plan."""
        return getattr(self.policy.world_model.prior, "plan", None)

    def description(self) -> dict[str, Any]:
        """Return what does not change while it runs."""
        return {
            "run": self._name,
            "game": self.policy.config.BasicSettings.env_name,
            "model": self.policy.config.JointTrainAgent.ModelType,
            "actions": dataclasses.asdict(self.spaces.action),
            "meanings": self.meanings,
            "idle": self.idle,
            "vector": self.spaces.observation.kind == "vector",
            "plans": self.plans,
        }

    # What the page may ask for.

    def restart(self) -> None:
        """Begin a new episode, and the dream in it; what is being recorded ends before."""
        self.stop_recording()
        observation = self.environment.reset() if self.number == 0 else self._new_episode()
        self._begin(observation[0])
        self._remember({}, self.number > 0)

    def _begin(self, observation: np.ndarray) -> None:
        """Let the model, and the dream, begin anew at the first observation of an episode."""
        spec = self.spaces.action
        nothing = self._tensor(np.zeros((0, *spec.shape), spec.dtype))
        self._foreseen = self._model.begin(self._tensor(observation[None]), nothing)
        self._observation = observation
        self.split()

    def _new_episode(self) -> np.ndarray:
        self.environment.seeds = [seed + 1 for seed in self.environment.seeds]
        return self.environment.reset()

    def split(self) -> None:
        """Let the dream begin anew where the game is."""
        self.dream, self._apart = self._model.fork(), 0

    def split_here(self) -> None:
        """The same, for all to see."""
        self.split()
        self._remember({}, False)

    def split_at(self, number: int) -> None:
        """Let the dream begin where it, or the game, was at an earlier step, unless that is forgotten."""
        if (moment := self._moment(number)) is not None:
            self.stop_recording()
            self.set_mode("dream")
            self.dream, self._apart = moment.dream.fork(), moment.apart
            self._remember({}, False)

    def look(self, number: int) -> bytes | None:
        """Return what there was to see at an earlier step, encoded; None if it is forgotten."""
        moment = self._moment(number)
        return moment and moment.message

    def _moment(self, number: int) -> Moment | None:
        return next((moment for moment in self.moments if moment.number == number), None)

    def set_mode(self, mode: str) -> None:
        """Play the game, the dream, or both; the dream begins where the game is."""
        if mode != self.controls.mode:
            self.stop_recording()
            self.controls.mode = mode
            self.split()
            self._remember({}, False)

    def set_plan(self, name: str) -> None:
        """Draw the latents otherwise."""
        self.policy.world_model.prior.plan = self._plan.sized(*map(int, name.split("/")))

    def record(self) -> None:
        """Record from here on."""
        if self.recording is None:
            self.recording = Recording(self._folder, f"{self._name}-{self.controls.mode}")
            self.saved, self.problem = [], ""

    def stop_recording(self) -> None:
        """Save the recording, if there is one."""
        if self.recording is not None:
            recording, self.recording = self.recording, None
            try:
                self.saved = [str(path) for path in recording.save()]
            except UserError as error:
                log.warning("%s", error)
                self.problem = str(error)

    # A step.

    def step(self) -> Frame:
        """Act once, in the game, in the dream, or in both."""
        mode = self.controls.mode
        action = self._action()
        seen, facts = self._observation, {"action": action.tolist()}
        if mode == "dream":
            seen = self.dream.picture()
        else:
            played, came = self._play(action)
            facts |= played
        if mode != "game":
            reward, ended = self.dream.step(action)
            self._apart += 1
            facts |= {"dream_reward": reward, "dream_end": ended}
        frame = self._remember(facts, True)
        if self.recording is not None:
            if mode == "dream":
                came = raw_reward_of(reward, self.policy.config.Environment), ended
            shown = [frame.pictures[name] for name in self._filmed(mode) if name in frame.pictures]
            self.recording.add(seen, action.cpu().numpy(), *came, shown)
            if self.recording.is_full:
                self.stop_recording()
        return frame

    @staticmethod
    def _filmed(mode: str) -> tuple[str, ...]:
        return {"game": ("game",), "dream": ("dream",), "branch": ("game", "dream")}[mode]

    @property
    def _acted_on(self) -> Dream:
        """Where the actor chooses: the dream; the game as it is seen, or as foreseen if it acts blindly."""
        if self.controls.mode == "dream":
            return self.dream
        return self._foreseen if self.policy.blind else self._model

    def _action(self) -> Tensor:
        controls = self.controls
        if controls.player == "agent":
            return choose(self.policy, self._acted_on)
        wanted = controls.held if controls.tapped is None else controls.tapped
        controls.tapped = None
        return self._tensor(np.array(wanted, self.spaces.action.dtype))

    def _play(self, action: Tensor) -> tuple[dict[str, Any], tuple[float, bool]]:
        """Act in the game; let the model foresee what comes, then see it.

        Returns:
            What there is to say of it; and the raw reward, and whether the game ended, not a life alone.
        """
        self.environment.start_step(action.cpu().numpy()[None])
        try:
            result = self.environment.finish_step()
        except EnvironmentFault as fault:
            log.warning("%s", fault)
            self._begin(self.environment.observation[0])
            self.stop_recording()
            return {"reward": 0.0, "end": True, "episode_end": True}, (0.0, True)
        outcome = self._model.step(action)
        self._observation = result.observation[0]
        facts = {
            "reward": float(result.reward[0]),
            "end": bool(result.termination[0]),
            "episode_end": bool(result.episode_end[0]),
            "foreseen_reward": outcome.reward,
            "foreseen_end": outcome.termination,
        }
        if result.episode_end[0]:
            self._last_return = float(result.episode_return[0])
        self._foreseen = self._model.fork()  # before it is seen
        if self.controls.mode == "game":
            self.dream, self._apart = self._foreseen, 1
        self._model.observe(self._tensor(self._observation))
        return facts, (float(result.raw_reward[0]), facts["end"] and facts["episode_end"])

    # What there is to see.

    def _remember(self, facts: dict[str, Any], moved: bool) -> Frame:
        self.number += moved
        if moved:
            self._came = facts
        frame = Frame(self._pictures(), self._came | self._facts())
        in_dream = self.controls.mode == "dream"
        origin = self.dream if in_dream else self._model
        moment = Moment(self.number, encode(frame), origin.fork(), self._apart if in_dream else 0)
        if self.moments and self.moments[-1].number == self.number:
            self.moments.pop()
        self.moments.append(moment)  # at once after it, since others look at the last one
        return frame

    @property
    def oldest(self) -> int:
        """The earliest step that one can go back to."""
        return self.moments[0].number

    @property
    def message(self) -> bytes:
        """What there is to see now, encoded."""
        return self.moments[-1].message

    @torch.no_grad()
    def _pictures(self) -> dict[str, np.ndarray]:
        pictures = {}
        if self._has_picture:
            try:
                pictures["game"] = self.environment.render()
            except UserError:
                self._has_picture = False
        if self.spaces.observation.kind == "image":
            pictures |= {
                "seen": self._observation,
                "posterior": self._model.picture(),
                "dream": self.dream.picture(),
            }
        return pictures

    @torch.no_grad()
    def _facts(self) -> dict[str, Any]:
        controls, agent = self.controls, self.policy.agent
        where = self._acted_on
        outputs = agent.actor(where.feature)
        seen = unimix_log_probs(self._model.posterior_logits, self._model.world_model.config.Unimix)
        facts = {
            "step": self.number,
            "return": float(self.environment.running_return[0]),
            "last_return": self._last_return,
            "apart": self._apart,
            "mode": controls.mode,
            "value": float(agent.value(where.feature)),
            "prior_entropy": float(entropy(where.prior_log_probs).mean()),
            "posterior_entropy": float(entropy(seen).mean()),
        }
        if controls.mode != "dream":
            facts["error"] = self._error()
        if (groups := self.dream.groups) is not None:
            facts["sweeps"] = groups
        if self.spaces.action.kind == "discrete":
            facts["probabilities"] = outputs.float().softmax(-1)[0].tolist()
        else:
            facts["mean"] = agent.actions.mode(outputs)[0].tolist()
        if self.spaces.observation.kind == "vector":
            drawn = {
                "posterior": self._model.picture(),
                "dream": self.dream.picture(),
                "seen": self._observation,
            }
            facts["vectors"] = {name: np.asarray(values).tolist() for name, values in drawn.items()}
        return facts

    def _error(self) -> float:
        """Mean absolute difference of what is dreamt and what is seen: of pixels in [0, 1], or of numbers."""
        scale = 255 if self.spaces.observation.kind == "image" else 1
        return float(
            np.abs(self.dream.picture().astype(float) - self._observation.astype(float)).mean() / scale
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array).to(self.policy.streams.device)

    def close(self) -> None:
        """Save what is being recorded; end the game."""
        self.stop_recording()
        self.environment.close()
