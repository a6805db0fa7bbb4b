"""Builds the configuration of a run: defaults ← YAML file ← `Section.Key=value` on the command line."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from configuration.checks import (
    check_config,
    check_run_name,
    is_section,
    nearest_key,
    read_value,
    show,
    warnings_about,
)
from configuration.schema import CLASS, IGNORED, Config, schema
from configuration.yaml_files import read_yaml_mapping
from utils import REPOSITORY, UserError, as_file_name, load_class, nearest, typed_path

BASE_KEY = "base"  # top-level key of a YAML file: the file of the same folder it starts from
LONGEST_CHAIN = 8  # files that may start from one another
END_OF_SAVED = "..."  # YAML's end of a document
CONFIG_PATH, NAME = "BasicSettings.config_path", "BasicSettings.n"

logger = logging.getLogger(__name__)


def load_config(arguments: list[str]) -> Config:
    """Return the configuration that the command line `arguments` ask for.

    `BasicSettings.config_path=` chooses the YAML file, see `find_config`. An unset run name becomes
    `<Game>-<config>-seed_<seed>`. Settings that are ignored or probably not meant are logged as
    warnings. Raise UserError for anything that is not a possible configuration.
    """
    overrides = _parse_overrides(arguments)
    path = find_config(overrides.get(CONFIG_PATH, schema()[CONFIG_PATH].default))
    layers = [*_read_layers(path), overrides, {CONFIG_PATH: _portable(path)}]
    for name in IGNORED:
        if any(name in layer for layer in layers):
            logger.warning("warning: %s is ignored: %s", name, IGNORED[name])
    config = _merge(Config(), layers)
    for line in warnings_about(config):
        logger.warning("warning: %s", line)
    return config


def load_saved_config(path: str | Path) -> Config:
    """Return the configuration in a file of config_to_yaml's text; raise UserError if it is cut short."""
    path = Path(path)
    tree = read_yaml_mapping(path)
    if not path.read_text(encoding="utf-8", errors="replace").rstrip().endswith(END_OF_SAVED):
        raise UserError(f"{path}: not a run's whole configuration: it does not end with {END_OF_SAVED!r}")
    return _merge(Config(), [_typed(tree, str(path))])


def apply_overrides(config: Config, arguments: list[str]) -> Config:
    """Return a copy of `config` with `Section.Key=value` arguments applied and everything checked again."""
    return _merge(config, [_parse_overrides(arguments)])


def config_to_yaml(config: Config) -> str:
    """Return `config` as YAML text that load_saved_config reads back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, explicit_end=True)


def differences(first: Config, second: Config) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in `first`, value in `second`) for every setting that is not equal."""
    pairs = ((name, attrgetter(name)(first), attrgetter(name)(second)) for name in schema())
    return [pair for pair in pairs if pair[1] != pair[2]]


def config_help() -> str:
    """Return the text of `--help`: every key with its default, allowed values, meaning and symbol."""
    lines = [
        "usage: python train.py [Section.Key=value ...]",
        "",
        "Each key below may be given as shown, with another value. Those not given come from the YAML",
        "file that BasicSettings.config_path names, and else have the default shown. null unsets a key.",
        "A run may be resumed with other values of those marked *.",
    ]
    section = None
    for name, key in schema().items():
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            lines.append("")
        symbol = f"  [{key.symbol}]" if key.symbol else ""
        lines.append(f"{'*' if key.may_change else ' '} {name}={key.shown_default}  ({key.expected})")
        lines.append(f"      {key.meaning}{symbol}")
    return "\n".join(lines)


def find_config(text: str) -> Path:
    """Return the file that `text` names: a path from here or from the repository, or a name in config_files/.

    Raise UserError if there is none.
    """
    folder = REPOSITORY / "config_files"
    for path in (typed_path(text), REPOSITORY / text, folder / f"{text}.yaml"):
        if os.path.isfile(path):
            return path
    suggestion = nearest(Path(text).stem, (path.stem for path in folder.glob("*.yaml")))
    raise UserError(f"{CONFIG_PATH}={show(text)}: no such file{suggestion}; see {folder}")


def _portable(path: Path) -> str:
    """A path from the repository on if it is inside, so that it means the same on other machines."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(REPOSITORY) if absolute.is_relative_to(REPOSITORY) else absolute)


def _read_layers(path: Path) -> list[dict[str, Any]]:
    """The typed settings of a file and of the files it starts from, the first one lowest."""
    layers: list[dict[str, Any]] = []
    for _ in range(LONGEST_CHAIN):
        tree = read_yaml_mapping(path)
        base = tree.pop(BASE_KEY, None)
        layers.insert(0, _typed(tree, str(path)))
        if str(layers[0].get(NAME)).endswith("-experiment"):  # the releases' files name a kind of run so
            left_out, layers[0][NAME] = layers[0][NAME], None
            logger.warning("warning: %s: %s=%s names no single run, and is left out", path, NAME, left_out)
        if base is None:
            return layers
        if not isinstance(base, str) or Path(base).name != base or not os.path.isfile(path.parent / base):
            raise UserError(f"{path}: {BASE_KEY}: {show(base)}: must name a YAML file of the same folder")
        path = path.parent / base
    raise UserError(f"{path}: more than {LONGEST_CHAIN} files start from one another through {BASE_KEY}:")


def _parse_overrides(arguments: list[str]) -> dict[str, Any]:
    pairs = [argument.partition("=") for argument in arguments]
    for name, equals, _ in pairs:
        if not equals:
            suggestion = nearest_key(name)
            raise UserError(
                f"argument {show(name)}: settings are given as Section.Key=value{suggestion}; see --help"
            )
    return _typed({name: text for name, _, text in pairs}, "command line")


def _typed(tree: Mapping[Any, Any], origin: str) -> dict[str, Any]:
    """Dotted key → value of its type, from a tree of what YAML holds; `origin` is named in complaints.

    Modules that are named as module:Class are imported first: they may bring sections of their own.
    """
    for name, value in _flat(tree):
        key = schema().get(name)
        if key is not None and key.names_a_class and re.fullmatch(CLASS, str(value)):
            load_class(value)
    return {
        name: None if name in IGNORED else read_value(name, value, f"{origin}: ")
        for name, value in _flat(tree)
    }


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a tree by its dotted name, but for sections without any; what is ignored, as a whole."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        name = next((ignored for ignored in IGNORED if name.startswith(f"{ignored}.")), name)
        if isinstance(value, Mapping) and value and name not in schema() and name not in IGNORED:
            yield from _flat(value, f"{name}.")
        elif value or not is_section(name):
            yield name, value


def _merge(config: Config, layers: Iterable[Mapping[str, Any]]) -> Config:
    """A copy of `config` with typed layers (dotted key → value) put over it in turn, named and checked."""
    tree = OmegaConf.structured(config)
    for layer in layers:
        for name in layer.keys() - IGNORED.keys():
            OmegaConf.update(tree, name, layer[name], merge=False)
    merged = OmegaConf.to_object(tree)
    check_config(merged)
    settings = merged.BasicSettings
    if settings.n is None:
        game = re.sub(r"^ALE/(.+)-v\d+$", r"\1", settings.env_name)
        if merged.Task == "VideoPrediction":
            game = Path(settings.trajectory_path).stem
        parts = (as_file_name(game), as_file_name(Path(settings.config_path).stem))
        settings.n = f"{parts[0]}-{parts[1]}-seed_{settings.Seed}"
        check_run_name(settings.n)
    return merged
