"""Builds the configuration of a run: defaults ← YAML file ← `Section.Key=value` on the command line."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from configuration.checks import check_config, check_run_name, read_value, show, warnings_about
from configuration.schema import CLASS, IGNORED, Config, schema
from configuration.yaml_files import read_yaml_mapping
from utils import REPOSITORY, UserError, as_file_name, load_class, nearest

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
    if not path.read_text(encoding="utf-8").rstrip().endswith(END_OF_SAVED):
        raise UserError(f"{path}: not a run's whole configuration: it does not end with {END_OF_SAVED!r}")
    return _merge(Config(), [_typed_tree(tree, str(path))])


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
    for path in (Path(os.path.expanduser(text)), REPOSITORY / text, folder / f"{text}.yaml"):
        if _is_file(path):
            return path
    suggestion = nearest(Path(text).stem, (path.stem for path in folder.glob("*.yaml")))
    raise UserError(f"{CONFIG_PATH}={show(text)}: no such file{suggestion}; see {folder}")


def _portable(path: Path) -> str:
    """A path from the repository on if it is inside, so that it means the same on other machines."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(REPOSITORY) if absolute.is_relative_to(REPOSITORY) else absolute)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or a folder that may not be entered
        return False


def _read_layers(path: Path) -> list[dict[str, Any]]:
    """The typed settings of a file and of the files it starts from, the first one lowest."""
    layers: list[dict[str, Any]] = []
    for _ in range(LONGEST_CHAIN):
        tree = read_yaml_mapping(path)
        base = tree.pop(BASE_KEY, None)
        layers.insert(0, _typed_tree(tree, str(path)))
        if str(layers[0].get(NAME)).endswith("-experiment"):  # the releases' files name a kind of run so
            left_out, layers[0][NAME] = layers[0][NAME], None
            logger.warning("warning: %s: %s=%s names no single run, and is left out", path, NAME, left_out)
        if base is None:
            return layers
        if not isinstance(base, str) or Path(base).name != base or not _is_file(path.parent / base):
            raise UserError(f"{path}: {BASE_KEY}: {show(base)}: must name a YAML file of the same folder")
        path = path.parent / base
    raise UserError(f"{path}: more than {LONGEST_CHAIN} files start from one another through {BASE_KEY}:")


def _parse_overrides(arguments: list[str]) -> dict[str, Any]:
    texts: dict[str, str] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"argument {show(argument)}: settings are given as Section.Key=value; see --help")
        texts[name] = text
    return _typed_tree(texts, "command line")


def _typed_tree(tree: Mapping[Any, Any], origin: str) -> dict[str, Any]:
    """`_typed_layer` of a whole tree, once the modules that it names as module:Class are imported.

    They may bring sections of their own.
    """
    for name, key in schema().items():
        if key.names_a_class:
            value: Any = tree.get(name)
            if value is None:
                value = tree
                for part in name.split("."):
                    value = value.get(part) if isinstance(value, Mapping) else None
            if isinstance(value, str) and re.fullmatch(CLASS, value):
                load_class(value)
    return _typed_layer(tree, origin)


def _typed_layer(tree: Mapping[Any, Any], origin: str, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value of its type, from a tree of texts; `origin` is named in complaints."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        is_section = any(known.startswith(f"{dotted}.") for known in schema())
        if dotted in IGNORED:
            values[dotted] = None
        elif is_section and isinstance(value, Mapping):
            values |= _typed_layer(value, origin, f"{dotted}.")
        elif is_section and value is not None:
            raise UserError(f"{origin}: {dotted} is a section; set one of its keys, as {dotted}.Key=value")
        elif dotted in schema():
            values[dotted] = read_value(dotted, value, f"{origin}: ")
        elif not is_section:
            raise UserError(f"{origin}: unknown key {show(dotted)}{_nearest_key(dotted)}")
    return values


def _nearest_key(name: str) -> str:
    """A suggestion by the whole dotted name, the right key in a wrong section first."""
    last = name.rpartition(".")[2].lower()
    same_key = [known for known in schema() if known.rpartition(".")[2].lower() == last]
    if same_key:
        best = max(same_key, key=lambda known: difflib.SequenceMatcher(None, name[:200], known).ratio())
        return f" (did you mean '{best}'?)"
    return nearest(name, schema())


def _merge(config: Config, layers: Iterable[Mapping[str, Any]]) -> Config:
    """A copy of `config` with typed layers (dotted key → value) put over it in turn, named and checked."""
    merged = copy.deepcopy(config)
    for layer in layers:
        for name in layer.keys() - IGNORED.keys():
            section, _, last = name.rpartition(".")
            setattr(attrgetter(section)(merged) if section else merged, last, layer[name])
    check_config(merged)
    settings = merged.BasicSettings
    if settings.n is None:
        game = re.sub(r"^ALE/(.+)-v\d+$", r"\1", settings.env_name)
        parts = (as_file_name(game), as_file_name(Path(settings.config_path).stem))
        settings.n = f"{parts[0]}-{parts[1]}-seed_{settings.Seed}"
        check_run_name(settings.n)
    return merged
