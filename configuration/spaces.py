"""What a model needs to know of an environment: the form of its observations and of its actions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ObservationSpec:
    """One observation: an image, uint8 (S, S, channels), or a vector, float32 (n,)."""

    kind: str  # "image" or "vector"
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Name of the dtype that observations are stored and given in."""
        return "uint8" if self.kind == "image" else "float32"


@dataclass(frozen=True)
class ActionSpec:
    """One action: a class, int64 (), or a point of [−1, 1]^size, float32 (size,)."""

    kind: str  # "discrete" or "continuous"
    size: int  # number of classes, or of dimensions

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return () if self.kind == "discrete" else (self.size,)

    @property
    def dtype(self) -> str:
        """Name of the dtype that actions are stored in."""
        return "int64" if self.kind == "discrete" else "float32"


@dataclass(frozen=True)
class Spaces:
    """What an agent sees and does."""

    observation: ObservationSpec
    action: ActionSpec

    def __str__(self) -> str:
        seen, done = self.observation, self.action
        return f"{seen.kind} observations {seen.shape} and {done.size} {done.kind} actions"
