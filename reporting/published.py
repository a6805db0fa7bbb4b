"""Published Atari-100k scores, from results/published.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.scores import human_normalised, published_scores, reference_scores

REFERENCE = "STORM"  # the published method that every run is set beside
BENCHMARK_STEP = 100_000  # environment steps after which "Atari 100k" scores are compared
FREEWAY = "Freeway"  # the game that STORM only learns from a demonstration
WITH_DEMONSTRATION = "STORM_Freeway33.5"  # the published method whose score of FREEWAY is of one


@dataclass(frozen=True)
class Published:
    """The scores of results/published.json that runs are put beside."""

    methods: dict[
        str, dict[str, Any]
    ]  # source, note, and "seeds" (game -> returns of runs) or "mean" (game -> one)
    fragments: dict[str, dict[str, Any]]  # the same of methods of which only some games are known
    printed: dict[str, dict[str, Any]]  # aggregates as their papers print them
    not_found: list[str]  # what was looked for and is not published

    @property
    def games(self) -> tuple[str, ...]:
        """The 26 games of the benchmark, in alphabetical order."""
        return tuple(sorted(reference_scores()[1]))

    def seed_range(self, game: str) -> tuple[float, float, float] | None:
        """Return mean, lowest and highest published return of STORM on a game; None if there are none."""
        runs = self.methods[REFERENCE]["seeds"].get(game)
        return None if runs is None else (float(np.mean(runs)), float(min(runs)), float(max(runs)))

    def note(self, game: str) -> str:
        """Return what must be known about STORM's published score of a game; "" if nothing."""
        seeds = self.methods.get(WITH_DEMONSTRATION, {}).get("seeds", {})
        return f"{seeds[game][0]:g} with a demonstration" if game == FREEWAY and game in seeds else ""


def normalised(game: str, score: Any) -> Any:
    """Return the human-normalised score of a return, or of an array of returns, in one of the 26 games."""
    return human_normalised(f"ALE/{game}-v5", np.asarray(score, dtype=float))


def load_published() -> Published:
    """Return what results/published.json holds."""
    content = published_scores()
    parts = ("methods", "partial", "published_aggregates", "not_found")
    return Published(*(content[key] for key in parts))
