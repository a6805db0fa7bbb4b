"""What a sweep's command line asks for: the grid, and how to run it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configuration.checks import show
from configuration.keys import BOOLEANS
from configuration.schema import schema
from evaluation.scores import reference_scores
from utils import UserError, nearest

ATARI_100K = "atari100k"
EVALUATE = "evaluate"  # the word for a command that only evaluates
LOCAL = "local"
MOST_RETRIES = 1_000
MOST_CPUS = 1_024
HIGHEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Options:
    """A sweep, as typed; nothing in it has been looked up yet."""

    games: tuple[str, ...]  # bare games or Gymnasium ids
    seeds: tuple[int, ...]
    configs: tuple[str, ...]  # names in config_files/ or paths
    address: str  # "local", or that of a Ray cluster
    cpus_per_run: float
    gpus_per_run: float | None  # None: a whole card, if there are cards
    retries: int
    storage: Path  # absolute; holds outputs/ and runs/
    train: bool
    evaluate: bool
    report: bool
    overrides: tuple[str, ...]  # Section.Key=value
    eval_options: tuple[str, ...]  # of eval.py

    def grid(self) -> Iterator[tuple[str, int, str]]:
        """(game, seed, config) of every run: all configs of a game together, all games of a seed first."""
        for seed in self.seeds:
            for game in self.games:
                for config in self.configs:
                    yield game, seed, config


@dataclass(frozen=True)
class Option:
    """One `name=value` of the command line."""

    default: str | None  # as it would be typed; None: must be given
    parse: Callable[[str], Any]
    meaning: str


def split_list(text: str) -> tuple[str, ...]:
    """The items of `[a,b]` or `a,b`, each once.

    Raises UserError if there is none, or if a bracket stands alone.
    """
    inner = text.strip()
    if inner.startswith("[") != inner.endswith("]"):
        raise UserError(f"{show(text)}: has one bracket of two")
    items = (item.strip() for item in inner.removeprefix("[").removesuffix("]").split(","))
    named = tuple(dict.fromkeys(item for item in items if item))
    if not named:
        raise UserError(f"{show(text)}: must name at least one")
    return named


def parse_games(text: str) -> tuple[str, ...]:
    """A list of games in which `atari100k` stands for the benchmark's 26."""
    games: list[str] = []
    for name in split_list(text):
        games += reference_scores()[1] if name == ATARI_100K else [name]
    return tuple(dict.fromkeys(games))


def parse_seeds(text: str) -> tuple[int, ...]:
    """A list of whole numbers."""
    return tuple(dict.fromkeys(_whole(item, HIGHEST_SEED) for item in split_list(text)))


def _whole(text: str, highest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) > highest:
        raise UserError(f"{show(text)}: must be a whole number from 0 to {highest:,}")
    return int(text)


def parse_retries(text: str) -> int:
    """How often in a row a run is started again without coming further."""
    return _whole(text, MOST_RETRIES)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{show(text)}: must be a number")
    return number


def parse_cpus(text: str) -> float:
    """CPU cores that a run asks Ray for."""
    number = _number(text)
    if not 0 < number <= MOST_CPUS:
        raise UserError(f"{show(text)}: must be greater than 0 and at most {MOST_CPUS:,}")
    return number


def parse_gpus(text: str) -> float | None:
    """The share of a card that a run asks Ray for; None for `auto`."""
    if text == "auto":
        return None
    number = _number(text)
    if not 0 <= number <= 1:
        raise UserError(f"{show(text)}: must be auto or from 0 to 1, as a run uses one card or a part of it")
    return number


def parse_boolean(text: str) -> bool:
    """True or false, in the words that settings take."""
    if text.lower() not in BOOLEANS:
        raise UserError(f"{show(text)}: must be true or false")
    return BOOLEANS[text.lower()]


def parse_storage(text: str) -> Path:
    """An existing folder, as an absolute path."""
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"{show(text)}: no such folder")
    return path


def parse_address(text: str) -> str:
    """Where Ray runs."""
    if not text.strip() or not text.isprintable():
        raise UserError(f"{show(text)}: must be local, auto, or an address such as 10.0.0.1:6379")
    return text


OPTIONS: dict[str, Option] = {
    "games": Option(None, parse_games, "games or Gymnasium ids; atari100k is the benchmark's 26"),
    "seeds": Option("0", parse_seeds, "whole numbers"),
    "configs": Option("STORM", split_list, "names in config_files/, or paths of YAML files"),
    "cpus_per_run": Option("1", parse_cpus, "CPU cores of a run; as many run at once as fit the machine"),
    "gpus_per_run": Option("auto", parse_gpus, "share of a card, as 0.5; auto: a whole one if there is any"),
    "retries": Option("3", parse_retries, "restarts in a row of a run that dies without coming further"),
    "evaluate": Option("true", parse_boolean, "evaluate each run when it is trained"),
    "report": Option("false", parse_boolean, "write outputs/report/ at the end"),
    "storage": Option(".", parse_storage, "folder of outputs/ and runs/; on a cluster, one that nodes share"),
    "address": Option(LOCAL, parse_address, "local (this machine), or a Ray cluster: auto or host:port"),
}
# Settings that the sweep gives each run, and what to write instead.
OWN_SETTINGS = {
    "BasicSettings.env_name": "name the games with games=",
    "BasicSettings.Seed": "name the seeds with seeds=",
    "BasicSettings.config_path": "name the files with configs=",
    "BasicSettings.n": "a sweep names its runs <Game>-<config>-seed_<seed>",
    "BasicSettings.Restart": "a retried run would start over; restart single runs with train.py",
}


def help_text() -> str:
    """The text of --help."""
    lines = [
        "usage: python sweep.py games=Boxing,Pong [option=value ...] [Section.Key=value ...]",
        "       python sweep.py evaluate games=Boxing,Pong [option=value ...] [eval.py options]",
        "",
        "Trains and evaluates every game × seed × config. Finished runs are skipped and stopped ones",
        "continued, so the same command may be repeated. Ctrl-C stops; what runs is saved first.",
        "",
    ]
    for name, option in OPTIONS.items():
        default = "" if option.default is None else f"  [{option.default}]"
        lines.append(f"  {name + '=':14} {option.meaning}{default}")
    lines += ["", "Any setting of `python train.py --help` may be added; it applies to all runs."]
    return "\n".join(lines)


def parse_options(arguments: Sequence[str]) -> Options:
    """Read a command line.

    Raises UserError for an unknown or impossible option; settings are checked with their configs.
    """
    first = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    own, eval_options = list(arguments[:first]), []
    for word in arguments[first:]:  # those of eval.py, among which ours may stand
        is_ours = word == EVALUATE or word.partition("=")[0] in OPTIONS
        (own if is_ours else eval_options).append(word)
    evaluate_only = EVALUATE in own
    words = [word for word in own if word != EVALUATE]
    if eval_options and not evaluate_only:
        raise UserError(f"argument {show(eval_options[0])}: options are given as name=value; see --help")
    texts, overrides = _sort_out(words)
    values = {name: _value(name, option, texts) for name, option in OPTIONS.items()}
    values["evaluate"] = values["evaluate"] or evaluate_only
    if evaluate_only and overrides:
        raise UserError(f"{overrides[0]}: a run is evaluated with its saved settings; see eval.py --help")
    return Options(
        **values, train=not evaluate_only, overrides=tuple(overrides), eval_options=tuple(eval_options)
    )


def _sort_out(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Texts of options by name, and the settings, with their paths made absolute."""
    texts: dict[str, str] = {}
    overrides: list[str] = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"argument {show(word)}: options are given as name=value; see --help")
        if name in OWN_SETTINGS:
            raise UserError(f"{name}: {OWN_SETTINGS[name]}")
        if name in OPTIONS:
            texts[name] = text
        elif "." in name or name in schema():
            overrides.append(f"{name}={_from_here(name, text)}")
        else:
            raise UserError(f"unknown option {show(name)}{nearest(name, [*OPTIONS, *schema()])}; see --help")
    return texts, overrides


def _from_here(name: str, text: str) -> str:
    """A path meant from where the command is typed, made absolute if it is there."""
    if name in ("BasicSettings.trajectory_path", "BasicSettings.pretrained_path") and Path(text).exists():
        return str(Path(text).absolute())
    return text


def _value(name: str, option: Option, texts: dict[str, str]) -> Any:
    text = texts.get(name, option.default)
    if text is None:
        raise UserError(f"{name}= is missing: say which, as in {name}=Boxing,Pong; see --help")
    try:
        return option.parse(text)
    except UserError as error:
        raise UserError(f"{name}={error}") from error
