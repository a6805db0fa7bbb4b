"""Builds the configuration of a run: defaults ← YAML file ← `Section.Key=value` on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from configuration.checks import check_config, check_run_name, check_value, show, warnings_about
from configuration.schema import Config
from configuration.yaml_files import read_yaml_mapping
from utils import REPOSITORY, UserError, as_file_name, nearest

__all__ = [
    "RESUME_MAY_CHANGE",
    "apply_overrides",
    "check_run_name",
    "config_help",
    "config_to_yaml",
    "differences",
    "load_config",
    "load_saved_config",
]

BASE_KEY = "base"  # top-level key of a YAML file: the file of the same folder it starts from
LONGEST_CHAIN = 8  # files that may start from one another
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True}
BOOLEANS |= {"false": False, "no": False, "off": False, "0": False}
END_OF_SAVED = "..."  # YAML's end of a document
NULLS = ("null", "none", "~")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Key:
    """What the schema says about one setting."""

    type: type  # bool, int, float or str
    may_be_null: bool
    default: Any
    meaning: str
    symbol: str

    @property
    def type_name(self) -> str:
        """The type as a user reads it."""
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        return f"{names[self.type]} or null" if self.may_be_null else names[self.type]


@functools.lru_cache(maxsize=1)
def schema() -> dict[str, Key]:
    """Every setting by its dotted name, in the order of the schema."""
    return dict(_keys_of(Config, ""))


def _keys_of(section: type, prefix: str) -> Iterator[tuple[str, Key]]:
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _keys_of(hint, f"{name}.")
            continue
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        help_text = field.metadata["help"], field.metadata["symbol"]
        yield name, Key(options[0] if options else hint, bool(options), field.default, *help_text)


# A run may be resumed with other values of these: they change neither the models nor the data.
RESUME_MAY_CHANGE = frozenset(
    {
        "BasicSettings.n",
        "BasicSettings.config_path",
        "BasicSettings.trajectory_path",
        "BasicSettings.pretrained_path",
        "BasicSettings.device",
        "BasicSettings.silent",
        "BasicSettings.Precision",
        "BasicSettings.Compile",
        "BasicSettings.GraphWarmUpCalls",
        "BasicSettings.LossScale",
        "BasicSettings.NumThreads",
        "BasicSettings.ReplayBufferOnGPU",
        "BasicSettings.Restart",
        "Environment.StepTimeout",
        "Environment.MaxFaults",
        "JointTrainAgent.SampleMaxSteps",
        "JointTrainAgent.SaveEverySteps",
        "JointTrainAgent.SaveEverySeconds",
        "JointTrainAgent.LogEverySteps",
        "JointTrainAgent.EvalEverySteps",
        "JointTrainAgent.MaxBadUpdates",
    }
) | {name for name in schema() if name.startswith(("Evaluation.", "Health."))}


def load_config(arguments: list[str]) -> Config:
    """The configuration that the command line `arguments` ask for.

    `BasicSettings.config_path=` chooses the YAML file; a relative path is looked up in the
    current folder, then in the repository. An unset run name becomes
    `<Game>-<config>-seed_<seed>`. Settings that are probably not meant are logged as warnings.
    Raises UserError for anything that is not a possible configuration.
    """
    overrides = _parse_overrides(arguments)
    given_path = overrides.get("BasicSettings.config_path", schema()["BasicSettings.config_path"].default)
    layers = _read_layers(find_config(given_path))
    config = _merge(Config(), [*layers, overrides, {"BasicSettings.config_path": given_path}])
    for line in warnings_about(config):
        logger.warning("warning: %s", line)
    return config


def load_saved_config(path: str | Path) -> Config:
    """The configuration that config_to_yaml's text at `path` says; raises UserError if it is cut short."""
    path = Path(path)
    tree = read_yaml_mapping(path)
    if not path.read_text(encoding="utf-8").rstrip().endswith(END_OF_SAVED):
        raise UserError(f"{path}: not a run's whole configuration: it does not end with {END_OF_SAVED!r}")
    return _merge(Config(), [_typed_layer(tree, str(path))])


def apply_overrides(config: Config, arguments: list[str]) -> Config:
    """A copy of `config` with `Section.Key=value` arguments applied and everything checked again."""
    return _merge(config, [_parse_overrides(arguments)])


def config_to_yaml(config: Config) -> str:
    """`config` as YAML text that load_saved_config reads back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, explicit_end=True)


def differences(first: Config, second: Config) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in `first`, value in `second`) for every setting that is not equal."""
    pairs = ((name, _value_at(first, name), _value_at(second, name)) for name in schema())
    return [pair for pair in pairs if pair[1] != pair[2]]


def config_help() -> str:
    """The text of `--help`: every key with its default, type, meaning and symbol in the papers."""
    lines = [
        "usage: python train.py [Section.Key=value ...]",
        "",
        "Each key below may be given as shown, with another value. Those not given come from the YAML",
        "file that BasicSettings.config_path names, and else have the default shown. null unsets a key.",
    ]
    section = None
    for name, key in schema().items():
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            lines.append("")
        default = "null" if key.default is None else key.default
        symbol = f"  [{key.symbol}]" if key.symbol else ""
        lines += [f"  {name}={default}  ({key.type_name})", f"      {key.meaning}{symbol}"]
    return "\n".join(lines)


def _value_at(config: Config, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


def _merge(config: Config, layers: Iterable[Mapping[str, Any]]) -> Config:
    """`config` with typed layers (dotted key → value) put over it in turn, named and checked."""
    tree = OmegaConf.structured(config)
    for layer in layers:
        for name, value in layer.items():
            OmegaConf.update(tree, name, value)
    merged = OmegaConf.to_object(tree)
    check_config(merged)
    _fill_in(merged)
    return merged


def _fill_in(config: Config) -> None:
    """Resolve the two settings that may be left open: the run's name and the vocabulary size."""
    settings, maskgit = config.BasicSettings, config.Models.MaskGit
    if settings.n is None or settings.n.endswith("-experiment"):
        game = re.sub(r"^ALE/(.+)-v\d+$", r"\1", settings.env_name)
        parts = (as_file_name(game), as_file_name(Path(settings.config_path).stem))
        settings.n = f"{parts[0]}-{parts[1]}-seed_{settings.Seed}"
        check_run_name(settings.n)
    if maskgit.VocabSize is None:
        maskgit.VocabSize = config.Models.WorldModel.NumClasses


def _parse_overrides(arguments: list[str]) -> dict[str, Any]:
    values = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"argument {show(argument)}: settings are given as Section.Key=value; see --help")
        _check_known(name, "command line")
        values[name] = _typed_value(name, text, "command line")
    return values


def find_config(text: str) -> Path:
    """The file that BasicSettings.config_path names. Raises UserError if there is none."""
    folder = REPOSITORY / "config_files"
    for path in (Path(text), REPOSITORY / text, folder / f"{text}.yaml"):
        if _is_file(path):
            return path
    suggestion = nearest(Path(text).stem, (path.stem for path in folder.glob("*.yaml")))
    raise UserError(f"BasicSettings.config_path={show(text)}: no such file{suggestion}; see {folder}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, or a folder that may not be entered
        return False


def _read_layers(path: Path) -> list[dict[str, Any]]:
    """The typed settings of a file and of the files it starts from, the first one lowest."""
    layers: list[dict[str, Any]] = []
    for _ in range(LONGEST_CHAIN):
        tree = read_yaml_mapping(path)
        if tree.pop("hydra", None) is not None:
            logger.warning("warning: %s: the hydra: block is ignored", path)
        base = tree.pop(BASE_KEY, None)
        layers.insert(0, _typed_layer(tree, str(path)))
        if base is None:
            return layers
        if not isinstance(base, str) or Path(base).name != base or not _is_file(path.parent / base):
            raise UserError(f"{path}: {BASE_KEY}: {show(base)}: must name a YAML file of the same folder")
        path = path.parent / base
    raise UserError(f"{path}: more than {LONGEST_CHAIN} files start from one another through {BASE_KEY}:")


def _typed_layer(tree: Mapping[str, Any], origin: str, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value of its type, from a tree of texts; `origin` is named in complaints."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        is_section = any(known.startswith(f"{dotted}.") for known in schema())
        if is_section and isinstance(value, Mapping):
            values |= _typed_layer(value, origin, f"{dotted}.")
        elif is_section and value is not None:
            raise UserError(f"{origin}: {dotted}: {show(value)}: must be a section of keys and values")
        elif not is_section:
            _check_known(dotted, origin)
            values[dotted] = _typed_value(dotted, value, origin)
    return values


def _check_known(name: str, origin: str) -> None:
    if name in schema():
        return
    if any(known.startswith(f"{name}.") for known in schema()):
        raise UserError(f"{origin}: {name} is a section; set one of its keys, as {name}.Key=value")
    raise UserError(f"{origin}: unknown key {show(name)}{_nearest_key(name)}")


def _nearest_key(name: str) -> str:
    """A suggestion by the whole dotted name, the right key in a wrong section first."""
    last = name.rpartition(".")[2].lower()
    same_key = [known for known in schema() if known.rpartition(".")[2].lower() == last]
    if same_key:
        best = max(same_key, key=lambda known: difflib.SequenceMatcher(None, name[:200], known).ratio())
        return f" (did you mean '{best}'?)"
    return nearest(name, schema())


def _typed_value(name: str, value: Any, origin: str) -> Any:
    """`value`, a text or None, as its key's type; raises UserError where it is none or out of range."""
    key = schema()[name]
    if not isinstance(value, str) and value is not None:
        raise UserError(f"{origin}: {name}={show(value)}: must be one value ({key.type_name})")
    if key.may_be_null and (value is None or value.lower() in NULLS):
        return None
    try:
        typed = _convert(name, value, key.type)
    except ValueError as error:
        shown = "null" if value is None else show(value)
        raise UserError(f"{origin}: {name}={shown}: must be {key.type_name}") from error
    try:
        check_value(name, typed)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    return typed


def _convert(name: str, text: str | None, wanted: type) -> Any:
    """`text` as `wanted`; raises ValueError if it is not one. Numbers may be written 100_000 or 1e5."""
    if text is None:
        raise ValueError("null")
    if name == "BasicSettings.Compile" and text.lower() in BOOLEANS:
        return "always" if BOOLEANS[text.lower()] else "never"
    if wanted is str:
        return text
    if wanted is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(text)
        return BOOLEANS[text.lower()]
    number = float(text)
    if not math.isfinite(number) or (wanted is int and not number.is_integer()):
        raise ValueError(text)
    return int(number) if wanted is int else number
