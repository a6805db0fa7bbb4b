"""Reads YAML files that may be hostile: nothing is constructed from them but texts, lists and mappings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from utils import UserError

LARGEST_FILE = 65_536  # bytes; a configuration has some thousand
DEEPEST_NESTING = 12
NULL_TEXTS = ("", "~", "null", "Null", "NULL")


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its scalars as the texts they were written as, null as None.

    Raises UserError, naming the file, if it cannot be read, is not UTF-8 text, is no YAML or no
    mapping, has a key twice, uses aliases, or is too large or too deeply nested for a
    configuration. Tags are not obeyed, so that no value can run code.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise UserError(f"{path}: is not a regular file")
    try:
        node = _compose(path)
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: must hold sections of keys and values")
        return _plain(node, path)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: not valid YAML: {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a YAML text file ({reason})") from error


def _compose(path: Path) -> yaml.Node | None:
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_FILE:
        raise UserError(f"{path}: larger than {LARGEST_FILE:,} bytes, so not a configuration")
    text = data.decode("utf-8-sig")
    _check_structure(text, path)
    return yaml.compose(text, Loader=yaml.BaseLoader)


def _check_structure(text: str, path: Path) -> None:
    """Refuse what would make building the tree expensive, while reading it event by event."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            raise UserError(f"{path}: line {line}: aliases (*{event.anchor[:40]}) are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_NESTING:
            line = event.start_mark.line + 1
            raise UserError(f"{path}: line {line}: nested deeper than {DEEPEST_NESTING} levels")


def _plain(node: yaml.Node, path: Path) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in NULL_TEXTS else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{path}: line {line}: a key must be a name")
        if key_node.value in mapping:
            raise UserError(f"{path}: line {line}: key {key_node.value[:80]!r} is given twice")
        mapping[key_node.value] = _plain(value_node, path)
    return mapping
