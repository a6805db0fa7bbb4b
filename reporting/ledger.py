"""results/README.md: every recorded run beside what STORM published."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame

from reporting.entries import Entry, find_entries
from reporting.files import SECONDS_PER_HOUR, write_text
from reporting.published import Published, load_published
from reporting.tables import MISSING, Table, make_table, show

README = "README.md"
MODELS = ("STORM", "GITSTORM")  # columns that the overview always has
NO_RUN = "no run yet"
BELOW = "**below STORM's published minimum**"
SHOWN_DEVIATIONS = 4  # settings named in a table cell; the rest is in the entry's config.yaml

INTRODUCTION = """# Recorded results

Atari 100k: scores of the checkpoint at step 100,000, by `python report.py record`. Each score links to the
files it comes from: config, commit, hardware, time, evaluation CSV, every episode return, and the training
metrics (thinned), with their checksums in `manifest.json`. Weights are not kept. A run is taken only if its
files are those that training and evaluation sealed ([docs/reliability.md](../docs/reliability.md)). This file
is written by that command; scores published by others, and where they come from, are in `published.json`.
"""


def refresh_readme(results: Path) -> Path:
    """Rewrite `results`/README.md from its entries, each verified; UserError if one was altered."""
    write_text(results / README, render_readme(find_entries(results), load_published(results), results))
    return results / README


def render_readme(entries: Sequence[Entry], published: Published, results: Path) -> str:
    """The text of the README."""
    counted = [entry for entry in entries if entry.counts and entry.run.is_atari]
    others = [entry for entry in entries if entry not in counted]
    parts = [INTRODUCTION, "## Scores\n", _scores_text(counted, published)]
    parts += [_overview(counted, published, results).markdown, "## Runs\n"]
    parts.append(_run_table(counted, published, results).markdown if counted else f"{NO_RUN.capitalize()}.\n")
    parts += [_explanation(entry) for entry in counted if entry.notes or _is_below(entry, published)]
    if others:
        parts += [
            "## Partial and shorter runs\n",
            "Not comparable with any score above, and in no average.\n",
        ]
        parts.append(_run_table(others, published, results).markdown)
    return "\n".join(parts)


def _scores_text(counted: Sequence[Entry], published: Published) -> str:
    missing = len(published.games) - len({entry.run.game for entry in counted})
    found = [
        f"of {name} only {game} {score:,.0f} ({entry['source']})"
        for name, entry in published.fragments.items()
        for game, score in entry["mean"].items()
    ]
    return (
        f"{len(counted)} complete runs; {missing} of {len(published.games)} games have none. "
        f"Published: of STORM several seeds a game, shown as mean (lowest to highest); {'; '.join(found)}.\n"
    )


def _overview(counted: Sequence[Entry], published: Published, results: Path) -> Table:
    """One row per game of the benchmark, one column per model."""
    models = [*MODELS, *sorted({entry.run.label for entry in counted} - set(MODELS))]
    rows: list[list[Any]] = []
    for game in published.games:
        cells = [
            [entry for entry in counted if (entry.run.label, entry.run.game) == (model, game)]
            for model in models
        ]
        texts = ["; ".join(_linked_score(entry, published, results) for entry in cell) for cell in cells]
        rows.append([game, _published_text(published, game), *(text or NO_RUN for text in texts)])
    titles = {
        "game": "Game",
        "published": "STORM, published",
        **{model: f"{model}, here" for model in models},
    }
    return Table("overview", DataFrame(rows, columns=list(titles)), dict.fromkeys(titles, 0), titles)


def _linked_score(entry: Entry, published: Published, results: Path) -> str:
    mark = f" {BELOW}" if _is_below(entry, published) else ""
    score = entry.run.scored
    how = f", {score.how}" if score.how else ""
    how += ", own settings" if entry.run.deviations else ""
    return f"{_link(f'{score.mean:,.1f}', entry, results)} (seed {entry.run.seed}{how}){mark}"


def _link(text: str, entry: Entry, results: Path) -> str:
    return f"[{text}]({entry.folder.relative_to(results).as_posix()}/)"


def _published_text(published: Published, game: str) -> str:
    mean, lowest, highest = published.seed_range(game) or (None, None, None)
    note = f"; {published.note(game)}" if published.note(game) else ""
    return f"{show(mean, 1)} ({show(lowest, 1)} to {show(highest, 1)}{note})"


def _is_below(entry: Entry, published: Published) -> bool:
    scores = published.seed_range(entry.run.game)
    return entry.run.scored is not None and scores is not None and entry.run.scored.mean < scores[1]


def _run_table(entries: Sequence[Entry], published: Published, results: Path) -> Table:
    columns = (
        "model game seed trained_to_step evaluated_step mean_return:1 std:1 episodes human_normalised:3 "
        "published settings hardware hours:2 commit"
    )
    rows = [_run_row(entry, published, results) for entry in entries]
    return make_table("runs", columns, rows, {"published": "STORM, published"})


def _run_row(entry: Entry, published: Published, results: Path) -> list[Any]:
    run, score = entry.run, entry.run.scored
    known = run.is_atari
    place = [_link(run.label, entry, results), run.game, run.seed, f"{entry.step} ({entry.state})"]
    values: list[Any] = [None] * 5
    if score:
        values = [score.step, score.mean, score.std, score.episodes, run.normalised(score.mean)]
    reference = _published_text(published, run.game) if known and entry.counts else MISSING
    if known and entry.counts and _is_below(entry, published):
        reference += f": {BELOW}"
    hours = run.info["elapsed_s"] / SECONDS_PER_HOUR
    commit = re.sub(r"\b([0-9a-f]{12})[0-9a-f]+", r"\1", str(run.info["commit"]))
    facts = [run.info["hardware"], hours, commit]
    return [*place, *values, reference, _settings(entry), *facts]


def _settings(entry: Entry) -> str:
    score = entry.run.scored
    changed = [f"evaluated {score.how}"] if score and score.how else []
    changed += [re.sub(r"^[\w.]*\.", "", text) for text in entry.run.deviations]
    if not changed:
        return "the papers'"
    rest = len(changed) - SHOWN_DEVIATIONS
    return ", ".join(changed[:SHOWN_DEVIATIONS]) + (f" and {rest} more" if rest > 0 else "")


def _explanation(entry: Entry) -> str:
    text = entry.notes or f"{BELOW}; not explained yet."
    return f"**{entry.run.label}, {entry.run.game}, seed {entry.run.seed}:** {text}\n"
