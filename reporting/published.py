"""Published Atari-100k scores (results/published.json) and the human-normalised score."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError

REFERENCE = "STORM"  # the published method that every run is set beside
BENCHMARK_STEP = 100_000  # environment steps after which "Atari 100k" scores are compared


@dataclass(frozen=True)
class Method:
    name: str
    source: str
    note: str
    seeds: dict[str, np.ndarray] | None  # game -> returns (runs,); None where only means are published
    means: dict[str, float]  # game -> mean return


@dataclass(frozen=True)
class Published:
    random: dict[str, float]  # game -> return of a random policy
    human: dict[str, float]  # game -> return of a person
    methods: dict[str, Method]
    fragments: dict[str, dict[str, Any]]  # methods of which only some games are known
    printed: dict[str, dict[str, Any]]  # aggregates as their papers print them
    not_found: tuple[str, ...]  # what was looked for and is not published

    @property
    def games(self) -> tuple[str, ...]:
        """The 26 games of the benchmark, in alphabetical order."""
        return tuple(sorted(self.random))

    def normalise(self, game: str, score: Any) -> Any:
        """(score − random) / (human − random) of a return or an array of returns in one of `games`."""
        return (np.asarray(score, dtype=float) - self.random[game]) / (self.human[game] - self.random[game])

    def seed_range(self, method: str, game: str) -> tuple[float, float, float] | None:
        """Mean, lowest and highest return of a method's published runs of a game; None if there are none."""
        runs = (self.methods[method].seeds or {}).get(game)
        return None if runs is None else (float(runs.mean()), float(runs.min()), float(runs.max()))


def load_published(results: Path) -> Published:
    """Read `results`/published.json. Raises UserError if it is missing or not in its form."""
    path = results / "published.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Published(
            random=content["random"],
            human=content["human"],
            methods={name: _method(name, entry) for name, entry in content["methods"].items()},
            fragments=content["partial"],
            printed=content["published_aggregates"],
            not_found=tuple(content["not_found"]),
        )
    except FileNotFoundError as error:
        raise UserError(f"no {path}: give the repository's results folder with --results-dir") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a table of published scores: {error!r}") from error


def _method(name: str, entry: dict[str, Any]) -> Method:
    seeds = entry.get("seeds")
    runs = {game: np.asarray(scores, dtype=float) for game, scores in seeds.items()} if seeds else None
    means = {game: float(scores.mean()) for game, scores in runs.items()} if runs else entry["mean"]
    return Method(name, entry["source"], entry.get("note", ""), runs, means)
