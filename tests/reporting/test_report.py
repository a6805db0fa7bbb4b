"""Reports: statistics against published figures, and what is compared with what."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_runs import RESULTS, FakeRun, make_report, write_run
from scipy import stats

import report
from reporting import statistics
from reporting.compare import compare_runs
from reporting.grid import comparisons
from reporting.published import BENCHMARK_STEP, load_published
from reporting.runs import find_runs
from reporting.tables import aggregate_table
from utils import UserError

PUBLISHED = load_published(RESULTS)
STORED = json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))
WITH_RUNS = [name for name, method in PUBLISHED.methods.items() if method.seeds]
KEYS = {"mean": "mean", "median": "median", "iqm": "iqm", "optimality_gap": "og"}


def grid_of(method: str) -> dict[str, np.ndarray]:
    seeds = PUBLISHED.methods[method].seeds
    return {game: PUBLISHED.normalise(game, seeds[game]) for game in PUBLISHED.games}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Statistics.


@pytest.mark.parametrize("method", WITH_RUNS)
def test_aggregates_reproduce_the_published_ones(method: str) -> None:
    values, stored = statistics.aggregate(grid_of(method)), STORED["methods"][method]["aggregates"]
    for ours, theirs in KEYS.items():
        assert values[ours].value == pytest.approx(stored[theirs], abs=5e-4), ours
        bounds = stored["ci95_stratified_bootstrap"][theirs]
        assert (values[ours].low, values[ours].high) == pytest.approx(bounds, abs=0.02), ours
    assert statistics.superhuman(statistics.game_means(grid_of(method))) == stored["superhuman"]


def test_aggregates_of_means_reproduce_the_published_ones() -> None:
    means_only = set(PUBLISHED.methods) - set(WITH_RUNS)
    assert "DreamerV3_DIAMONDtable" in means_only
    for name in means_only:
        method, stored = PUBLISHED.methods[name], STORED["methods"][name]["aggregates"]
        means = {game: float(PUBLISHED.normalise(game, method.means[game])) for game in PUBLISHED.games}
        values = statistics.aggregate_means(means)
        assert set(values) == {"mean", "median"}
        assert values["mean"].value == pytest.approx(stored["mean"], abs=5e-4)
        assert values["median"].value == pytest.approx(stored["median"], abs=5e-4)
        assert statistics.superhuman(means) == stored["superhuman"]


def test_figures_of_the_storm_paper() -> None:
    with_demonstration = statistics.aggregate(grid_of("STORM_Freeway33.5"))
    assert with_demonstration["mean"].value == pytest.approx(1.266, abs=1e-3)
    assert statistics.aggregate(grid_of("STORM"))["iqm"].value == pytest.approx(0.561, abs=1e-3)


def test_too_few_seeds_give_no_interval() -> None:
    grid = {"Boxing": np.array([0.5, 0.7]), "Pong": np.array([0.9])}
    assert all(interval.low is None for interval in statistics.aggregate(grid).values())


def test_curve_interval_is_one_per_step_and_holds_the_mean() -> None:
    curves = np.random.default_rng(0).normal(size=(4, 7))
    mean, (low, high) = statistics.mean_curve(curves)
    assert mean.shape == low.shape == high.shape == (7,)
    assert np.all((low <= mean) & (mean <= high)) and np.all(low >= curves.min(0))


def test_profile_counts_runs_above_a_score() -> None:
    grid = {"Boxing": np.array([0.1, 0.9, 2.0]), "Pong": np.array([1.5, 1.6, 1.7])}
    shares, (low, high) = statistics.performance_profile(grid, np.array([0.0, 1.0, 1.6]))
    np.testing.assert_allclose(shares, [1.0, (1 / 3 + 1) / 2, (1 / 3 + 1 / 3) / 2])
    assert low.shape == high.shape == (3,) and low[1] < shares[1] < high[1]


def test_probability_of_improvement_is_the_mann_whitney_statistic() -> None:
    rng = np.random.default_rng(0)
    first, second = ({"Boxing": rng.integers(0, 9, n), "Pong": rng.integers(0, 9, n)} for n in (6, 5))
    expected = [stats.mannwhitneyu(first[game], second[game]).statistic / 30 for game in first]
    value = statistics.probability_of_improvement(first, second)
    assert value.value == pytest.approx(np.mean(expected))
    assert value.low < value.value < value.high


def test_differences_are_those_of_scipys_t_tests() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(0, 1, 5), rng.normal(1, 2, 5)
    paired = statistics.difference(dict(enumerate(old)), dict(enumerate(new)))
    test = stats.ttest_rel(new, old).confidence_interval(0.95)
    assert (paired.interval.low, paired.interval.high) == pytest.approx((test.low, test.high))
    unpaired = statistics.difference(dict(enumerate(old)), dict(enumerate(new, start=100)))
    test = stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
    assert (unpaired.interval.low, unpaired.interval.high) == pytest.approx((test.low, test.high))
    assert "paired" in paired.pairing and "unpaired" in unpaired.pairing
    assert statistics.difference({0: 1.0}, {0: 2.0}).interval == statistics.Interval(1.0)


# What is compared with what.


def test_score_is_that_of_step_100000(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(evaluated=(50_000, 100_000, 102_000), score=102.0))
    write_run(tmp_path, FakeRun(seed=1, steps=3_000, evaluated=(1_000, 3_000), score=30.0))
    (full, short), left_out = find_runs(tmp_path / "outputs", [])
    assert (full.scored.step, full.scored.mean) == (BENCHMARK_STEP, pytest.approx(100.0))
    assert (short.scored.step, short.benchmarked, left_out) == (3_000, False, [])
    folder = make_report(tmp_path)
    per_game = rows_of(folder / "tables" / "per_game.csv")
    assert [(row["step"], row["seeds"]) for row in per_game] == [("3000", "1"), ("100000", "1")]
    assert per_game[0]["published_storm"] == "" and float(per_game[1]["published_storm_low"]) == 71.5
    partial = rows_of(folder / "tables" / "aggregates_partial_1.csv")
    assert (partial[0]["origin"], partial[0]["seeds"]) == ("here", "1")


def test_partial_grid_is_never_averaged_with_complete_ones(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, FakeRun("Boxing", seed=seed, score=60.0 + seed))
        write_run(tmp_path, FakeRun("Pong", seed=seed, score=10.0 + seed))
    runs, _ = find_runs(tmp_path / "outputs", [])
    complete, partial = comparisons(runs, PUBLISHED)
    assert complete.complete and not complete.ours
    table = aggregate_table(complete, {"STORM": 2}, "")
    keys = [column.key for column in table.columns]
    listed = dict(zip(keys, table.rows[0], strict=True))
    assert (listed["games"], listed["iqm"], "partial" in listed["seeds"]) == (2, None, True)
    assert partial.games == ("Boxing", "Pong") and set(partial.ours) == {"STORM"}
    assert all(set(grid) == {"Boxing", "Pong"} for grid in partial.published.values())
    boxing = PUBLISHED.normalise("Boxing", [60.0, 61.0])
    np.testing.assert_allclose(partial.ours["STORM"]["Boxing"], boxing)
    page = (make_report(tmp_path) / "index.html").read_text(encoding="utf-8")
    assert "Averages over 2 of 26 games (partial)" in page and "not averaged" in page


def test_methods_without_runs_have_no_iqm(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun())
    rows = rows_of(make_report(tmp_path) / "tables" / "aggregates.csv")
    by_name = {row["method"]: row for row in rows if row["origin"] == "published"}
    assert set(by_name) == set(PUBLISHED.methods)
    for name, row in by_name.items():
        assert bool(row["iqm"]) == bool(row["optimality_gap"]) == (name in WITH_RUNS)
        assert (row["seeds"] == "means only") == (name not in WITH_RUNS)


def test_other_environments_and_settings_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun("Catch", env_name="Catch-v0"))
    write_run(tmp_path, FakeRun(quirks=True, seed=3))
    write_run(tmp_path, FakeRun("Boxing", "STORM.archived-1", seed=0))
    runs, _ = find_runs(tmp_path / "outputs", ["Catch*,Boxing-STORM-seed_3"])
    assert [(run.game, run.label) for run in runs] == [("Boxing", "STORM-ReleaseQuirks"), ("Catch", "STORM")]
    assert runs[0].deviations == ["BasicSettings.ReleaseQuirks=True"] and runs[1].deviations == []
    assert len(find_runs(tmp_path / "outputs", [])[0]) == 2, "an archived run is not part of the report"
    folder = make_report(tmp_path)
    rows = {row["game"]: row for row in rows_of(folder / "tables" / "per_game.csv")}
    assert rows["Catch"]["human_normalised"] == "" and float(rows["Boxing"]["human_normalised"]) > 1


def test_release_csv_without_a_run_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "eval_result"
    folder.mkdir(parents=True)
    (folder / "Pong-STORM-seed_2.csv").write_text("step,episode_avg_return\n97500,11.5\n100000,12.5\n")
    (run,), _ = find_runs(tmp_path / "outputs", [])
    assert (run.game, run.label, run.seed, run.scored.mean) == ("Pong", "STORM", 2, 12.5)


def test_scores_made_greedily_or_as_the_release_does_are_remarked(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(score=60.0))
    write_run(tmp_path, FakeRun(seed=1, score=61.0, how="fair,1"))
    write_run(tmp_path, FakeRun(label="GITSTORM", score=62.0, how="release,1"))
    folder = make_report(tmp_path)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "- STORM: evaluated greedily: Boxing-STORM-seed_1\n" in text
    assert "- GITSTORM: evaluated greedily and by the release's protocol: Boxing-GITSTORM-seed_0\n" in text
    rows = rows_of(folder / "tables" / "evaluations.csv")
    assert [row["how"] for row in rows if row["method"] == "STORM"] == ["", "", "greedily", "greedily"]
    (first, _), (second, _) = (
        find_runs(tmp_path / "outputs", [name]) for name in ("*-STORM-*", "*-GITSTORM-*")
    )
    how = compare_runs(first, second, PUBLISHED).rows[0][-2]
    assert "A: 1 of 2 evaluated greedily; B: 1 of 1 evaluated greedily and by the release's protocol" in how


def test_a_smaller_or_greedy_evaluation_does_not_hide_the_fair_one(tmp_path: Path) -> None:
    name = write_run(tmp_path, FakeRun(score=60.0))
    path = tmp_path / "outputs" / "eval_result" / f"{name}.csv"
    path.write_text(path.read_text() + "100000,99,0,,5,0,fair,1,1,\n100000,98,0,,2,0,fair,0,1,\n")
    rows = rows_of(make_report(tmp_path) / "tables" / "evaluations.csv")
    assert [(row["step"], float(row["mean"]), row["episodes"], row["how"]) for row in rows] == [
        ("50000", 30.0, "4", ""),
        ("100000", 60.0, "4", ""),
    ]


def test_damaged_and_repeated_runs_are_named_not_used(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun())
    broken = write_run(tmp_path, FakeRun(seed=1))
    (tmp_path / "outputs" / broken / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    torn = write_run(tmp_path, FakeRun(seed=2))
    with (tmp_path / "outputs" / torn / "metrics.jsonl").open("a") as file:
        file.write('{"step": 102000, "Wor')
    text = (make_report(tmp_path) / "report.md").read_text(encoding="utf-8")
    assert f"left out: {broken}" in text and "line 2" in text
    assert f"left out: {torn}" not in text


def test_wrong_command_lines_are_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun())
    outputs = ["--outputs", str(tmp_path / "outputs")]
    with pytest.raises(UserError, match=r"Boxing-STORM-seed_9.*did you mean 'Boxing-STORM-seed_0'"):
        report.main([*outputs, "Boxing-STORM-seed_9"])
    empty = [["--nonsense"], ["compare", "A"], ["--outputs", str(tmp_path / "nothing")]]
    empty += [[*outputs, ""], [*outputs, "Boxing*", " , "], ["compare", *outputs, "", "Boxing*"]]
    for arguments in empty:
        with pytest.raises(UserError):
            report.main(arguments)
    command = [sys.executable, str(Path(report.__file__)), *outputs, "Pong*"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)


def test_commands_have_their_own_help_and_must_come_first(capsys: pytest.CaptureFixture) -> None:
    for command in ("compare", "record"):
        with pytest.raises(SystemExit, match="0"):
            report.main([command, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: report.py {command} ")
        with pytest.raises(UserError, match=f"{command} must be the first word"):
            report.main(["--outputs", "somewhere", command, "x"])


@pytest.mark.parametrize("package", ["yaml", "numpy", "scipy", "matplotlib"])
def test_a_missing_package_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    write_run(tmp_path, FakeRun())
    for name in [*sys.modules]:
        if name.partition(".")[0] in (package, "reporting", "configuration", "evaluation"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"no package '{package}' .*pip install -r"):
        report.main(["--outputs", str(tmp_path / "outputs")])


# Comparing two sets of runs.


def test_compare_pairs_by_seed_at_a_common_step(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, FakeRun(seed=seed, score=40.0 + 10 * seed))
        write_run(tmp_path, FakeRun("Boxing", "GITSTORM", seed, 45.0 + 10 * seed + seed / 10))
        write_run(tmp_path, FakeRun("Pong", seed=seed, score=5.0 + seed, evaluated=(50_000,)))
        write_run(tmp_path, FakeRun("Pong", "GITSTORM", seed + 7, 5.0 - seed, evaluated=(50_000, 60_000)))
    outputs = tmp_path / "outputs"
    (first, _), (second, _) = (find_runs(outputs, [name]) for name in ("*-STORM-*", "*-GITSTORM-*"))
    table = compare_runs(first, second, PUBLISHED)
    keys = [column.key for column in table.columns]
    boxing, pong, mean = (dict(zip(keys, row, strict=True)) for row in table.rows)
    assert boxing["difference"].value == pytest.approx(5.1) and boxing["reading"] == "B is better"
    assert boxing["how"] == "paired by seed, 3 pairs" and boxing["step"] == 100_000
    assert pong["how"] == "3 and 3 seeds, unpaired" and pong["step"] == 50_000
    halves = [boxing["normalised_difference"].value, pong["normalised_difference"].value]
    assert mean["normalised_difference"].value == pytest.approx(np.mean(halves))
    report.main(["compare", "*-STORM-*", "*-GITSTORM-*", "--outputs", str(outputs)])
    assert float(rows_of(outputs / "report" / "compare.csv")[0]["difference"]) == pytest.approx(5.1)


def test_compare_refuses_a_mixed_set_and_admits_too_few_seeds(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(score=50.0))
    write_run(tmp_path, FakeRun("Boxing", "GITSTORM", score=60.0))
    runs, _ = find_runs(tmp_path / "outputs", [])
    with pytest.raises(UserError, match="two runs of one game and seed"):
        compare_runs(runs, runs[:1], PUBLISHED)
    row = compare_runs(runs[1:], runs[:1], PUBLISHED).rows[0]
    assert row[-1] == "too few seeds to say"
