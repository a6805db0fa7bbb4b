"""Human-normalised scores of Atari games."""

from __future__ import annotations

import functools
import json
import re

from utils import REPOSITORY

PUBLISHED = REPOSITORY / "results" / "published.json"


@functools.cache
def reference_scores() -> tuple[dict[str, float], dict[str, float]]:
    """Scores by game of random play and of a human, as the Atari-100k literature uses them."""
    published = json.loads(PUBLISHED.read_text())
    return published["random"], published["human"]


def game_of(env_name: str) -> str:
    """The game's name in a Gymnasium id: "Boxing" of "ALE/Boxing-v5"."""
    return re.sub(r"^(?:\w+/)?(\w+?)-v\d+$", r"\1", env_name)


def human_normalised(env_name: str, score: float) -> float | None:
    """(score − random)/(human − random); None for a game without a human reference."""
    random, human = reference_scores()
    game = game_of(env_name)
    if game not in human:
        return None
    return (score - random[game]) / (human[game] - random[game])
