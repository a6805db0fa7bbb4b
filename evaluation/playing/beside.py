"""A policy that dreams while it acts, for films of the dream beside the game."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compute.random_streams import RandomStreams, derive_seed
from evaluation.playing.dreaming import Dream, imagined_lengths
from evaluation.policies import EvaluationPolicy


class DreamingPolicy(EvaluationPolicy):
    """Acts as `EvaluationPolicy` does, and follows environment 0 in a dream.

    The dream takes the same actions; it begins anew in what is really seen after as many steps as the
    actor was trained on. `imagined` is what it expects to be seen next: uint8 (S, S, C) or float32 (n,).
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        streams = RandomStreams(derive_seed(self.seed, "dream"), self.streams.device)
        self._dream = Dream.of(self, lambda *shape: streams.uniform("dream", *shape))
        context, self._horizon = imagined_lengths(self.config.JointTrainAgent)
        self._seen: deque[Tensor] = deque(maxlen=context + 1)
        self._done: deque[Tensor] = deque(maxlen=context)
        self._steps = 0
        spec = self.world_model.spaces.observation
        self.imagined = np.zeros(spec.shape, spec.dtype)

    def act(self, observation: Tensor | np.ndarray) -> np.ndarray:
        """Return actions (N, ...) on observations (N, *shape)."""
        actions = super().act(observation)
        action = torch.as_tensor(actions[0]).to(self.streams.device)
        self._seen.append(torch.as_tensor(observation[0]).to(self.streams.device))
        if self._steps % self._horizon == 0:
            past = torch.stack([*self._done, action])[:-1]  # may be empty
            self._dream.begin(torch.stack([*self._seen]), past)
        self._dream.step(action)
        self._done.append(action)
        self._steps += 1
        self.imagined = self._dream.picture()
        return actions

    def drop_last_step(self) -> None:
        """Forget what was before: the environment failed, and the dream begins anew with its next episode."""
        super().drop_last_step()
        self._seen.clear(), self._done.clear()
        self._steps = 0
