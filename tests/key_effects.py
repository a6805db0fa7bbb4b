"""What a configuration makes observable: models, losses, updates, play and whole runs, by name."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stub_envs
import torch
from PIL import Image
from tests_support import CPU
from tiny_runs import SMALL, evaluate
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

import train as training_command
import training.run
from agents import ActorCritic
from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from env_wrapper import VectorEnvironment
from evaluation.tables import Episode
from run_files.directory import RunDirectory
from sub_models.batch import Batch, Rollout
from sub_models.image import ImageDecoder, ImageEncoder
from sub_models.world_models import WorldModel
from training.learner import Learner, make_policy
from training.resume import open_run
from training.run import TrainingRun
from utils import UserError

Effects = dict[str, Any]  # what was observed, by name; equal where the configuration made no difference
IMAGES = Spaces(ObservationSpec("image", (16, 16, 3)), ActionSpec("discrete", 3))
VECTORS = Spaces(ObservationSpec("vector", (3,)), ActionSpec("continuous", 2))
ENV = "BasicSettings.env_name=stub_envs:Stub{}-v0".format
# Small; and such that every setting matters: gradients are clipped, Adam's epsilons are not negligible.
BASE = [
    *SMALL,
    ENV("Steady"),
    "BasicSettings.n=run",
    "JointTrainAgent.SampleMaxSteps=32",
    "JointTrainAgent.BufferWarmUp=16",
    "JointTrainAgent.BufferMaxLength=24",
    "JointTrainAgent.TrainDynamicsEverySteps=4",
    "JointTrainAgent.TrainAgentEverySteps=5",
    "JointTrainAgent.SaveEverySteps=20",
    "JointTrainAgent.SaveEverySeconds=0",
    "JointTrainAgent.LogEverySteps=6",
    "JointTrainAgent.EvalEverySteps=15",
    "Models.WorldModel.TransformerNumLayers=1",
    "Models.WorldModel.FreeNats=0.001",
    "Models.WorldModel.AdamEps=1e-2",
    "Models.WorldModel.MaxGradNorm=1",
    "Models.Agent.AdamEps=1e-2",
    "Models.Agent.MaxGradNorm=0.1",
    "Models.Agent.ReturnScaleFloor=1e-3",
]
ACTED_STEPS, BATCH, LENGTH, IMAGINED, CONTEXT = 12, 4, 6, 16, 3
LOSSES = ("reconstruction", "reward", "termination", "dynamics", "representation", "total")
AGENT_LOSSES = ("policy", "entropy", "value", "slow_value", "total")
RUNS = "random steps", "chosen steps", "batches", "contexts", "logs", "episodes", "evaluations"
RUNS += "evaluation seeds", "videos", "checkpoints", "states"  # what is seen while a run goes on
ATARI = "game", "game's actions", "game's rewards", "game's ends", "game's episodes"


def fingerprint(value: Any) -> Any:
    """The same for equal values only, and short: tensors and arrays become a digest."""
    if isinstance(value, nn.Module):
        return fingerprint(value.state_dict())
    if isinstance(value, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(value.detach().numpy() if isinstance(value, Tensor) else value)
        return array.shape, hashlib.sha256(array.tobytes()).hexdigest()[:12]
    if isinstance(value, dict):
        return {name: fingerprint(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [fingerprint(each) for each in value]
    return value


def random(name: str, *shape: int) -> Tensor:
    """Standard normal numbers that depend on the name and the shape only."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def fill(module: nn.Module) -> None:
    """Weights that depend on their names and shapes only, so that no module shifts another's."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and name.endswith("running_var"):
            value.copy_(1 + random(name, *value.shape).square())
        elif value.is_floating_point() and "return_scale" not in name:
            value.copy_(0.4 * random(name, *value.shape))


def windows(spaces: Spaces, batch: int, length: int) -> Batch:
    """Windows of noise, with rewards of several sizes."""
    lead, observed, acted = (batch, length), spaces.observation, spaces.action
    noise = random("observation", *lead, *observed.shape)
    action = random("action", *lead, *acted.shape)
    return Batch(
        (noise * 60 + 128).clamp(0, 255).byte() if observed.kind == "image" else noise,
        (action.abs() * 2).long() % acted.size if acted.kind == "discrete" else action.tanh(),
        3 * random("reward", *lead),
        (random("termination", *lead) > 1).float(),
    )


def rollout(agent: ActorCritic, feature_size: int) -> Rollout:
    """An imagined rollout of noise, whose first returns are near the bins' middle and last ones far."""
    shape = agent.actions.uniform(torch.rand(1, agent.actions.noise_size)).shape[1:]
    action = random("imagined action", 4, 5, *shape)
    return Rollout(
        random("feature", 4, 6, feature_size),
        (action.abs() * 2).long() % 3 if not shape else action,
        10 * random("imagined reward", 4, 5),
        (random("imagined end", 4, 5) > 1).float(),
    )


class Dropouts(TorchFunctionMode):
    """Counts the dropouts of a forward pass by their probability."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[float, int] = {}

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple = (), settings: dict | None = None
    ) -> Any:
        settings = settings or {}
        probability = 0.0
        if function is nn.functional.dropout and settings.get("training", [*arguments, 0, 0, True][2]):
            probability = settings.get("p", arguments[1] if len(arguments) > 1 else 0.5)
        elif function is nn.functional.scaled_dot_product_attention:
            probability = settings.get("dropout_p", 0.0)
        if probability:
            self.counts[probability] = self.counts.get(probability, 0) + 1
        return function(*arguments, **settings)


class OtherEncoder(ImageEncoder):
    """Sees pictures upside down."""

    def forward(self, observation: Tensor) -> Tensor:
        return super().forward(observation.flip(1))


class OtherDecoder(ImageDecoder):
    """Draws pictures upside down."""

    def forward(self, latent: Tensor) -> Tensor:
        return super().forward(latent).flip(-2)


class OtherWorldModel(WorldModel):
    """Counts the reward's loss twice."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.loss_weights["reward_loss"] = 2.0


def learning(config: Config, spaces: Spaces) -> Effects:
    """What the models of a config do with the same inputs and the same noise."""
    torch.manual_seed(0)
    learner = Learner(config, spaces, Execution(config.BasicSettings, CPU), RandomStreams(0, CPU))
    models = {"world model": learner.world_model, "agent": learner.agent}
    seen: Effects = {"initial weights": list(models.values())}
    for name, model in models.items():
        seen[name] = [(key, tuple(value.shape)) for key, value in model.named_parameters()]
    seen = fingerprint(seen)
    for model in models.values():
        fill(model)
    for look in (world_model_losses, imagination, acting, updates):
        seen |= fingerprint(look(learner, spaces))
    return seen


@torch.no_grad()
def world_model_losses(learner: Learner, spaces: Spaces) -> Effects:
    """Losses without dropout; and which dropouts there are in training."""
    batch, model = windows(spaces, BATCH, LENGTH), learner.world_model
    columns = [random(f"noise {i}", BATCH, LENGTH) for i in range(model.loss_noise_size)]
    noise = torch.special.ndtr(torch.stack(columns, dim=-1))  # uniform
    _, metrics = model.loss(batch, noise)
    with Dropouts() as dropouts:
        model.train()
        model.loss(batch, noise)
        model.eval()
    fill(model)  # without BatchNorm's new statistics
    losses = {f"{name} loss": metrics[f"{name}_loss"] for name in LOSSES}
    return losses | {"KL": metrics["dynamics_real_kl_div"], "dropouts": dropouts.counts}


@torch.no_grad()
def imagination(learner: Learner, spaces: Spaces) -> Effects:
    """Rollouts from the same contexts."""
    imagined, model = learner.imagine(windows(spaces, IMAGINED, CONTEXT)), learner.world_model
    return {
        "prior": model.prior.log_probs(random("hidden", IMAGINED, model.config.TransformerHiddenDim)),
        "horizon": tuple(imagined.reward.shape),
        "imagination": [imagined.feature, imagined.action, imagined.termination],
        "imagined rewards": imagined.reward,
    }


def acting(learner: Learner, spaces: Spaces) -> Effects:
    """What the actor says of the same observations."""
    config, said = learner.config, []
    policy = make_policy(config, learner, Execution(config.BasicSettings, CPU), RandomStreams(0, CPU))
    hook = learner.agent.actor.register_forward_hook(lambda *call: said.append(call[-1]))
    for observation in windows(spaces, ACTED_STEPS, config.JointTrainAgent.NumEnvs).observation:
        said.append(policy.act(observation))
    hook.remove()
    return {"acting": said, "acting context": policy.state_dict()["actions"].shape[1]}


def updates(learner: Learner, spaces: Spaces) -> Effects:
    """One update of each model, and the agent's losses."""
    world_model, agent = learner.world_model, learner.agent
    torch.manual_seed(1)  # of dropout
    learner.update_world_model(windows(spaces, BATCH, LENGTH))
    imagined = rollout(agent, world_model.feature_size)
    _, metrics = agent.loss(imagined)
    learner.update_agent(imagined)
    return {
        "world model's update": world_model,
        **{f"agent's {name} loss": metrics[f"{name}_loss"] for name in AGENT_LOSSES},
        "returns": metrics["imagined_return"],
        "return scale": [metrics["S"], agent.return_scale],
        "divisor": metrics["norm_ratio"],
        "agent's update": [agent.actor, agent.critic],
        "slow critic's update": agent.slow_critic,
    }


# Whole runs.


def watch(owner: Any, method: str, seen: Callable[..., None]) -> None:
    """Let `seen` have the arguments of each call of a method of this one object, and its result."""
    original = getattr(owner, method)

    def watched(*arguments: Any, **settings: Any) -> Any:
        result = original(*arguments, **settings)
        seen(result, *arguments, **settings)
        return result

    setattr(owner, method, watched)


def running(config: Config, folder: Path) -> Effects:
    """What a run does, when, and with how much."""
    stub_envs.Stumbling.taken = 0
    seen: dict[str, list[Any]] = {name: [] for name in RUNS}
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.chdir(folder)
        with contextlib.closing(open_run(config, RunDirectory(config.BasicSettings.n))) as run:
            watch_run(run, seen, patch)
            try:
                outcome = training_command.train(run, SimpleNamespace(signal=None), tqdm(disable=True))
            except UserError as error:
                outcome = str(error)
    rows = run.replay.export_rows(run.replay.oldest, run.replay.count)
    return seen | {
        "outcome": (run.step, outcome),
        "faults": (run.faults, said.getvalue().count("began new episodes")),
        "environments": run.environment.num_envs,
        "seeds": run.environment.seeds,
        "replay": (run.replay.capacity, len(run.replay)),
        "observations": fingerprint(rows["observation"]),
        "rewards": rows["reward"].tolist(),
        "ends": rows["termination"].tolist(),
    }


def watch_run(run: TrainingRun, seen: dict[str, list[Any]], patch: pytest.MonkeyPatch) -> None:
    """Note what happens at which step."""

    def note(name: str, value: Callable[..., Any] = lambda *call: ()) -> Callable[..., None]:
        return lambda *call, **settings: seen[name].append((run.step, value(*call)))

    def scalars(_: Any, step: int, values: dict[str, float]) -> None:
        seen["episodes"] += [(step, value) for tag, value in values.items() if tag.startswith("sample/")]
        seen["logs"] += [step] if "replay_buffer/length" in values else []

    def evaluate(policy: Any, environment: Any, episodes: int, *settings: Any) -> list[Episode]:
        seen["evaluations"].append((run.step, environment.num_envs, episodes, policy.greedy, settings[:2]))
        seen["evaluation seeds"] += environment.seeds
        return [Episode(0.0, 1)]

    patch.setattr(training.run, "evaluate", evaluate)
    watch(run.policy, "act", note("chosen steps"))
    watch(run.policy, "act_randomly", note("random steps"))

    def drawn(_: Any, batch: Batch) -> tuple[int, ...]:
        return *batch.reward.shape, run.replay.count * run.environment.num_envs - run.step

    watch(run.learner, "update_world_model", note("batches", drawn))
    watch(run.learner, "imagine", note("contexts", drawn))
    watch(run.logger, "scalars", scalars)
    watch(run.logger, "video", note("videos", lambda _, step, tag, frames, *more: frames.shape))
    watch(run, "save_checkpoint", note("checkpoints", lambda _, nominal: nominal))
    watch(run.store, "save", note("states"))


def atari(config: Config) -> Effects:
    """What two Atari games show and pay for the same actions; in one a life is soon lost, one soon pays."""
    seen: dict[str, list[Any]] = {name: [] for name in ATARI}
    for game in ("Breakout", "Assault"):
        try:
            environment = VectorEnvironment(f"ALE/{game}-v5", config.Environment, 16, 1, 0)
        except UserError as error:
            return dict.fromkeys(ATARI, str(error))
        with contextlib.closing(environment):
            environment.reset()
            seen["game's actions"].append(environment.spaces.action.size)
            for step in range(45):
                environment.start_step(np.array([1 + step % 3]))
                result = environment.finish_step()
                seen["game"].append(fingerprint(result.observation))
                seen["game's rewards"].append(float(result.reward[0]))
                seen["game's ends"].append(float(result.termination[0]))
                seen["game's episodes"] += result.episode_length[result.episode_end].tolist()
    return dict(seen)


def evaluating(folder: Path, *overrides: str) -> Effects:
    """What eval.py writes about the run "run" of a folder."""
    results, arguments = folder / "outputs" / "eval_result", ["-run_name=run", "-checkpoints=last"]
    for also in ((), ("-world_model",)):
        assert evaluate(folder, *arguments, *also, *overrides).code == 0
    rows = list(csv.DictReader((results / "run.csv").open()))
    reports = (results / "run").glob("world_model-*.json")  # one of each settings
    judged = max(reports, key=lambda path: path.stat().st_mtime_ns)
    report = json.loads(judged.read_text())
    with Image.open(judged.with_name(f"{judged.stem}.gif")) as video:
        size = video.size
    return {
        **{f"scored {column}": rows[-1][column] for column in ("episodes", "num_envs", "greedy")},
        "judged windows": report["windows"],
        "judged steps": len(report["by_horizon"]["model_error"]),
        "judgement": report["by_horizon"],
        "video's size": size,
    }
