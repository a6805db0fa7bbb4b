"""Which values of a configuration are possible, and which deserve a warning."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configuration.schema import Config
from utils import DEVICE_PATTERN, UserError, nearest

LONGEST_RUN_NAME = 200  # bytes; "<run>_episodes.csv" must stay below the 255 that file systems allow
LONGEST_TEXT = 1_000


@dataclass(frozen=True)
class Range:
    """An interval; an open end is not part of it."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"at most {self.high:,}"
        if math.isinf(self.high):
            return f"greater than {self.low:,}" if self.open_low else f"{self.low:,} or more"
        low = f"greater than {self.low:,}" if self.open_low else f"from {self.low:,}"
        return f"{low} {'to below' if self.open_high else 'to'} {self.high:,}"


STEPS = Range(1, 10**12)
STEPS_OR_OFF = Range(0, 10**12)
BATCH = Range(1, 2**20)
WIDTH = Range(1, 2**16)
COUNT = Range(1, 1_024)
BINS = Range(2, 2**16)
PROBABILITY = Range(0, 1)
RATE_BELOW_ONE = Range(0, 1, open_high=True)
POSITIVE = Range(0, math.inf, open_low=True)
NOT_NEGATIVE = Range(0, math.inf)
BIN_LIMIT = Range(0, 80, open_low=True)  # symexp(80) is the largest that float32 holds with room

RANGES: dict[str, Range] = {
    "BasicSettings.Seed": Range(0, 2**31 - 1),
    "BasicSettings.ImageSize": Range(16, 1_024),
    "BasicSettings.GraphWarmUpCalls": COUNT,
    "BasicSettings.LossScale": POSITIVE,
    "BasicSettings.NumThreads": Range(0, 1_024),
    "Environment.FrameSkip": COUNT,
    "Environment.StickyActions": PROBABILITY,
    "Environment.MaxEpisodeFrames": Range(1, 2**31 - 1),
    "Environment.StepTimeout": NOT_NEGATIVE,
    "Environment.MaxFaults": STEPS,
    "JointTrainAgent.SampleMaxSteps": STEPS,
    "JointTrainAgent.BufferMaxLength": STEPS,
    "JointTrainAgent.BufferWarmUp": STEPS,
    "JointTrainAgent.NumEnvs": COUNT,
    "JointTrainAgent.BatchSize": BATCH,
    "JointTrainAgent.DemonstrationBatchSize": Range(0, 2**20),
    "JointTrainAgent.BatchLength": Range(2, 2**16),
    "JointTrainAgent.ImagineBatchSize": BATCH,
    "JointTrainAgent.ImagineDemonstrationBatchSize": Range(0, 2**20),
    "JointTrainAgent.ImagineContextLength": WIDTH,
    "JointTrainAgent.ImagineBatchLength": WIDTH,
    "JointTrainAgent.ActingContextLength": WIDTH,
    "JointTrainAgent.TrainDynamicsEverySteps": STEPS,
    "JointTrainAgent.TrainAgentEverySteps": STEPS,
    "JointTrainAgent.SaveEverySteps": STEPS,
    "JointTrainAgent.SaveEverySeconds": NOT_NEGATIVE,
    "JointTrainAgent.LogEverySteps": STEPS,
    "JointTrainAgent.EvalEverySteps": STEPS_OR_OFF,
    "JointTrainAgent.MaxBadUpdates": STEPS,
    "Models.WorldModel.InChannels": Range(3, 3),
    "Models.WorldModel.StemChannels": WIDTH,
    "Models.WorldModel.NumLatents": WIDTH,
    "Models.WorldModel.NumClasses": Range(2, 2**16),
    "Models.WorldModel.Unimix": RATE_BELOW_ONE,
    "Models.WorldModel.TransformerMaxLength": Range(2, 2**16),
    "Models.WorldModel.TransformerHiddenDim": WIDTH,
    "Models.WorldModel.TransformerNumLayers": COUNT,
    "Models.WorldModel.TransformerNumHeads": COUNT,
    "Models.WorldModel.FeedForwardRatio": COUNT,
    "Models.WorldModel.SequenceNormEps": POSITIVE,
    "Models.WorldModel.NormEps": POSITIVE,
    "Models.WorldModel.Dropout": RATE_BELOW_ONE,
    "Models.WorldModel.HeadLayers": COUNT,
    "Models.WorldModel.RewardBins": BINS,
    "Models.WorldModel.BinLimit": BIN_LIMIT,
    "Models.WorldModel.DynamicsWeight": NOT_NEGATIVE,
    "Models.WorldModel.RepresentationWeight": NOT_NEGATIVE,
    "Models.WorldModel.FreeNats": NOT_NEGATIVE,
    "Models.WorldModel.LearningRate": NOT_NEGATIVE,
    "Models.WorldModel.AdamEps": POSITIVE,
    "Models.WorldModel.MaxGradNorm": POSITIVE,
    "Models.Agent.NumLayers": COUNT,
    "Models.Agent.HiddenDim": WIDTH,
    "Models.Agent.NormEps": POSITIVE,
    "Models.Agent.Gamma": PROBABILITY,
    "Models.Agent.Lambda": PROBABILITY,
    "Models.Agent.EntropyCoef": NOT_NEGATIVE,
    "Models.Agent.ValueBins": BINS,
    "Models.Agent.BinLimit": BIN_LIMIT,
    "Models.Agent.SlowCriticDecay": PROBABILITY,
    "Models.Agent.ReturnDecay": PROBABILITY,
    "Models.Agent.ReturnPercentileLow": Range(0, 1, open_low=True),
    "Models.Agent.ReturnPercentileHigh": Range(0, 1, open_low=True),
    "Models.Agent.ReturnScaleFloor": POSITIVE,
    "Models.Agent.LearningRate": NOT_NEGATIVE,
    "Models.Agent.AdamEps": POSITIVE,
    "Models.Agent.MaxGradNorm": POSITIVE,
    "Models.MaskGit.VocabSize": Range(2, 2**16),
    "Models.MaskGit.VocabDim": WIDTH,
    "Models.MaskGit.T_revise": WIDTH,
    "Models.MaskGit.T_draft": WIDTH,
    "Models.MaskGit.M": Range(0, 1_024),
    "Models.MaskGit.MinMaskRatio": Range(0, 1, open_low=True),
    "Models.MaskGit.NormEps": POSITIVE,
    "Models.MaskGit.InitStd": NOT_NEGATIVE,
    "Models.MaskGit.TmfArgs.EmbedDim": WIDTH,
    "Models.MaskGit.TmfArgs.MlpDim": WIDTH,
    "Models.MaskGit.TmfArgs.NumHeads": COUNT,
    "Models.MaskGit.TmfArgs.NumLayers": COUNT,
    "Models.MaskGit.TmfArgs.Dropout": RATE_BELOW_ONE,
    "Models.MaskGit.TmfArgs.AttentionDropout": RATE_BELOW_ONE,
    "Evaluation.NumEpisodes": Range(1, 10**6),
    "Evaluation.NumEnvs": COUNT,
    "Evaluation.VideoWindows": COUNT,
    "Evaluation.PredictionWindows": COUNT,
    "Evaluation.PredictionHorizon": COUNT,
    "Health.MinEntropy": PROBABILITY,
    "Health.MaxEntropy": PROBABILITY,
    "Health.MaxRewardGap": NOT_NEGATIVE,
    "Health.RewardScale": NOT_NEGATIVE,
    "Health.RewardSteps": STEPS,
    "Health.MinExplained": Range(-math.inf, 1),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "Task": ("JointTrainAgent",),
    "BasicSettings.Precision": ("auto", "bfloat16", "float16", "float32"),
    "BasicSettings.Compile": ("auto", "never", "always"),
    "JointTrainAgent.ModelType": ("STORM", "GITSTORM"),
}
PATTERNS: dict[str, tuple[str, str]] = {
    "BasicSettings.device": (DEVICE_PATTERN, "auto, cuda, cuda:N, mps or cpu"),
    "Models.MaskGit.MaskSchedule": (
        r"cosine|uniform|log|exp|pow(0\.0*)?[1-9]\d{0,2}(\.\d{1,6})?",
        "cosine, uniform, log, exp or pow<d>, as in pow2 or pow0.5",
    ),
}


def show(value: Any) -> str:
    """`value` as an error message quotes it: in one short line, control characters escaped."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_value(key: str, value: Any) -> None:
    """Raise UserError unless `value`, already of its key's type, is possible for `key` on its own."""
    if isinstance(value, str):
        _check_text(key, value)
    if value is None or isinstance(value, bool):
        return
    if key in RANGES and value not in RANGES[key]:
        raise UserError(f"{key}={value}: must be {RANGES[key]}")
    if key in CHOICES and value not in CHOICES[key]:
        valid = " or ".join(CHOICES[key])
        raise UserError(f"{key}={show(value)}: must be {valid}{nearest(value, CHOICES[key])}")
    if key in PATTERNS and not re.fullmatch(PATTERNS[key][0], value, re.ASCII):
        raise UserError(f"{key}={show(value)}: must be {PATTERNS[key][1]}")


def _check_text(key: str, text: str) -> None:
    if not text.isprintable():
        raise UserError(f"{key}={show(text)}: must not contain control characters or broken text")
    if not text.strip() or text == "???":
        raise UserError(f"{key}={show(text)}: must not be empty; null unsets a key that may be unset")
    if "${" in text:
        raise UserError(f"{key}={show(text)}: '${{' is not evaluated here; write the value itself")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{key}={show(text)}: must be at most {LONGEST_TEXT:,} characters long")


def check_run_name(name: str) -> None:
    """Raise UserError unless `name` can be the name of a folder inside `outputs/` and `runs/`."""
    complaint = ""
    if name != name.strip() or not name or not name.isprintable():
        complaint = "must not be empty, start or end with a space, or contain control characters"
    elif "/" in name or "\\" in name or ".." in name or name.startswith((".", "-")):
        complaint = "must be a plain name: no '/', '\\' or '..', and not starting with '.' or '-'"
    elif len(name.encode()) > LONGEST_RUN_NAME:
        complaint = f"must be at most {LONGEST_RUN_NAME} bytes long, not {len(name.encode())}"
    if complaint:
        raise UserError(f"run name (BasicSettings.n) {show(name)}: {complaint}")


def check_config(config: Config) -> None:
    """Raise UserError for the first pair of settings that cannot go together."""
    if config.BasicSettings.n is not None:
        check_run_name(config.BasicSettings.n)
    for rules in (_model_conflicts, _length_conflicts, _replay_conflicts):
        for is_wrong, complaint in rules(config):
            if is_wrong:
                raise UserError(complaint)


def _model_conflicts(config: Config) -> Iterator[tuple[bool, str]]:
    size = config.BasicSettings.ImageSize
    yield size & (size - 1) != 0, f"BasicSettings.ImageSize={size}: must be 4·2^n, as in 16, 32, 64 or 128"
    model, agent, maskgit = config.Models.WorldModel, config.Models.Agent, config.Models.MaskGit
    width, latents = model.TransformerHiddenDim, model.NumLatents
    heads = model.TransformerNumHeads
    yield (
        width % heads != 0,
        f"Models.WorldModel.TransformerNumHeads={heads}: must divide TransformerHiddenDim={width}",
    )
    yield width % 2 != 0, f"Models.WorldModel.TransformerHiddenDim={width}: must be even"
    heads, embedding = maskgit.TmfArgs.NumHeads, maskgit.TmfArgs.EmbedDim
    yield (
        embedding % heads != 0,
        f"Models.MaskGit.TmfArgs.NumHeads={heads}: must divide Models.MaskGit.TmfArgs.EmbedDim={embedding}",
    )
    yield (
        maskgit.VocabSize not in (None, model.NumClasses),
        f"Models.MaskGit.VocabSize={maskgit.VocabSize}: must be null or "
        f"Models.WorldModel.NumClasses={model.NumClasses}",
    )
    for key in ("T_draft", "T_revise"):
        groups = getattr(maskgit, key)
        complaint = f"must be at most Models.WorldModel.NumLatents={latents}"
        yield groups > latents, f"Models.MaskGit.{key}={groups}: {complaint}"
    yield (
        config.JointTrainAgent.ModelType == "GITSTORM" and width % latents != 0,
        f"Models.WorldModel.NumLatents={latents}: must divide TransformerHiddenDim={width} with GITSTORM",
    )
    low, high = agent.ReturnPercentileLow, agent.ReturnPercentileHigh
    yield low >= high, f"Models.Agent.ReturnPercentileLow={low}: must be below ReturnPercentileHigh={high}"


def _length_conflicts(config: Config) -> Iterator[tuple[bool, str]]:
    run, longest = config.JointTrainAgent, config.Models.WorldModel.TransformerMaxLength
    limit = f"Models.WorldModel.TransformerMaxLength={longest}"
    for key in ("BatchLength", "ActingContextLength"):
        length = getattr(run, key)
        yield length > longest, f"JointTrainAgent.{key}={length}: must be at most {limit}"
    context, horizon = run.ImagineContextLength, run.ImagineBatchLength
    yield (
        context + horizon > longest,
        f"JointTrainAgent.ImagineContextLength={context} and ImagineBatchLength={horizon}: "
        f"their sum must be at most {limit}",
    )
    frames, skip = config.Environment.MaxEpisodeFrames, config.Environment.FrameSkip
    yield (
        frames < skip,
        f"Environment.MaxEpisodeFrames={frames}: must be at least Environment.FrameSkip={skip}",
    )


def _replay_conflicts(config: Config) -> Iterator[tuple[bool, str]]:
    run, count = config.JointTrainAgent, config.JointTrainAgent.NumEnvs
    warm_up = f"JointTrainAgent.BufferWarmUp={run.BufferWarmUp}"
    capacity = run.BufferMaxLength // count * count
    yield (
        run.BufferWarmUp > capacity,
        f"{warm_up}: must be at most the {capacity} steps that BufferMaxLength={run.BufferMaxLength} "
        f"holds with NumEnvs={count}",
    )
    longest = max(run.BatchLength, run.ImagineContextLength)
    yield (
        run.BufferWarmUp < longest * count,
        f"{warm_up}: must be at least {longest * count}, one window of {longest} steps "
        f"for each of NumEnvs={count}",
    )
    yield (
        run.UseDemonstration and config.BasicSettings.trajectory_path is None,
        "JointTrainAgent.UseDemonstration=True: needs BasicSettings.trajectory_path, an .npz or .pkl file",
    )


def warnings_about(config: Config) -> list[str]:
    """One line for each setting that is possible but probably not meant."""
    run = config.JointTrainAgent
    used = max(run.ImagineContextLength + run.ImagineBatchLength, run.ActingContextLength)
    if run.BatchLength >= used:
        return []
    return [
        f"JointTrainAgent.BatchLength={run.BatchLength}: imagination and acting use positions up to "
        f"{used}, which windows this short never train (the paper's windows have 64 steps)"
    ]
