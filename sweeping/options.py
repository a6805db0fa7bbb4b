"""What a sweep's command line asks for: the grid, and how to run it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configuration.checks import show
from configuration.keys import Range, fixed
from configuration.schema import keys_of, schema
from evaluation.scores import reference_scores
from utils import UserError, nearest, typed_path

ATARI_100K = "atari100k"
EVALUATE = "evaluate"  # a stage, and the word for a command that has no other
LOCAL = "local"
ONLY = "only"
FROM_GRID = ("BasicSettings.env_name", "BasicSettings.Seed", "BasicSettings.config_path")
PATHS = ("BasicSettings.trajectory_path", "BasicSettings.pretrained_path")
USAGE = """\
usage: python sweep.py games=Boxing,Pong [option=value ...] [Section.Key=value ...]
       python sweep.py evaluate games=Boxing,Pong [option=value ...] [eval.py options]

Trains and evaluates every game × seed × config. Finished runs are skipped and stopped ones
continued, so the same command may be repeated. Ctrl-C stops; what runs is saved first.
"""


@dataclass
class Options:
    """A sweep; all but the last two are options of its command line."""

    games: list[str] = fixed([], f"games or Gymnasium ids; {ATARI_100K} is the benchmark's 26")
    seeds: list[str] = fixed(["0"], "whole numbers")
    configs: list[str] = fixed(["STORM"], "names in config_files/, or paths of YAML files")
    cpus_per_run: float = fixed(1.0, "CPU cores of a run; as many run at once as fit", Range(0.01, 1_024))
    gpus_per_run: float | None = fixed(
        None, "share of a card, as 0.5; null: a whole one, if any", Range(0, 1)
    )
    retries: int = fixed(3, "restarts in a row of a run that dies without coming further", Range(0))
    evaluate: bool = fixed(True, "evaluate each run when it is trained")
    report: bool = fixed(True, "write outputs/report/ at the end")
    storage: str = fixed(".", "folder of outputs/ and runs/; on a cluster, one that nodes share")
    address: str = fixed(LOCAL, f"{LOCAL} (this machine), or a Ray cluster: auto or host:port")
    task: str | None = fixed(None, f"train this run of the grid, in this process: a number, or {ONLY}")
    evaluate_only: bool = False
    others: list[str] = field(default_factory=list)  # Section.Key=value, or options of eval.py

    def grid(self) -> list[tuple[str, str, str]]:
        """Return (game, seed, config) of every run: configs vary fastest, then games, then seeds.

        Raise UserError if there is none.
        """
        games, seeds, configs = (list(names(words)) for words in (self.games, self.seeds, self.configs))
        cells = [(game, seed, config) for seed in seeds for game in games for config in configs]
        if not cells:
            raise UserError("games=, seeds= and configs= must each name at least one")
        return list(dict.fromkeys(cells))


OPTIONS = dict(list(keys_of(Options()))[:-2])


def names(words: Sequence[str]) -> Iterator[str]:
    """Yield names that may stand in brackets; for `atari100k` the benchmark's 26 games."""
    for name in filter(None, (word.strip("[] ") for word in words)):
        yield from reference_scores()[1] if name == ATARI_100K else [name]


def help_text() -> str:
    """Return the text of --help."""
    lines = [f"  {name + '=':14} {key.meaning}  [{key.shown_default}]" for name, key in OPTIONS.items()]
    return "\n".join([USAGE, *lines, "", "Any setting of `python train.py --help` may be added."])


def parse_options(arguments: Sequence[str]) -> Options:
    """Read a command line.

    Raise UserError for an impossible option; other words are checked with what they are for.
    """
    ours = [word for word in arguments if "=" in word and word.partition("=")[0] in OPTIONS]
    others = [word for word in arguments if word not in ours and word != EVALUATE]
    evaluate_only = EVALUATE in arguments
    values = {name: _read(name, text) for name, _, text in (word.partition("=") for word in ours)}
    options = Options(**values, evaluate_only=evaluate_only)
    options.others = others if evaluate_only else [_checked(word) for word in others]
    options.storage = str(typed_path(options.storage).absolute())
    if Path(options.storage).is_dir():
        return options
    raise UserError(f"storage={options.storage}: no such folder")


def _read(name: str, text: str) -> Any:
    try:
        return OPTIONS[name].read(text)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{name}={show(text)}: must be {OPTIONS[name].expected}") from error


def _checked(setting: str) -> str:
    """Return a setting of all runs, its path absolute. Raise UserError for one that the grid gives."""
    name, _, text = setting.partition("=")
    if "." not in name and name not in schema():
        raise UserError(f"unknown option {show(name)}{nearest(name, OPTIONS)}; see --help")
    if name in FROM_GRID:
        raise UserError(f"{name}: games=, seeds= and configs= give it")
    path = typed_path(text)  # meant from where the command is typed
    return f"{name}={path.absolute()}" if name in PATHS and path.exists() else setting
