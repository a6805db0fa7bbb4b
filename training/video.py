"""Training on recorded clips: the world model alone, each step of the loop one update."""

from __future__ import annotations

from typing import Any

import torch

from evaluation.clips import Clips
from training.run import TrainingRun


class VideoRun(TrainingRun):
    """A run whose data are clips, which take the place of environment and replay memory."""

    plays = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._facts["held_out"] = self.replay.others  # so that nothing else is ever judged on

    def _open_data(self, device: torch.device) -> None:
        task = self.config.JointTrainAgent
        self.environment = self.replay = Clips(
            self.config, False, self.directory.outputs.parent, task.BatchLength
        )
        self.notes += self.replay.notes

    def update_models(self) -> None:
        """Take one step: one update of the world model."""
        task = self.config.JointTrainAgent
        self.learner.update_world_model(self.sample("replay", task.BatchSize, 0, task.BatchLength))
        self.step += 1

    def data_metrics(self) -> dict[str, float]:
        """Return the number of frames that are learned from."""
        return {"clips/frames": len(self.replay)}
