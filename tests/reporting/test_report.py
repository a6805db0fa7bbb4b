"""Reports: statistics against published figures, and what is compared with what."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_runs import RESULTS, FakeRun, make_report, write_run
from pandas import isna
from scipy import stats

import report
from reporting import statistics
from reporting.compare import compare_runs
from reporting.grid import comparisons, score_frame
from reporting.published import BENCHMARK_STEP, load_published, normalised
from reporting.runs import find_runs
from reporting.tables import aggregate_table, speed_table
from utils import UserError

PUBLISHED = load_published()
STORED = json.loads((RESULTS / "published.json").read_text(encoding="utf-8"))
WITH_RUNS = [name for name, method in PUBLISHED.methods.items() if method.get("seeds")]
KEYS = {"mean": "mean", "median": "median", "iqm": "iqm", "optimality_gap": "og"}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_source_of_a_run_is_shortened_whole(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / write_run(tmp_path, FakeRun())
    status = json.loads((folder / "run.json").read_text())
    status["commit"] = f"{'a' * 40} + {'b' * 40}-modified"
    (folder / "run.json").write_text(json.dumps(status))
    (run,), _ = find_runs(tmp_path / "outputs", [])
    table = speed_table([run]).frame
    assert list(table.commit) == [run.short_commit] == [f"{'a' * 12} + {'b' * 12}-modified"]


# Statistics.


def test_aggregates_reproduce_the_published_ones() -> None:
    """Values, intervals and games above human of every method, with and without published runs."""
    complete = comparisons(score_frame([]), PUBLISHED)[0]
    assert set(complete.published) == set(WITH_RUNS) and "DreamerV3_DIAMONDtable" in complete.means_only
    rows = aggregate_table(complete).frame.set_index("method")
    assert len(rows) == len(PUBLISHED.methods)
    for name, row in rows.iterrows():
        stored = STORED["methods"][name]["aggregates"]
        has_runs = name in WITH_RUNS
        assert (
            row.games_above_human == stored["superhuman"] and (row.seeds_per_game == "means only") != has_runs
        )
        for ours, theirs in KEYS.items() if has_runs else list(KEYS.items())[:2]:
            assert row[ours] == pytest.approx(stored[theirs], abs=5e-4), (name, ours)
            if has_runs:
                bounds = stored["ci95_stratified_bootstrap"][theirs]
                assert (row[f"{ours}_low"], row[f"{ours}_high"]) == pytest.approx(bounds, abs=0.02), (
                    name,
                    ours,
                )
        assert has_runs or row[["iqm", "optimality_gap", "mean_low"]].isna().all()
    assert rows.loc["STORM_Freeway33.5"]["mean"] == pytest.approx(1.266, abs=1e-3)  # as the paper prints it
    assert rows.loc["STORM"].iqm == pytest.approx(0.561, abs=1e-3)


def test_too_few_seeds_give_no_interval() -> None:
    grid = {"Boxing": np.array([0.5, 0.7]), "Pong": np.array([0.9])}
    assert all(interval.low is None for interval in statistics.aggregate(grid).values())
    few = {game: np.linspace(0, 1, 3) for game in ("Boxing", "Krull", "Pong")}
    assert all(interval.low is None for interval in statistics.aggregate(few).values())
    assert all(
        interval.low is not None for interval in statistics.aggregate(few | {"Alien": np.ones(2)}).values()
    )


def test_a_curve_is_shown_with_its_lowest_and_highest_seed() -> None:
    curves = np.array([[0.0, 2.0], [4.0, 6.0], [2.0, 1.0]])
    mean, (low, high) = statistics.mean_curve(curves)
    assert (mean.tolist(), low.tolist(), high.tolist()) == ([2.0, 3.0], [0.0, 1.0], [4.0, 6.0])
    assert statistics.mean_curve(curves[:1])[1] is None


def test_profile_counts_runs_above_a_score() -> None:
    grid = {"Boxing": np.repeat([0.1, 0.9, 2.0], 2), "Pong": np.repeat([1.5, 1.6, 1.7], 2)}
    shares, (low, high) = statistics.performance_profile(grid, np.array([0.0, 1.0, 1.6]))
    np.testing.assert_allclose(shares, [1.0, (1 / 3 + 1) / 2, (1 / 3 + 1 / 3) / 2])
    assert low.shape == high.shape == (3,) and low[1] < shares[1] < high[1]


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
    assert (partial[0]["origin"], partial[0]["seeds_per_game"]) == ("here", "1")


def test_partial_grid_is_never_averaged_with_complete_ones(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, FakeRun("Boxing", seed=seed, score=60.0 + seed))
        write_run(tmp_path, FakeRun("Pong", seed=seed, score=10.0 + seed))
    runs, _ = find_runs(tmp_path / "outputs", [])
    complete, partial = comparisons(score_frame(runs), PUBLISHED)
    assert complete.suffix == "" and not complete.ours and complete.partial == {"STORM": 2}
    assert partial.games == ("Boxing", "Pong") and set(partial.ours) == {"STORM"}
    assert all(set(grid) == {"Boxing", "Pong"} for grid in partial.published.values())
    np.testing.assert_allclose(partial.ours["STORM"]["Boxing"], normalised("Boxing", [60.0, 61.0]))
    folder = make_report(tmp_path)
    listed = rows_of(folder / "tables" / "aggregates.csv")[0]
    assert (listed["games"], listed["iqm"], "partial" in listed["seeds_per_game"]) == ("2", "", True)
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "Averages over 2 of 26 games (partial)" in page and "not averaged" in page


def test_a_run_from_pretrained_weights_is_set_apart_from_one_from_scratch(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun())
    path = next((tmp_path / "outputs").glob("*/config.yaml"))
    path.write_text(path.read_text().replace("pretrained_path: null", "pretrained_path: outputs/other"))
    ((run,), _) = find_runs(tmp_path / "outputs", [])
    assert run.deviations == ["BasicSettings.pretrained_path=outputs/other"]


def test_game_config_and_seed_are_the_runs_own_not_read_from_its_name(tmp_path: Path) -> None:
    dot = {"env_name": "my_env:MyDot-v0", "steps": 3_000, "evaluated": (3_000,)}
    write_run(tmp_path, FakeRun("my_env_MyDot-v0", "STORM-tiny", score=5.0, **dot))
    write_run(tmp_path, FakeRun("ale_py_ALE_Pong-v5", seed=1, env_name="ale_py:ALE/Pong-v5", evaluated=()))
    (tmp_path / "outputs" / "ale_py_ALE_Pong-v5-STORM-seed_1").rename(tmp_path / "outputs" / "first")
    write_run(tmp_path, FakeRun("Catch", env_name="Diagnostic/Catch-v0"))
    write_run(tmp_path, FakeRun(quirks=True, seed=3))
    runs, _ = find_runs(tmp_path / "outputs", [])
    assert [(run.game, run.label, run.seed) for run in runs] == [
        ("Boxing", "STORM-ReleaseQuirks", 3),
        ("Diagnostic/Catch-v0", "STORM", 0),
        ("Pong", "STORM", 1),
        ("MyDot-v0", "STORM-tiny", 0),
    ]
    assert runs[0].deviations == ["BasicSettings.ReleaseQuirks=True"] and runs[1].deviations == []
    assert [run.is_atari for run in runs] == [True, False, True, False]
    folder = make_report(tmp_path)
    drawn = {path.name for path in (folder / "figures" / "curves").glob("*.svg")}
    assert drawn == {"Boxing.svg", "Diagnostic_Catch-v0.svg", "Pong.svg", "MyDot-v0.svg"}
    rows = {row["game"]: row for row in rows_of(folder / "tables" / "per_game.csv")}
    assert rows["MyDot-v0"]["human_normalised"] == "" and float(rows["Boxing"]["human_normalised"]) > 1


def test_runs_of_one_config_with_other_settings_are_another_method(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, FakeRun(seed=seed))
        write_run(tmp_path, FakeRun("Pong", seed=seed))
        name = write_run(tmp_path, FakeRun(label="STORM-slow", seed=seed))
        path = tmp_path / "outputs" / name / "config.yaml"
        text = (
            path.read_text().replace("Lambda: 0.95", "Lambda: 0.9").replace("STORM-slow.yaml", "STORM.yaml")
        )
        path.write_text(text)
    runs, _ = find_runs(tmp_path / "outputs", [])
    labels = {(run.label, run.game) for run in runs}
    assert labels == {("STORM", "Boxing"), ("STORM", "Pong"), ("STORM Lambda=0.9", "Boxing")}


def test_names_that_are_patterns_and_archived_runs_are_found_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    for seed, name in enumerate(["[a]", "a", "b,c", "a.archived-1"]):
        (outputs / write_run(tmp_path, FakeRun(seed=seed, evaluated=()))).rename(outputs / name)

    def found(*patterns: str) -> list[str]:
        return [run.name for run in find_runs(outputs, patterns)[0]]

    assert found("[a]") == ["[a]"] and found("b,c") == ["b,c"] and found("a , [a] ") == ["[a]", "a"]
    assert found("?") == ["a"] and found(f"{outputs}/a") == ["a"]
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert found("~/outputs/a") == found("~/outputs/?") == found(f"{tmp_path}/runs/a/") == ["a"]
    assert found() == ["[a]", "a", "b,c"] and found("*.archived-*") == ["a.archived-1"]


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
    how = compare_runs(first, second).frame.how[0]
    assert "A: 1 of 2 evaluated greedily; B: 1 of 1 evaluated greedily and by the release's protocol" in how


def test_the_fair_sampled_largest_evaluation_counts_and_says_its_episodes(tmp_path: Path) -> None:
    name = write_run(tmp_path, FakeRun(score=60.0, evaluated=(100_000,), episodes=20))
    with (tmp_path / "outputs" / "eval_result" / f"{name}.csv").open("a") as file:
        for mean, episodes, how in ((96, 50, "fair,1"), (98, 50, "release,0"), (270, 2, "fair,0")):
            file.write(f"100000,{mean},1,,{episodes},0,{how},1,\n")
    (row,) = rows_of(make_report(tmp_path) / "tables" / "per_game.csv")
    assert (float(row["mean_return"]), row["episodes"]) == (60.0, "20")


def test_of_two_runs_of_one_seed_the_evaluated_one_counts_and_the_other_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "outputs"
    runs = {
        "a": FakeRun(evaluated=()),
        "b": FakeRun(evaluated=(50_000, 100_000)),
        "c": FakeRun(evaluated=(50_000,)),
        "longer": FakeRun(steps=150_000, evaluated=(50_000, 150_000), score=99),
        "release": FakeRun(evaluated=(100_000,), how="release,0", score=99),
        "smaller": FakeRun(evaluated=(100_000,), episodes=2, score=99),
    }
    for name, run in runs.items():
        written = write_run(tmp_path, run)
        for path in (outputs / written, *(outputs / "eval_result").glob(f"{written}*")):
            path.rename(path.with_name(path.name.replace(written, name)))
    report.main(["--outputs", str(outputs)])
    said = capsys.readouterr().out
    for name in runs.keys() - {"b"}:
        assert f"left out: {name} ({outputs / name}): same method, game and seed as {outputs / 'b'}" in said
    (row,) = rows_of(outputs / "report" / "tables" / "per_game.csv")
    assert float(row["mean_return"]) == 80


def test_environments_and_their_figures_are_told_apart(tmp_path: Path) -> None:
    ids = ["ns/Same-v0", "ns_Same-v0", "ns/Same-v1", "NS/Same-v0"]
    for seed, env_name in enumerate(ids):
        name = write_run(tmp_path, FakeRun(seed=seed))
        path = tmp_path / "outputs" / name / "config.yaml"
        path.write_text(path.read_text().replace("ALE/Boxing-v5", env_name))
    folder = make_report(tmp_path)
    assert {row["game"] for row in rows_of(folder / "tables" / "per_game.csv")} == set(ids)
    assert len({path.name.lower() for path in (folder / "figures" / "curves").glob("*.svg")}) == len(ids)


BROKEN = {
    "config.yaml": ["BasicSettings: [", "BasicSettings: {n: 1.5.2}", "\0"],
    "run.json": ["[1]", '{"elapsed_s": "long"}', '{"elapsed_s": 1%s}' % ("0" * 400), "{"],
    "metrics.jsonl": [
        '{"step": 1}\nnonsense\n{"step": 3}\n',
        '{"step": 1, "sample/x_reward": []}\n',
        '{"step": 1%s, "sample/x_reward": 1}\n' % ("0" * 400),
    ],
    "../eval_result/NAME.csv": [
        "step\n1\n",
        "step,episode_avg_return\n1,nan\n",
        "step,episode_avg_return\n,\n",
    ],
}


@pytest.mark.parametrize(("file", "text"), [(file, text) for file in BROKEN for text in BROKEN[file]])
def test_one_broken_run_is_named_and_left_out(tmp_path: Path, file: str, text: str) -> None:
    write_run(tmp_path, FakeRun(evaluated=()))
    broken = write_run(tmp_path, FakeRun(seed=1))
    (tmp_path / "outputs" / broken / file.replace("NAME", broken)).write_text(text)
    (kept,), (line,) = find_runs(tmp_path / "outputs", [])
    assert kept.seed == 0 and line.startswith(f"{broken}: ")


def test_runs_left_out_of_the_report_or_of_a_figure_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun())
    write_run(tmp_path, FakeRun(seed=1, evaluated=()))
    write_run(tmp_path, FakeRun("Pong", evaluated=(50_000,)))
    write_run(tmp_path, FakeRun("Pong", seed=1, evaluated=(60_000,)))
    write_run(tmp_path, FakeRun("Pong", "GITSTORM", evaluated=(50_000,), env_name="other/Pong-v0"))
    write_run(tmp_path, FakeRun(label="GITSTORM"))
    broken = write_run(tmp_path, FakeRun(seed=2))
    (tmp_path / "outputs" / broken / "run.json").write_text("{")
    torn = write_run(tmp_path, FakeRun(seed=3))
    with (tmp_path / "outputs" / torn / "metrics.jsonl").open("a") as file:
        file.write('{"step": 102000, "Wor')
    text = (make_report(tmp_path) / "report.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"## (.+?)\n(.+?)(?=\n## |$)", text, re.DOTALL))
    assert f"left out: {broken}" in sections["Limits"] and torn not in sections["Limits"]
    averages = sections["Averages over 1 of 26 games (partial)"]
    assert "Pong-STORM-seed_0, Pong-STORM-seed_1" in averages and "Pong-GITSTORM-seed_0" in averages
    curves = sections["Learning curves"]
    assert "no score to draw: Boxing-STORM-seed_1" in curves
    assert "no step that all its runs were evaluated at: Pong-STORM-seed_0, Pong-STORM-seed_1" in curves
    assert "Pong-GITSTORM-seed_0" not in curves


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


WITHOUT_PYTORCH = """
import sys, report
try:
    report.run_cli(report.main)
finally:
    assert "torch" not in sys.modules
"""


def test_a_locale_without_utf8_changes_nothing_and_pytorch_is_not_needed(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(label="STORM-λ", evaluated=()))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", WITHOUT_PYTORCH, "--outputs", str(tmp_path / "outputs")]
    folder = Path(report.__file__).parent
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=folder)
    folder = tmp_path / "outputs" / "report"
    assert "STORM-λ: not evaluated yet: Boxing-STORM-λ-seed_0" in (folder / "report.md").read_text("utf-8")


def test_commands_have_their_own_help_and_must_come_first(capsys: pytest.CaptureFixture) -> None:
    for command in ("compare", "record"):
        with pytest.raises(SystemExit, match="0"):
            report.main([command, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: report.py {command} ")
        with pytest.raises(UserError, match=f"{command} must be the first word"):
            report.main(["--outputs", "somewhere", command, "x"])


# Comparing two sets of runs.


def test_compare_pairs_by_seed_at_a_common_step(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, FakeRun(seed=seed, score=40.0 + 10 * seed))
        write_run(tmp_path, FakeRun("Boxing", "GITSTORM", seed, 45.0 + 10 * seed + seed / 10))
        write_run(tmp_path, FakeRun("Pong", seed=seed, score=5.0 + seed, evaluated=(50_000,)))
        write_run(tmp_path, FakeRun("Pong", "GITSTORM", seed + 7, 5.0 - seed, evaluated=(50_000, 60_000)))
    write_run(tmp_path, FakeRun("Seaquest"))
    outputs = tmp_path / "outputs"
    (first, _), (second, _) = (find_runs(outputs, [name]) for name in ("*-STORM-*", "*-GITSTORM-*"))
    table = compare_runs(first, second)
    boxing, pong, seaquest, mean = table.frame.to_dict("records")
    assert boxing["difference"] == pytest.approx(5.1) and boxing["reading"] == "B is better"
    assert boxing["how"] == "paired by seed, 3 pairs" and boxing["step"] == 100_000
    assert pong["how"] == "3 and 3 seeds, unpaired" and pong["step"] == 50_000
    assert seaquest["how"] == "no evaluated run in B" and isna(seaquest["difference"])
    halves = [boxing["normalised_difference"], pong["normalised_difference"]]
    assert mean["normalised_difference"] == pytest.approx(np.mean(halves))
    report.main(["compare", "*-STORM-*", "*-GITSTORM-*", "--outputs", str(outputs)])
    assert float(rows_of(outputs / "report" / "compare.csv")[0]["difference"]) == pytest.approx(5.1)


def test_the_means_beside_a_paired_difference_are_of_the_same_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, FakeRun(seed=seed, score=40.0 + 10 * seed))
        if seed < 2:
            write_run(tmp_path, FakeRun("Boxing", "GITSTORM", seed, 45.0 + 10 * seed))
    sides = (find_runs(tmp_path / "outputs", [name]) for name in ("*-STORM-*", "*-GITSTORM-*"))
    (first, _), (second, _) = sides
    (boxing,) = compare_runs(first, second).frame.to_dict("records")
    assert (boxing["first"], boxing["second"], boxing["difference"]) == (45.0, 50.0, 5.0)


def test_compare_refuses_a_mixed_set_and_admits_too_few_seeds(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(score=50.0))
    write_run(tmp_path, FakeRun("Boxing", "GITSTORM", score=60.0))
    runs, _ = find_runs(tmp_path / "outputs", [])
    with pytest.raises(UserError, match="two runs of one game and seed"):
        compare_runs(runs, runs[:1])
    assert compare_runs(runs[1:], runs[:1]).frame.reading[0] == "too few seeds to say"
