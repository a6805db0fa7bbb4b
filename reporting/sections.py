"""What a report says, section by section, in a form that both Markdown and HTML are made from."""

from __future__ import annotations

from collections.abc import Sequence

from reporting import curves, figures, tables, texts
from reporting.averages import averages, findings
from reporting.blocks import Material, Picture, Remarks, Section
from reporting.grid import benchmark_grid, by_label, comparisons, is_benchmark_game, remarks
from reporting.published import Published
from reporting.runs import Run
from reporting.videos import newest_video


def build_sections(material: Material) -> list[Section]:
    """All sections of a report; draws their figures."""
    compared = comparisons(material.runs, material.published)
    sections = [averages(comparison, number, material) for number, comparison in enumerate(compared)]
    summary = [_extent(material)]
    for comparison, section in zip(compared, sections, strict=True):
        summary += findings(comparison, section)
    ours = [section for section, comparison in zip(sections, compared, strict=True) if comparison.ours]
    return [
        Section("In short", "", [Remarks(summary)]),
        _scores(material),
        *ours,
        _learning_curves(material),
        _efficiency(material),
        _videos(material.runs),
        _limits(material),
        *(section for section in sections if section not in ours),
        _literature(material),
    ]


def _extent(material: Material) -> str:
    games, labels = {run.game for run in material.runs}, {run.label for run in material.runs}
    grids = [benchmark_grid([run], material.published) for run in material.runs]
    text = f"Training runs: {len(grids)}, of {', '.join(sorted(labels))}; games: {len(games)}. "
    if not any(grids):
        return text + texts.NOT_COMPARABLE
    return text + texts.COMPARABLE.format(count=sum(map(bool, grids)))


def _scores(material: Material) -> Section:
    table = tables.game_table(material.runs, material.published)
    blocks = [table] if table.rows else [Remarks(["No run has been evaluated yet."])]
    every = tables.run_table(material.runs, material.published)
    return Section("Scores by game", texts.SCORES, blocks, [table, every])


def _learning_curves(material: Material) -> Section:
    section, lines = Section("Learning curves", texts.LEARNING_CURVES), {}
    for game in sorted({run.game for run in material.runs}):
        runs = [run for run in material.runs if run.game == game]
        drawing = figures.draw_game(game, runs, material.published, material.palette)
        path = figures.save(drawing, material.folder / "curves", game)
        caption = f"{game}: episode return against environment steps."
        section.blocks.append(Picture(path, caption, small=True))
        for label, seeds in by_label(runs).items():
            curve = curves.learning_curve(seeds)
            lines |= {f"{label} on {game}": curve} if curve else {}
    section.data.append(tables.curve_table("learning_curves", "step", lines))
    return section


def _efficiency(material: Material) -> Section:
    groups = by_label(run for run in material.runs if _has_normalised_scores(run, material.published))
    lines = {label: curves.efficiency_curve(runs, material.published) for label, runs in groups.items()}
    lines = {label: curve for label, curve in lines.items() if curve}
    clocks = {label: curves.clock_curve(groups[label], curve) for label, curve in lines.items()}
    clocks = {label: curve for label, curve in clocks.items() if curve}
    section = Section("Sample efficiency and wall-clock time", texts.EFFICIENCY)
    if lines:
        drawing = figures.draw_efficiency(lines, clocks, material.palette)
        played = "; ".join(f"{label}: {_played(groups[label])}" for label in lines)
        caption = f"IQM against environment steps and against hours. {played}."
        section.blocks.append(Picture(figures.save(drawing, material.folder, "efficiency"), caption))
    table = tables.speed_table(material.runs)
    section.blocks.append(table)
    section.data.extend([table, tables.curve_table("sample_efficiency", "step", lines)])
    return section


def _has_normalised_scores(run: Run, published: Published) -> bool:
    return bool(run.evaluations) and is_benchmark_game(run, published)


def _played(runs: Sequence[Run]) -> str:
    return f"{len(runs)} runs on {', '.join(sorted({run.game for run in runs}))}"


def _videos(runs: Sequence[Run]) -> Section:
    section, shown = Section("Imagination", texts.IMAGINATION), set()
    for run in sorted(runs, key=lambda run: (run.game, run.label, run.seed)):
        video = None if (run.game, run.label) in shown else newest_video(run)
        if video:
            shown.add((run.game, run.label))
            section.blocks.append(video)
    if not section.blocks:
        section.blocks.append(Remarks(["These runs left no imagination video."]))
    return section


def _limits(material: Material) -> Section:
    lines = remarks(material.runs, material.published)
    lines += [f"left out: {line}" for line in material.left_out]
    nothing = "Nothing: all runs are evaluated and share their settings."
    return Section("Limits", texts.LIMITS, [Remarks(lines or [nothing])])


def _literature(material: Material) -> Section:
    printed, sources = tables.printed_table(material.published), tables.source_table(material.published)
    text = texts.LITERATURE.format(missing="; ".join(material.published.not_found))
    return Section("Published results and their sources", text, [printed, sources], [printed, sources])
