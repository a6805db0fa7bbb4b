"""The sections that average over games: our methods beside published ones, on the same games."""

from __future__ import annotations

from reporting import curves, figures, tables, texts
from reporting.blocks import Material, Picture, Section
from reporting.grid import Comparison, benchmark_grid, by_label
from reporting.markup import OURS
from reporting.published import REFERENCE
from reporting.statistics import Interval


def averages(comparison: Comparison, number: int, material: Material) -> Section:
    """The averages of one comparison; without runs of ours, only the table of the published ones.

    `number` tells the files of several partial comparisons apart.
    """
    suffix = "" if comparison.complete else f"_partial_{number}"
    partial = _incomplete(comparison, material) if comparison.complete else {}
    table = tables.aggregate_table(comparison, partial, suffix)
    scope = comparison.scope if comparison.complete else f"{comparison.scope} (partial)"
    title = f"Averages over {scope}" if comparison.ours else f"Published averages over {scope}"
    section = Section(title, _explanation(comparison), [table], [table])
    if comparison.ours:
        section.blocks.append(
            Picture(
                figures.save(figures.draw_aggregates(table, material.palette), material.folder, table.name),
                texts.AGGREGATES_CAPTION,
            )
        )
        _add_profiles(section, comparison, suffix, material)
        _add_improvement(section, comparison, suffix, material)
    return section


def _incomplete(comparison: Comparison, material: Material) -> dict[str, int]:
    """label -> games with a score, for methods of ours that lack games of the comparison."""
    groups = by_label(material.runs)
    counts = {label: len(benchmark_grid(runs, material.published)) for label, runs in groups.items()}
    return {label: count for label, count in counts.items() if count and label not in comparison.ours}


def _explanation(comparison: Comparison) -> str:
    if not comparison.complete:
        methods, games = (", ".join(names) for names in (comparison.ours, comparison.games))
        return f"{texts.PARTIAL.format(methods=methods, games=games)} {texts.AVERAGES}"
    return texts.AVERAGES if comparison.ours else f"{texts.AVERAGES} {texts.NONE_OF_OURS}"


def _add_profiles(section: Section, comparison: Comparison, suffix: str, material: Material) -> None:
    lines = curves.profiles(comparison)
    name = f"performance_profiles{suffix}"
    drawing = figures.save(figures.draw_profiles(lines, material.palette), material.folder, name)
    section.blocks.append(Picture(drawing, texts.PROFILES_CAPTION))
    titled = {f"{method} ({OURS if ours else 'published'})": lines[method, ours] for method, ours in lines}
    section.data.append(tables.curve_table(name, "score", titled))


def _add_improvement(section: Section, comparison: Comparison, suffix: str, material: Material) -> None:
    table = tables.improvement_table(comparison, suffix)
    drawing = figures.save(figures.draw_improvement(table, material.palette), material.folder, table.name)
    section.blocks.append(Picture(drawing, texts.IMPROVEMENT_CAPTION))
    section.data.append(table)


def findings(comparison: Comparison, section: Section) -> list[str]:
    """One sentence per method of ours: its IQM beside that of published STORM on the same games."""
    table = section.data[0]
    keys = [column.key for column in table.columns]
    iqm = {(row[0], row[keys.index("origin")]): row[keys.index("iqm")] for row in table.rows}
    reference = iqm[REFERENCE, "published"]
    return [
        f"{label} here, {comparison.scope}{'' if comparison.complete else ' only'}: IQM "
        f"{_in_words(iqm[label, OURS])}; {REFERENCE} as published, on the same games: {_in_words(reference)}."
        for label in comparison.ours
    ]


def _in_words(interval: Interval) -> str:
    if interval.low is None:
        return f"{interval.value:.3f} (too few seeds for an interval)"
    return f"{interval.value:.3f} (95 % interval {interval.low:.3f} to {interval.high:.3f})"
