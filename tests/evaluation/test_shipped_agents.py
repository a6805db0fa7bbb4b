"""The agents of assets/agents load, act, and have a score beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.policies import SHIPPED, load_policy
from evaluation.tables import read_evaluations

AGENTS = sorted(SHIPPED.iterdir())


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_every_shipped_agent_acts_and_has_a_score(folder: Path) -> None:
    policy = load_policy(folder.name, device="cpu")
    seen = policy.world_model.spaces.observation
    action = policy.act(np.zeros((1, *seen.shape), seen.dtype))
    assert action.shape[0] == 1 and np.isfinite(action).all()
    (score,) = read_evaluations(folder / "score.csv")
    assert (folder / f"world_model_{score.step}.pth").is_file() and score.episodes >= 10
