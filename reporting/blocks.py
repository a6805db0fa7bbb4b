"""What a report is made of: sections of tables, pictures, videos and remarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reporting.markup import Table
from reporting.published import Published
from reporting.runs import Run
from reporting.videos import Video


@dataclass(frozen=True)
class Material:
    """What sections are made from."""

    runs: Sequence[Run]
    left_out: Sequence[str]  # which runs could not be used, and why
    published: Published
    folder: Path  # figures are drawn into it
    palette: dict[str, str]  # label -> colour, the same in every figure


@dataclass(frozen=True)
class Picture:
    svg: Path  # a .png of the same name lies beside it
    caption: str
    small: bool = False  # several fit beside each other


@dataclass(frozen=True)
class Remarks:
    lines: Sequence[str]


Block = Table | Picture | Video | Remarks


@dataclass(frozen=True)
class Section:
    title: str
    explanation: str  # what it shows and how to read it
    blocks: list[Block] = field(default_factory=list)
    data: list[Table] = field(default_factory=list)  # written as CSV
