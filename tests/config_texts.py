"""The release's configuration files, and short ways to load a text or to get the complaint about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from configuration.loading import load_config
from configuration.schema import Config
from utils import UserError

# The files that the released STORM and GIT-STORM shipped, key by key.
RELEASE_YAML = """
Task: JointTrainAgent
BasicSettings:
  Seed: 0
  ImageSize: 64
  ReplayBufferOnGPU: True
  n: GITSTORM-experiment
  config_path: config_files/GITSTORM.yaml
  env_name: ALE/Boxing-v5
  trajectory_path: trajectories/Atari/Atari.pkl
  pretrained_path: None
  device: cuda
  silent: False
hydra:
  run:
    dir: ./outputs
JointTrainAgent:
  ModelType: GITSTORM
  SampleMaxSteps: 102000
  BufferMaxLength: 100000
  BufferWarmUp: 1024
  NumEnvs: 1
  BatchSize: 16
  DemonstrationBatchSize: 4
  BatchLength: 4 #64
  ImagineBatchSize: 1024
  ImagineDemonstrationBatchSize: 256
  ImagineContextLength: 8
  ImagineBatchLength: 16
  TrainDynamicsEverySteps: 1
  TrainAgentEverySteps: 1
  UseDemonstration: False
  SaveEverySteps: 5000
Models:
  WorldModel:
    InChannels: 3
    TransformerMaxLength: 64
    TransformerHiddenDim: 512
    TransformerNumLayers: 2
    TransformerNumHeads: 8
  Agent:
    NumLayers: 2
    HiddenDim: 512
    Gamma: 0.985
    Lambda: 0.95
    EntropyCoef: 3E-4
  MaskGit:
    VocabSize: 32
    VocabDim: 128
    T_revise: 1
    T_draft: 1
    M: 1
    MaskSchedule: cosine
    TmfArgs:
      EmbedDim: 128
      MlpDim: 128
      NumHeads: 8
      NumLayers: 4
      Dropout: 0.0
      AttentionDropout: 0.0
"""

ORIGINAL_STORM_YAML = """
Task: "JointTrainAgent"
BasicSettings:
  Seed: 0
  ImageSize: 64
  ReplayBufferOnGPU: True
JointTrainAgent:
  SampleMaxSteps: 102000
  BufferMaxLength: 100000
  BufferWarmUp: 1024
  NumEnvs: 1
  BatchSize: 16
  DemonstrationBatchSize: 4
  BatchLength: 64
  ImagineBatchSize: 1024
  ImagineDemonstrationBatchSize: 256
  ImagineContextLength: 8
  ImagineBatchLength: 16
  TrainDynamicsEverySteps: 1
  TrainAgentEverySteps: 1
  SaveEverySteps: 2500
  UseDemonstration: False
Models:
  WorldModel:
    InChannels: 3
    TransformerMaxLength: 64
    TransformerHiddenDim: 512
    TransformerNumLayers: 2
    TransformerNumHeads: 8
  Agent:
    NumLayers: 2
    HiddenDim: 512
    Gamma: 0.985
    Lambda: 0.95
    EntropyCoef: 3E-4
"""


def load_text(folder: Path, text: str | bytes, *overrides: str) -> Config:
    path = folder / "custom.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config([f"BasicSettings.config_path={path}", *overrides])


def complaint_about(folder: Path, text: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        load_text(folder, text)
    return str(caught.value)


def complaint_about_overrides(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(list(overrides))
    return str(caught.value)
