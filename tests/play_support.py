"""A small session of play.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests_support import CPU, small_config

from agents import make_models
from compute.execution import Execution
from configuration.schema import EnvironmentConfig
from evaluation.episodes import environment_spaces
from evaluation.playing.session import Session
from evaluation.policies import EvaluationPolicy, TrainedModels


def make_session(
    folder: Path, model_type: str = "GITSTORM", env_name: str = "Diagnostic/Catch-v0", **settings: Any
) -> Session:
    """A model that has learnt nothing, and its game; `settings` are of Environment."""
    torch.manual_seed(0)
    config = small_config(model_type)
    config.BasicSettings.env_name = env_name
    config.Environment = EnvironmentConfig(**settings)
    spaces = environment_spaces(config)
    models = TrainedModels(*make_models(config, spaces, CPU))
    policy = EvaluationPolicy(config, models, 1, Execution(config.BasicSettings, CPU), 0, False)
    return Session(policy, folder, "catch")
