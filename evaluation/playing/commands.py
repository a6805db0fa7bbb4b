"""What a page may ask for: `{"do": NAME, "value": VALUE}`; everything else is dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from evaluation.playing.session import MODES, PLAYERS, Session

LONGEST = 4_096  # bytes of a message
PACES = (1, 60)  # steps a second
LAST_STEP = 2**53


def is_action(session: Session, value: Any) -> bool:
    """Return whether that is one action of the session's environment."""
    spec = session.spaces.action
    if spec.kind == "discrete":
        return type(value) is int and 0 <= value < spec.size
    return type(value) is list and len(value) == spec.size and all(is_number(each, -1, 1) for each in value)


def is_number(value: Any, low: float, high: float) -> bool:
    """Return whether that is a finite number in [low, high]."""
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def _is_step(session: Session, value: Any) -> bool:
    return type(value) is int and 0 <= value <= LAST_STEP


def _is_nothing(session: Session, value: Any) -> bool:
    return value is None


def _is_switch(session: Session, value: Any) -> bool:
    return type(value) is bool


CHECKS: dict[str, Callable[[Session, Any], bool]] = {
    "action": is_action,
    "mode": lambda session, value: type(value) is str and value in MODES,
    "player": lambda session, value: type(value) is str and value in PLAYERS,
    "plan": lambda session, value: type(value) is str and value in session.plans,
    "pace": lambda session, value: is_number(value, *PACES),
    "pause": _is_switch,
    "record": _is_switch,
    "step": _is_nothing,
    "reset": _is_nothing,
    "split": _is_nothing,
    "look": _is_step,
    "split_at": _is_step,
}


def read_command(session: Session, text: str) -> tuple[str, Any] | None:
    """Return name and value of a message, None if it is not one of those above."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not set(message) <= {"do", "value"}:
        return None
    name, value = message.get("do"), message.get("value")
    known = type(name) is str and name in CHECKS
    return (name, value) if known and CHECKS[name](session, value) else None


def apply(session: Session, name: str, value: Any) -> None:
    """Let a session do what a command says; pace, pause and look are not its business."""
    controls = session.controls
    if name == "action":
        controls.held = value
        controls.tapped = value if value != session.idle else controls.tapped
    elif name == "mode":
        session.set_mode(value)
    elif name == "player":
        controls.player, controls.held, controls.tapped = value, session.idle, None
    elif name == "plan":
        session.set_plan(value)
    elif name == "record":
        session.record() if value else session.stop_recording()
    elif name == "step":
        session.step()
    elif name == "reset":
        session.restart()
    elif name == "split":
        session.split_here()
    elif name == "split_at":
        session.split_at(value)
