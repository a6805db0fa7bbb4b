"""Compares priors on Diagnostic/Twins-v0, whose next frame is one of 16 equally likely pictures.

    python -m experiments.joint_prior [--latents 8 --classes 8] [--out DIR]; --help lists the options.

Encoder and decoder are trained once, by reconstruction, and frozen. Then STORM's factorised prior
and one MaskGIT (whose sampling plans T_draft/T_revise/M differ only when it is sampled) learn the
same latents in the same number of steps. A frame is consistent if all its parts show one picture.
Beside this, whole world models are trained end to end. Writes <out>/<K>x<C>.json and .png.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from agents import ActorCritic, imagination_noise_size, imagine
from compute.random_streams import RandomStreams
from configuration.keys import Range, fixed
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from environments.diagnostic import NUM_PICTURES, is_consistent, parts_of
from evaluation.open_loop import open_loop, to_pixels
from experiments.figures import draw_priors
from experiments.training import add_settings, experiment_parser, read_settings, write_record
from replay_buffer import ReplayBuffer
from sub_models.batch import Batch
from sub_models.functions_losses import sample, straight_through
from sub_models.world_models import WorldModel
from utils import UserError, run_cli

CPU = torch.device("cpu")
NUM_ACTIONS = 2
MOST = 1_000_000
COUNT, CLASSES, SIDE = Range(1, MOST), Range(2, 1_024), Range(16, 128)
FRAMES, LENGTH = Range(256, MOST), Range(1, 128)  # so that the frames hold a window
FACTORISED = "factorised MLP"
PLANS = ((1, 1, 1), (2, 2, 1), (4, 4, 1), (8, 8, 1))  # T_draft, T_revise, M, from independent to fully joint
JOINT_PLAN = PLANS[2]
Loss = Callable[[Batch, RandomStreams], Tensor]


@dataclass(frozen=True)
class Settings:
    """Every number of the experiment."""

    latents: int = fixed(8, "K, latent variables", COUNT)
    classes: int = fixed(8, "C, classes of each", CLASSES)
    image_size: int = fixed(32, "side of the pictures in pixels, a multiple of 16", SIDE)
    stem_channels: int = fixed(8, "channels of the encoder's first convolution", COUNT)
    width: int = fixed(64, "width D of the sequence model and of MaskGIT", COUNT)
    layers: int = fixed(2, "blocks of MaskGIT", COUNT)
    steps_per_episode: int = fixed(64, "length of the environment's episodes", COUNT)
    frames: int = fixed(2048, "frames of experience", FRAMES)
    autoencoder_steps: int = fixed(500, "steps of encoder and decoder, 64 frames each", COUNT)
    prior_steps: int = fixed(1500, "steps of each prior", COUNT)
    end_to_end_steps: int = fixed(2000, "steps of each whole world model; 0 leaves them out", Range(0, MOST))
    curve_points: int = fixed(10, "measurements along these", COUNT)
    windows: int = fixed(8, "windows per step", COUNT)
    length: int = fixed(8, "steps per window", LENGTH)
    learning_rate: float = fixed(1e-3, "of Adam, for every part", Range(0, 1, "(]"))
    imagined_windows: int = fixed(128, "windows that imagination starts from", COUNT)
    context: int = fixed(2, "real steps before imagination starts", LENGTH)
    horizon: int = fixed(8, "imagined steps", LENGTH)
    timed_batch: int = fixed(256, "imagined trajectories when the time is measured", COUNT)
    timed_context: int = fixed(8, "real steps before these", LENGTH)
    timed_horizon: int = fixed(16, "their imagined steps", LENGTH)
    timed_repeats: int = fixed(5, "measurements of the time, of which the least counts", COUNT)
    seed: int = fixed(0, "of everything", Range(0, 2**31 - 1))


def model_config(settings: Settings) -> Config:
    """The configuration of every world model of the experiment."""
    config = Config()
    model, mask_git = config.Models.WorldModel, config.Models.MaskGit
    config.BasicSettings.ImageSize = settings.image_size
    model.StemChannels = settings.stem_channels
    model.NumLatents, model.NumClasses = settings.latents, settings.classes
    model.TransformerHiddenDim = config.Models.Agent.HiddenDim = settings.width
    imagined = settings.context + settings.horizon, settings.timed_context + settings.timed_horizon
    model.TransformerMaxLength = max(settings.length, *imagined)
    mask_git.VocabDim = mask_git.TmfArgs.EmbedDim = mask_git.TmfArgs.MlpDim = settings.width
    mask_git.TmfArgs.NumLayers = settings.layers
    return config


def spaces_of(settings: Settings) -> Spaces:
    """Return what is observed and done in the scene."""
    side = settings.image_size
    return Spaces(ObservationSpec("image", (side, side, 3)), ActionSpec("discrete", NUM_ACTIONS))


def make_world_model(settings: Settings, model_type: str) -> WorldModel:
    """A seeded world model in evaluation mode."""
    torch.manual_seed(settings.seed)
    return WorldModel(model_config(settings).Models, model_type, spaces_of(settings)).eval()


def sampled_by(world_model: WorldModel, plan: tuple[int, int, int]) -> str:
    """Let a MaskGIT prior sample by T_draft, T_revise, M; return its name."""
    prior = world_model.prior
    prior.plan = prior.plan.sized(*plan)
    return f"MaskGIT {prior.plan}"


def collect(settings: Settings) -> ReplayBuffer:
    """Experience of random actions in the environment."""
    environment = gymnasium.make(
        "Diagnostic/Twins-v0", image_size=settings.image_size, episode_length=settings.steps_per_episode
    )
    random = np.random.default_rng(settings.seed)
    data = ReplayBuffer(settings.frames, 1, spaces_of(settings), CPU)
    observation, _ = environment.reset(seed=settings.seed)
    for _ in range(settings.frames):
        action = int(random.integers(NUM_ACTIONS))
        data.append(observation[None], np.array([action]), np.zeros(1), np.zeros(1))
        observation, _, _, episode_end, _ = environment.step(action)
        if episode_end:
            observation, _ = environment.reset()
    return data


# Learning.


def fit(
    parts: Sequence[nn.Module],
    data: ReplayBuffer,
    steps: int,
    settings: Settings,
    loss_of: Loss,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Train parts of a world model on random windows; `after` is called with each step's number."""
    streams = RandomStreams(settings.seed, CPU)
    optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], settings.learning_rate)
    for step in range(1, steps + 1):
        for part in parts:
            part.train()
        batch = data.sample(settings.windows, settings.length, streams.generator("windows"))
        loss = loss_of(batch, streams)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for part in parts:
            part.eval()
        after(step)


def fit_autoencoder(world_model: WorldModel, data: ReplayBuffer, settings: Settings) -> None:
    """Train encoder and decoder by the reconstruction of frames from posterior samples."""

    def loss_of(batch: Batch, streams: RandomStreams) -> Tensor:
        frames = batch.observation.flatten(0, 1)
        posterior = world_model.posterior(frames)
        noise = streams.uniform("posterior", *posterior.shape[:-1])
        latent = straight_through(sample(posterior.detach(), noise), posterior).flatten(-2)
        truth = world_model.decoder.target(frames)
        return (world_model.decode(latent) - truth).square().sum((-3, -2, -1)).mean()

    parts = (world_model.encoder, world_model.decoder)
    fit(parts, data, settings.autoencoder_steps, settings, loss_of)


def fit_prior(world_model: WorldModel, data: ReplayBuffer, settings: Settings) -> None:
    """Train sequence model and prior on the latents of a frozen encoder, by their KL divergence."""

    def loss_of(batch: Batch, streams: RandomStreams) -> Tensor:
        with torch.no_grad():
            posterior = world_model.posterior(batch.observation)
        index = sample(posterior, streams.uniform("posterior", *posterior.shape[:-1]))
        hidden = world_model.sequence_model(world_model.one_hot_latent(index), batch.action)
        noise = streams.uniform("prior", *batch.action[:, 1:].shape, world_model.prior.predict_noise_size)
        return world_model.divergences(posterior, index, hidden, noise)[0].mean()

    parts = (world_model.sequence_model, world_model.prior)
    fit(parts, data, settings.prior_steps, settings, loss_of)


def fit_end_to_end(world_model: WorldModel, data: ReplayBuffer, settings: Settings) -> list[dict[str, float]]:
    """Train a whole world model; its imagination, measured along the way."""

    def loss_of(batch: Batch, streams: RandomStreams) -> Tensor:
        noise = streams.uniform("loss", *batch.action.shape, world_model.loss_noise_size)
        return world_model.loss(batch, noise)[0]

    curve = []

    def measure(step: int) -> None:
        if step % max(1, settings.end_to_end_steps // settings.curve_points) == 0:
            frames = decoded_frames(world_model, data, settings, settings.context)
            curve.append({"step": step} | judge(frames))

    fit([world_model], data, settings.end_to_end_steps, settings, loss_of, measure)
    return curve


# Measuring.


def decoded_frames(
    world_model: WorldModel, data: ReplayBuffer, settings: Settings, context: int
) -> np.ndarray:
    """Decode the last `horizon` steps of windows, uint8 (N, S, S, 3): prior samples after a real `context`.

    Where the context is longer, its steps are posterior samples: what a perfect prior would give.
    """
    streams = RandomStreams(settings.seed + 1, CPU)
    length = settings.context + settings.horizon
    batch = data.sample(settings.imagined_windows, length, streams.generator("windows"))
    prediction = open_loop(world_model, batch, context, streams).prediction
    return to_pixels(prediction[:, settings.context :].flatten(0, 1)).numpy()


def judge(frames: np.ndarray) -> dict[str, float]:
    """Share of consistent frames, and the entropy of their pictures, 1 if uniform, of uint8 (N, S, S, 3)."""
    good = is_consistent(frames)
    counts = (
        np.bincount(parts_of(frames[good])[:, 0, 0], minlength=NUM_PICTURES) if good.any() else np.zeros(1)
    )
    shares = counts[counts > 0] / counts.sum()
    return {
        "consistent": float(good.mean()),
        "class_entropy": float(0 - (shares * np.log(shares)).sum() / math.log(NUM_PICTURES)),
    }


def imagination_seconds(world_model: WorldModel, data: ReplayBuffer, settings: Settings) -> float:
    """CPU seconds of one imagination, contexts and policy included; the least of several."""
    streams = RandomStreams(settings.seed, CPU)
    batch = data.sample(settings.timed_batch, settings.timed_context, streams.generator("windows"))
    agent = ActorCritic(
        model_config(settings).Models.Agent, world_model.feature_size, spaces_of(settings).action
    ).eval()
    size = (settings.timed_horizon + 1, settings.timed_batch, imagination_noise_size(world_model, agent))
    noise = streams.uniform("imagination", *size)
    context_noise = streams.uniform("imagination", *batch.action.shape, settings.latents)
    times = []
    for _ in range(settings.timed_repeats):
        start = time.process_time()
        imagine(world_model, agent, batch.observation, batch.action, context_noise, noise)
        times.append(time.process_time() - start)
    return min(times)


def compare_priors(
    data: ReplayBuffer, settings: Settings
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Frozen encoder and decoder: measurements by prior, and sample frames by prior."""
    autoencoder = make_world_model(settings, "STORM")
    fit_autoencoder(autoencoder, data, settings)
    whole = settings.context + settings.horizon
    frames = {"posterior": decoded_frames(autoencoder, data, settings, whole)}
    results = {"posterior": judge(frames["posterior"])}

    def measure(name: str, world_model: WorldModel) -> None:
        frames[name] = decoded_frames(world_model, data, settings, settings.context)
        results[name] = judge(frames[name])
        seconds = imagination_seconds(world_model, data, settings)
        results[name]["imagination_seconds"] = seconds
        results[name]["relative_time"] = seconds / results[FACTORISED]["imagination_seconds"]

    def fitted(model_type: str) -> WorldModel:
        world_model = make_world_model(settings, model_type)
        world_model.encoder, world_model.decoder = autoencoder.encoder, autoencoder.decoder
        fit_prior(world_model, data, settings)
        return world_model

    measure(FACTORISED, fitted("STORM"))
    gitstorm = fitted("GITSTORM")
    for plan in PLANS:
        if plan[0] <= settings.latents:
            measure(sampled_by(gitstorm, plan), gitstorm)
    return results, frames


def end_to_end_curves(data: ReplayBuffer, settings: Settings) -> dict[str, list[dict[str, float]]]:
    """Measurements while whole world models train, by prior."""
    if settings.end_to_end_steps == 0:
        return {}
    storm = make_world_model(settings, "STORM")
    curves = {FACTORISED: fit_end_to_end(storm, data, settings)}
    gitstorm = make_world_model(settings, "GITSTORM")
    curves[sampled_by(gitstorm, JOINT_PLAN)] = fit_end_to_end(gitstorm, data, settings)
    return curves


def read_options(arguments: list[str]) -> tuple[Settings, Path]:
    """Settings and output folder of a command line."""
    parser = experiment_parser("joint_prior", __doc__)
    add_settings(parser, Settings())
    options = parser.parse_args(arguments)
    settings = read_settings(options, Settings())
    size, latents, width = settings.image_size, settings.latents, settings.width
    if size & (size - 1):
        raise UserError(f"--image_size {size}: must be 16, 32, 64 or 128")
    if latents < max(JOINT_PLAN):
        raise UserError(f"--latents {latents}: must be at least {max(JOINT_PLAN)}, for a joint plan")
    heads = Config().Models.WorldModel.TransformerNumHeads
    if width % latents or width % heads:
        raise UserError(f"--width {width}: must be a multiple of --latents {latents} and of {heads} heads")
    return settings, options.out


def main(arguments: list[str]) -> None:
    """Run the experiment on one CPU thread, print a table, write JSON and figure."""
    settings, out = read_options(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    data = collect(settings)
    priors, frames = compare_priors(data, settings)
    for name, result in priors.items():
        cost = f", imagination {result['relative_time']:.2f} × the time" if "relative_time" in result else ""
        print(
            f"{name:16} consistent {result['consistent']:.3f}, "
            f"class entropy {result['class_entropy']:.2f} of uniform{cost}",
            flush=True,
        )
    record = {
        "runs_at_a_time": 1,
        "settings": asdict(settings),
        "judged_frames": settings.imagined_windows * settings.horizon,
        "priors": priors,
        "end_to_end": end_to_end_curves(data, settings),
        "seconds": round(time.monotonic() - start, 1),
    }
    name = f"{settings.latents}x{settings.classes}"
    write_record(out / f"{name}.json", "joint_prior", arguments, record)
    draw_priors(record, frames, out / f"{name}.png")
    print(f"wrote {out / name}.json and .png")


if __name__ == "__main__":
    run_cli(main)
