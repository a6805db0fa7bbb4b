"""The mutator changes one place, and leaves alone what no test could notice."""

from __future__ import annotations

import pytest
from mutation import mutants, similar_settings

SOURCE = '''\
"""Text."""
def f(a: int = 1, *b: "c | d") -> "c | d":
    assert a < 1, f"{a + 1}"
    if not a and model.FreeNats <= 2.0:
        g(a, b)
    return h.x - 3
'''


def test_one_place_changes_at_a_time() -> None:
    every = {
        (mutant.kind, mutant.line, mutant.apply(SOURCE.encode()).decode())
        for mutant in mutants("f.py", SOURCE.encode())
    }
    lines = SOURCE.splitlines()
    seen = set()
    for kind, number, changed in every:
        others = [index for index, line in enumerate(changed.splitlines()) if line != lines[index]]
        assert others == [number - 1]
        seen.add((kind, changed.splitlines()[number - 1].strip()))
    assert seen == {
        ("constant", 'def f(a: int = 2, *b: "c | d") -> "c | d":'),
        ("operator", "if (not a or model.FreeNats <= 2.0):"),
        ("operator", "if (a) and model.FreeNats <= 2.0:"),
        ("comparison", "if not a and (model.FreeNats < 2.0):"),
        ("setting", f"if not a and (model.{similar_settings('FreeNats')[0]}) <= 2.0:"),
        ("constant", "if not a and model.FreeNats <= 4.0:"),
        ("arguments", "(g(b, a))"),
        ("left out", "pass"),
        ("operator", "return (h.x + 3)"),
        ("constant", "return h.x - 4"),
    }


@pytest.mark.parametrize(("name", "other"), [("ActingContextLength", "ImagineContextLength"), ("max", None)])
def test_a_setting_is_taken_for_the_one_most_like_it(name: str, other: str | None) -> None:
    assert similar_settings(name) == ([] if other is None else [other])
