"""Reads YAML as PyYAML's safe loader does, but refuses double keys and aliases. No file can run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from utils import UserError

LARGEST_FILE = 65_536  # bytes; a configuration has some thousand


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for gigabytes
            raise yaml.MarkedYAMLError(None, None, "aliases are not supported", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"key {key.value[:80]!r} is given twice"
                raise yaml.MarkedYAMLError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return mapping


def parse_yaml(text: str | bytes) -> Any:
    """Return what a YAML text holds; raise ValueError, saying in one line why, if it is none."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"not valid YAML: {line}{error.problem}") from error
    except Exception as error:  # a wrong !!tag, or deep nesting, can end in any
        raise ValueError(f"not a YAML text file ({str(error).splitlines()[0]})") from error


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise UserError, naming the file, if there is none."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise UserError(f"{path}: is not a regular file")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE:,} bytes, so not a configuration")
        tree = parse_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold sections of keys and values")
    return tree
