"""Human-normalised scores of Atari games."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from utils import REPOSITORY

ATARI_ID = re.compile(r"(?:[\w.]+:)?ALE/(\w+)-v\d+")
OLD_ATARI_ID = re.compile(r"(?:ale_py:)?(\w+?)(?:NoFrameskip|Deterministic)?-v\d+")


@functools.cache
def published_scores() -> dict[str, Any]:
    """Return what results/published.json holds."""
    return json.loads((REPOSITORY / "results" / "published.json").read_text(encoding="utf-8"))


def reference_scores() -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores by game of random play and of a person, as the Atari-100k literature uses them."""
    return published_scores()["random"], published_scores()["human"]


def game_of(env_name: str) -> str:
    """Return which game a Gymnasium id names: "Boxing" of "ale_py:ALE/Boxing-v5".

    Other environments are told by their ids, "CartPole-v1": versions of one name differ as games do.
    """
    if atari := ATARI_ID.fullmatch(env_name):
        return atari[1]
    old = OLD_ATARI_ID.fullmatch(env_name)
    if old and old[1] in reference_scores()[1]:
        return old[1]
    return re.sub(r"^[\w.]+:", "", env_name)


def human_normalised(env_name: str, score: float) -> float | None:
    """Return (score − random)/(human − random); None for a game without a human reference."""
    random, human = reference_scores()
    game = game_of(env_name)
    if game not in human:
        return None
    return (score - random[game]) / (human[game] - random[game])
