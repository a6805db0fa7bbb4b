"""Which values of a configuration are possible, alone and together, and which deserve a warning."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from configuration.keys import Texts
from configuration.schema import Config, schema
from utils import UserError, nearest

LONGEST_RUN_NAME = 200  # bytes; "<run>_episodes.csv" must stay below the 255 that file systems allow


def show(value: Any) -> str:
    """`value` as an error message quotes it: in one short line, control characters escaped."""
    return "null" if value is None else f"{value!r:.80}"


def is_section(name: str) -> bool:
    """Whether there are keys of the dotted `name`."""
    return any(known.startswith(f"{name}.") for known in schema())


def nearest_key(name: str) -> str:
    """Text to append to a complaint about `name`, also one of the original STORM's options, as -seed."""
    last = name.rpartition(".")[2].lstrip("-").lower()
    same = [known for known in schema() if known.rpartition(".")[2].lower() == last]
    return nearest(name, same or schema(), cutoff=0.0 if same else 0.6)


def read_value(name: str, value: Any, origin: str = "") -> Any:
    """Return `value`, a text or what YAML made of it, as the type of key `name`; UserError if not allowed."""
    if is_section(name):
        raise UserError(f"{origin}{name} is a section; set one of its keys, as {name}.Key=value")
    if name not in schema():
        raise UserError(f"{origin}unknown key {show(name)}{nearest_key(name)}")
    key = schema()[name]
    try:
        typed = key.read(value)
    except (ValueError, OverflowError) as error:
        is_word = isinstance(key.allowed, Texts) and isinstance(value, str)
        suggestion = nearest(value, key.allowed) if is_word else ""
        raise UserError(f"{origin}{name}={show(value)}: must be {key.expected}{suggestion}") from error
    return os.path.expanduser(typed) if name.endswith("_path") and typed is not None else typed


def check_run_name(name: str) -> None:
    """Raise UserError unless `name` can be the name of a folder inside `outputs/` and `runs/`."""
    is_plain = name.isprintable() and not re.search(r"^[.\s-]|[/\\]|\.\.|\s$|^$", name)
    if not is_plain or len(name.encode()) > LONGEST_RUN_NAME:
        rule = "without '/', '\\' and '..', not starting with '.' or '-'"
        plain = f"must be a plain name of at most {LONGEST_RUN_NAME} bytes, {rule}"
        raise UserError(f"run name (BasicSettings.n) {show(name)}: {plain}")


def check_config(config: Config) -> None:
    """Raise UserError for the first setting that cannot go together with others."""
    if config.BasicSettings.n is not None:
        check_run_name(config.BasicSettings.n)
    for name, is_possible, demand in _demands(config):
        if not is_possible:
            raise UserError(f"{name}={attrgetter(name)(config)}: {demand}")


def _demands(config: Config) -> Iterator[tuple[str, bool, str]]:
    """(key, whether its value goes together with the others, what it must be)."""
    settings, environment, run = config.BasicSettings, config.Environment, config.JointTrainAgent
    model, agent, maskgit = config.Models.WorldModel, config.Models.Agent, config.Models.MaskGit
    size, width, latents = settings.ImageSize, model.TransformerHiddenDim, model.NumLatents
    yield "BasicSettings.ImageSize", size & (size - 1) == 0, "must be 4·2^n, as in 16, 32, 64 or 128"

    heads, hidden = "Models.WorldModel.TransformerNumHeads", f"TransformerHiddenDim={width}"
    yield heads, width % model.TransformerNumHeads == 0, f"must divide {hidden}"
    sliced = run.ModelType == "GITSTORM" and maskgit.Condition == "slice"
    divides, demand = not sliced or width % latents == 0, f"must divide {hidden} with GITSTORM"
    yield "Models.WorldModel.NumLatents", divides, f"{demand}, or take Models.MaskGit.Condition=whole"
    embedding = maskgit.TmfArgs.EmbedDim
    divides, demand = embedding % maskgit.TmfArgs.NumHeads == 0, f"must divide EmbedDim={embedding}"
    yield "Models.MaskGit.TmfArgs.NumHeads", divides, demand
    at_most = f"must be at most Models.WorldModel.NumLatents={latents}"
    yield "Models.MaskGit.T_draft", maskgit.T_draft <= latents, at_most
    yield "Models.MaskGit.T_revise", maskgit.T_revise <= latents, at_most
    low, high = agent.ReturnPercentileLow, agent.ReturnPercentileHigh
    yield "Models.Agent.ReturnPercentileLow", low < high, f"must be below ReturnPercentileHigh={high}"
    low, high = agent.MinStd, agent.MaxStd
    yield "Models.Agent.MinStd", low <= high, f"must be at most MaxStd={high}"

    longest = model.TransformerMaxLength
    limit = f"must be at most Models.WorldModel.TransformerMaxLength={longest}"
    yield "JointTrainAgent.BatchLength", run.BatchLength <= longest, limit
    yield "JointTrainAgent.ActingContextLength", run.ActingContextLength <= longest, limit
    imagined = run.ImagineContextLength + run.ImagineBatchLength
    both = f"with ImagineContextLength={run.ImagineContextLength} added it {limit}"
    yield "JointTrainAgent.ImagineBatchLength", imagined <= longest, both
    frames, skip = environment.MaxEpisodeFrames, environment.FrameSkip
    yield "Environment.MaxEpisodeFrames", frames >= skip, f"must be at least Environment.FrameSkip={skip}"

    capacity = run.BufferMaxLength // run.NumEnvs * run.NumEnvs
    held = f"the {capacity} steps that BufferMaxLength={run.BufferMaxLength} holds with NumEnvs={run.NumEnvs}"
    yield "JointTrainAgent.BufferWarmUp", run.BufferWarmUp <= capacity, f"must be at most {held}"
    window = max(run.BatchLength, run.ImagineContextLength)
    least = window * run.NumEnvs
    demand = f"must be at least {least}, one window of {window} steps for each of NumEnvs={run.NumEnvs}"
    yield "JointTrainAgent.BufferWarmUp", run.BufferWarmUp >= least, demand
    demonstrated = not run.UseDemonstration or settings.trajectory_path is not None
    needed = "needs BasicSettings.trajectory_path, an .npz or .pkl file"
    yield "JointTrainAgent.UseDemonstration", demonstrated, needed
    if config.Task == "VideoPrediction":
        has_clips, needed = settings.trajectory_path is not None, "needs BasicSettings.trajectory_path, clips"
        yield "Task", has_clips, f"{needed} of video"
        yield (
            "JointTrainAgent.UseDemonstration",
            not run.UseDemonstration,
            "must be False with clips of video",
        )
        yield "JointTrainAgent.EvalEverySteps", run.EvalEverySteps == 0, "must be 0 with clips of video"


def warnings_about(config: Config) -> Iterator[str]:
    """Yield one line for each setting that is possible but probably not meant."""
    run = config.JointTrainAgent
    used = max(run.ImagineContextLength + run.ImagineBatchLength, run.ActingContextLength)
    if run.BatchLength < used:
        yield (
            f"JointTrainAgent.BatchLength={run.BatchLength}: imagination and acting use positions up to "
            f"{used}, which windows this short never train (the paper's windows have 64 steps)"
        )
