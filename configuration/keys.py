"""What a setting is: its type, default, allowed values and meaning, and how its value is read."""

from __future__ import annotations

import copy
import functools
import math
import re
from dataclasses import dataclass, field
from typing import Any

from configuration.yaml_files import parse_yaml

NULLS = ("null", "none", "~")
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True}
BOOLEANS |= {"false": False, "no": False, "off": False, "0": False}
LONGEST = 1_000  # characters of a text


@dataclass(frozen=True)
class Range:
    """An interval of numbers; `ends` are its brackets, round where the end is not part of it."""

    low: float
    high: float = math.inf
    ends: str = "[]"

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.ends[0] == "(" else self.low <= value
        return above and (value < self.high if self.ends[1] == ")" else value <= self.high)

    def __str__(self) -> str:
        return f"in {self.ends[0]}{self.low:_}, {self.high:_}{self.ends[1]}"


class Texts(list[str]):
    """Regular expressions for the texts that a setting may have, and how a user reads them."""

    def __init__(self, *expressions: str, meaning: str = "") -> None:
        super().__init__(expressions)
        self.meaning = meaning

    def __contains__(self, value: object) -> bool:
        return any(re.fullmatch(expression, str(value), re.ASCII) for expression in self)

    def __str__(self) -> str:
        return self.meaning or " or ".join(self)


COMPILE = Texts("auto", "never", "always")  # YAML's booleans stand for the last two


@dataclass(frozen=True)
class Key:
    """What the schema says about one setting."""

    type: type  # bool, int, float, str, list or dict
    may_be_null: bool
    default: Any
    meaning: str = ""
    allowed: Range | Texts | None = None
    symbol: str = ""
    may_change: bool = False  # when a run is resumed

    @property
    def expected(self) -> str:
        """The type and the allowed values as a user reads them."""
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "plain text"}
        names |= {list: "a list, as a,b", dict: "a mapping, as {name: value}"}
        text = f"{names[self.type]} {self.allowed or ''}".strip()
        text = str(self.allowed) if isinstance(self.allowed, Texts) else text
        return f"{text}, or null" if self.may_be_null else text

    @property
    def names_a_class(self) -> bool:
        """Whether the value may be a class of one's own, as module:Class."""
        return isinstance(self.allowed, Texts) and "module:Class" in self.allowed.meaning

    @property
    def shown_default(self) -> str:
        """The default as it is typed on a command line."""
        default = ",".join(self.default) if isinstance(self.default, list) else self.default
        return "null" if default is None else str(default)

    def read(self, value: Any) -> Any:
        """Return `value`, a text or what YAML made of it, as this key's type; ValueError if not allowed.

        Numbers may be written 100_000 or 1e5, lists with commas, mappings as in YAML.
        """
        word = str(value).lower()
        if value is None or word in NULLS:
            if self.may_be_null:
                return None
            value = self.type() if self.type in (list, dict) else None
        elif self.type in (list, dict) and isinstance(value, str):
            value = parse_yaml(value) if self.type is dict else [item.strip() for item in value.split(",")]
        elif self.type is bool:
            value = BOOLEANS.get(word)
        elif self.allowed is COMPILE and word in BOOLEANS:
            value = "always" if BOOLEANS[word] else "never"
        elif self.type in (int, float) and type(value) in (int, float, str):
            number = float(value)
            is_right = number.is_integer() if self.type is int else math.isfinite(number)
            value = self.type(number) if is_right else None
        if type(value) is not self.type or (self.allowed is not None and value not in self.allowed):
            raise ValueError(value)
        if self.type in (str, list) and not all(map(is_plain, [value] if self.type is str else value)):
            raise ValueError(value)
        if self.type is dict and not is_data(value):
            raise ValueError(value)
        return value


def is_plain(text: Any) -> bool:
    """Whether `text` is one of printable characters that does not ask to be evaluated."""
    is_line = isinstance(text, str) and text.isprintable() and 0 < len(text.strip()) <= LONGEST
    return is_line and is_data(text)


def is_data(value: Any) -> bool:
    """Whether a value is a text, number, truth value or null, or a mapping by texts or a list of such.

    Texts that OmegaConf would evaluate, or take for a missing value, are not.
    """
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_data(name) and is_data(value[name]) for name in value)
    if isinstance(value, list):
        return all(map(is_data, value))
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, (bool, int, float))


def fixed(default: Any, meaning: str, allowed: Any = None, symbol: str = "", may_change: bool = False) -> Any:
    """A dataclass field for a setting that a resumed run keeps; `symbol` is its name in the papers."""
    facts = {"meaning": meaning, "allowed": allowed, "symbol": symbol, "may_change": may_change}
    return field(default_factory=functools.partial(copy.copy, default), metadata=facts)


free = functools.partial(fixed, may_change=True)  # the same for a setting that a resumed run may change


def section(cls: type) -> Any:
    """A nested section whose defaults are those of its dataclass."""
    return field(default_factory=cls)
