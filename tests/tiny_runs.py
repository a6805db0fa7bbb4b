"""Runs of seconds: the settings, and train.py and eval.py called within the test's own process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eval as evaluation_command
import train as training_command
from environments.workers import IGNORED_SIGNALS
from utils import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS, WARM_UP, SAVE_EVERY = 120, 40, 50
CONTEXT, HORIZON = 4, 3
MASK_GIT = (
    "VocabDim=16",
    "TmfArgs.EmbedDim=16",
    "TmfArgs.MlpDim=16",
    "TmfArgs.NumHeads=2",
    "TmfArgs.NumLayers=1",
)
SMALL = [
    "BasicSettings.env_name=ALE/KungFuMaster-v5",
    "BasicSettings.ImageSize=16",
    "BasicSettings.device=cpu",
    "BasicSettings.Precision=float32",
    "BasicSettings.Compile=never",
    "BasicSettings.NumThreads=1",
    "BasicSettings.silent=true",
    "Environment.MaxEpisodeFrames=100",
    f"JointTrainAgent.SampleMaxSteps={STEPS}",
    "JointTrainAgent.BufferMaxLength=90",
    f"JointTrainAgent.BufferWarmUp={WARM_UP}",
    "JointTrainAgent.BatchSize=2",
    "JointTrainAgent.BatchLength=8",
    "JointTrainAgent.ImagineBatchSize=4",
    f"JointTrainAgent.ImagineContextLength={CONTEXT}",
    f"JointTrainAgent.ImagineBatchLength={HORIZON}",
    "JointTrainAgent.ActingContextLength=6",
    "JointTrainAgent.TrainDynamicsEverySteps=2",
    "JointTrainAgent.TrainAgentEverySteps=3",
    f"JointTrainAgent.SaveEverySteps={SAVE_EVERY}",
    "JointTrainAgent.LogEverySteps=20",
    "Models.WorldModel.StemChannels=2",
    "Models.WorldModel.NumLatents=4",
    "Models.WorldModel.NumClasses=5",
    "Models.WorldModel.TransformerHiddenDim=16",
    "Models.WorldModel.TransformerNumHeads=2",
    "Models.WorldModel.TransformerMaxLength=16",
    "Models.WorldModel.RewardBins=15",
    "Models.Agent.ValueBins=15",
    "Models.Agent.HiddenDim=16",
    "Models.Agent.NumLayers=1",
    "Evaluation.NumEpisodes=2",
    "Evaluation.NumEnvs=1",
    *(f"Models.MaskGit.{setting}" for setting in MASK_GIT),
]
GIT_STORM = "JointTrainAgent.ModelType=GITSTORM"


@dataclass(frozen=True)
class Result:
    """What a command came to. code: 2 where it raised a UserError, whose text `error` is."""

    code: int
    out: str
    err: str
    error: str


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Work in `folder`; signal handlers and threads are afterwards as before."""
    before, threads = os.getcwd(), torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in IGNORED_SIGNALS}
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def call(command: Any, folder: Path, *arguments: str) -> Result:
    """`command.main(arguments)` as a process in `folder` would run it."""
    out, err = io.StringIO(), io.StringIO()
    code, error = 2, ""
    with in_folder(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command.main(list(arguments)) or 0
        except UserError as complaint:
            error = str(complaint)
    return Result(code, out.getvalue(), err.getvalue(), error)


def train(folder: Path, name: str, *overrides: str) -> Result:
    """train.py on the small settings, under that run name."""
    return call(training_command, folder, *SMALL, f"BasicSettings.n={name}", *overrides)


def evaluate(folder: Path, *arguments: str) -> Result:
    """eval.py."""
    return call(evaluation_command, folder, *arguments)


def metrics(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [
        json.loads(line) for line in (folder / "outputs" / name / "metrics.jsonl").read_text().splitlines()
    ]


def weights(folder: Path, name: str, step: int = STEPS) -> dict[str, Tensor]:
    """The tensors of both files of a checkpoint."""
    files = {
        model: folder / "outputs" / name / "ckpt" / f"{model}_{step}.pth"
        for model in ("world_model", "agent")
    }
    return {
        f"{model}.{key}": tensor
        for model, file in files.items()
        for key, tensor in torch.load(file, weights_only=True).items()
    }


def without_time(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics but for wall-clock figures."""
    return [{tag: value for tag, value in line.items() if not tag.startswith("time/")} for line in lines]


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    names = [*first, *(name for name in second if name not in first)]
    return [
        name
        for name in names
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    ]
