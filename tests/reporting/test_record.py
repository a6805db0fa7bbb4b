"""Recording runs under results/: complete ones, partial ones, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_runs import RESULTS, FakeRun, write_evaluations, write_run
from tiny_runs import evaluate, train

import report
from reporting.entries import README, find_entries, render_readme
from reporting.published import load_published
from reporting.record import record_run
from reporting.runs import RunFiles, find_runs, load_run
from run_files.directory import RunDirectory
from run_files.manifest import TRAINED, altered, enter, strike
from training.run import TrainingRun
from utils import UserError

PARTS = {"config.yaml", "run.json", "metrics.jsonl", "evaluation.csv", "episodes.csv"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty results folder."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def record(root: Path, *names: str) -> str:
    """Record runs by the command line; the README."""
    report.main(
        ["record", *names, "--outputs", str(root / "outputs"), "--results-dir", str(root / "results")]
    )
    return (root / "results" / README).read_text(encoding="utf-8")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("folder", ["outputs", "runs"])
def test_a_complete_run_stands_beside_the_published_range(tmp_path: Path, results: Path, folder: str) -> None:
    name = write_run(tmp_path, FakeRun(score=80.0))
    (tmp_path / "runs" / name).mkdir(parents=True)
    text = record(tmp_path, str(tmp_path / folder / name))  # as a shell completes it
    entry = results / "STORM" / "Boxing" / "seed_0"
    assert "| [STORM](STORM/Boxing/seed_0/) | Boxing | 0 | 100,000 | 80.0 |" in text
    assert "| 79.7 (71.5 to 90.5) |" in text and "partial" not in text
    assert "a fake processor" in text and "0123456789ab" in text
    assert {path.name for path in entry.iterdir()} == PARTS | {"manifest.json"}
    assert set(json.loads((entry / "manifest.json").read_text())) == PARTS
    assert len((entry / "episodes.csv").read_text().splitlines()) == 1 + 2 * 4
    assert record(tmp_path, name) == text, "recording the same run again changes nothing"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reached": 35_000, "evaluated": (30_000,)}, "stopped at step 35,000 of 102,000"),
        ({"evaluated": ()}, "does not cover the checkpoint of step 100,000"),
        ({"evaluated": (50_000, 95_000)}, "does not cover the checkpoint of step 100,000"),
    ],
)
def test_an_incomplete_run_needs_partial_and_is_not_compared(
    tmp_path: Path, results: Path, change: dict, reason: str
) -> None:
    name = write_run(tmp_path, FakeRun(**change))
    with pytest.raises(UserError, match=reason):
        record(tmp_path, name)
    assert not (results / "STORM" / "Boxing" / "seed_0").exists()
    text = record(tmp_path, "--partial", name)
    assert "STORM, Boxing, seed 0 is partial: " in text and reason in text and "71.5" not in text


def test_metrics_that_end_early_are_incomplete(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun())
    metrics = tmp_path / "outputs" / name / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-20]))
    enter(metrics.parent, {"metrics.jsonl": metrics})
    with pytest.raises(UserError, match="metrics end at step"):
        record(tmp_path, name)


def test_a_tiny_run_is_recorded_but_not_compared(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun(label="STORM-tiny", steps=2_000, evaluated=(1_000, 2_000), score=5.0))
    text = record(tmp_path, name)
    assert "| 2,000 | 5.0 |" in text and "71.5" not in text and "partial" not in text


def edit_score(tables: Path, name: str) -> None:
    """Two points more, in the mean and in every episode."""
    edit(tables / f"{name}.csv", "\n100000,80.0", "\n100000,82.0")
    edit(tables / f"{name}_episodes.csv", ",82.0,100,", ",84.0,100,")
    path = tables / f"{name}_episodes.csv"
    path.write_text(path.read_text().replace(",78.0,100,", ",80.0,100,"))


def swap_evaluations(tables: Path, name: str) -> None:
    """The tables of another seed."""
    other = write_run(tables.parents[1], FakeRun(seed=1, score=90.0))
    for end in (".csv", "_episodes.csv"):
        (tables / f"{other}{end}").replace(tables / f"{name}{end}")


ALTERATIONS: list[tuple[Callable[[Path, Path, str], object], str]] = [
    (lambda run, tables, name: edit(run / "config.yaml", "Lambda: 0.95", "Lambda: 0.9"), "config.yaml"),
    (lambda run, tables, name: edit(run / "run.json", "a fake", "another"), "run.json"),
    (lambda run, tables, name: edit(run / "metrics.jsonl", "80.0", "81.0"), "metrics.jsonl"),
    (lambda run, tables, name: (run / "metrics.jsonl").unlink(), "metrics.jsonl"),
    (lambda run, tables, name: (run / "manifest.json").write_text("["), "type its command again"),
    (lambda run, tables, name: (run / "manifest.json").unlink(), "type its command again"),
    (lambda run, tables, name: edit(tables / f"{name}.csv", "\n50000,", "\n60000,"), "evaluate again"),
    (lambda run, tables, name: edit(tables / f"{name}_episodes.csv", ",100,", ",99,"), "_episodes.csv"),
    (lambda run, tables, name: edit_score(tables, name), r"seed_0.csv"),
    (lambda run, tables, name: swap_evaluations(tables, name), "seed_0.csv"),
]


@pytest.mark.parametrize(("alter", "reason"), ALTERATIONS)
def test_a_run_that_was_altered_is_refused(
    tmp_path: Path, results: Path, alter: Callable[[Path, Path, str], object], reason: str
) -> None:
    name = write_run(tmp_path, FakeRun(score=80.0))
    alter(tmp_path / "outputs" / name, tmp_path / "outputs" / "eval_result", name)
    for options in ([], ["--partial"]):
        with pytest.raises(UserError, match=reason):
            record(tmp_path, *options, name)
    assert find_entries(results) == []


def test_a_run_without_a_commit_is_refused(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun())
    edit(tmp_path / "outputs" / name / "run.json", '"0123456789abcdef0123456789abcdef01234567"', "null")
    with pytest.raises(UserError, match="does not say commit"):
        record(tmp_path, "--partial", name)


def test_real_runs_can_be_recorded_once_they_end_or_stop(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = tmp_path / "outputs" / "run", tmp_path / "outputs" / "eval_result" / "run.csv"
    original = TrainingRun.record

    def stop(run: TrainingRun, result: object) -> None:
        original(run, result)
        if run.step == 60:
            os.kill(os.getpid(), signal.SIGTERM)
        if run.step == 70:
            raise KeyboardInterrupt  # as if it was killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "record", stop)
        assert train(tmp_path, "run").code == 75
        assert "is partial" in record(tmp_path, "--partial", "run")
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "run")
    with pytest.raises(UserError, match="type its command again"):
        record(tmp_path, "--partial", "run")
    assert train(tmp_path, "run").code == 0
    with pytest.raises(UserError, match="does not cover the checkpoint of step 120"):
        record(tmp_path, "run")
    assert evaluate(tmp_path, "-run_name=outputs/run/", "-checkpoints=last").code == 0
    record(tmp_path, "run")

    directory = RunDirectory("run", tmp_path)
    for words in ('"finished"', '"running"'), ('"finished"', '"finished"'):
        edit(folder / "run.json", *words)  # as if it had died at its very end, before or after saying so
        strike(folder, TRAINED)
        assert train(tmp_path, "run").code == 0
        assert altered(folder, directory.trained | directory.evaluated) == []

    assert train(tmp_path, "run", "JointTrainAgent.SampleMaxSteps=130").code == 0  # extended
    with pytest.raises(UserError, match="does not cover the checkpoint of step 130"):
        record(tmp_path, "run")  # nothing else is wrong: its earlier evaluations are as they were
    edit(table, "\n120,", "\n120,1")
    assert evaluate(tmp_path, "-run_name=run", "-checkpoints=last").code == 0
    with pytest.raises(UserError, match=r"run.csv: altered"):
        record(tmp_path, "run")  # an evaluation after it does not make an edit right


@pytest.mark.parametrize("file", ["evaluation.csv", "config.yaml", "metrics.jsonl", "extra.txt"])
def test_an_altered_entry_stops_the_table(tmp_path: Path, results: Path, file: str) -> None:
    name = write_run(tmp_path, FakeRun())
    path = record_run(name, tmp_path / "outputs", results) / file
    path.write_text((path.read_text() if path.exists() else "") + "\n")
    for arguments in ((), (name,)):
        with pytest.raises(UserError, match=f"altered after it was recorded: {file}"):
            record(tmp_path, *arguments)
    path.unlink()
    if file != "extra.txt":
        with pytest.raises(UserError, match=f"altered after it was recorded: {file}"):
            record(tmp_path)


def test_only_a_partial_entry_gives_way_to_a_longer_run(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun(reached=40_000, evaluated=(40_000,)))
    record_run(name, tmp_path / "outputs", results, partial=True)
    shutil.rmtree(tmp_path / "outputs")
    write_run(tmp_path, FakeRun(score=85.0))
    text = record(tmp_path, name)
    assert "| 85.0 |" in text
    write_evaluations(tmp_path, FakeRun(score=90.0))
    with pytest.raises(UserError, match="already holds another complete run"):
        record(tmp_path, name)
    assert find_entries(results)[0].run.scored.mean == 85.0


def test_a_score_made_greedily_says_so(tmp_path: Path, results: Path) -> None:
    assert "| 80.0 | greedily |" in record(tmp_path, write_run(tmp_path, FakeRun(score=80.0, how="fair,1")))


def test_recorded_entries_can_be_reported(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun(score=80.0))
    record(tmp_path, name)
    shutil.rmtree(tmp_path / "outputs")
    (run,), left_out = find_runs(tmp_path / "outputs", [str(results / "*" / "*" / "seed_*")])
    assert (run.name, run.game, run.seed, run.scored.mean, left_out) == (
        "STORM/Boxing/seed_0",
        "Boxing",
        0,
        80.0,
        [],
    )
    assert run.history.last_step == 102_000 and len(run.history.returns) == 102


def test_unknown_and_hostile_run_names_are_refused(tmp_path: Path, results: Path) -> None:
    write_run(tmp_path, FakeRun())
    for name, reason in (
        ("Boxing-STORM-seed_1", "did you mean 'Boxing-STORM-seed_0'"),
        ("../x", "plain name"),
    ):
        with pytest.raises(UserError, match=reason):
            record(tmp_path, name)


def test_the_readme_of_this_repository_is_what_its_entries_say() -> None:
    text = render_readme(find_entries(RESULTS), load_published(), RESULTS)
    assert (RESULTS / README).read_text(encoding="utf-8") == text


def test_a_run_called_by_another_model_is_not_recorded_as_that_model(tmp_path: Path) -> None:
    name = write_run(tmp_path, FakeRun())
    edit(tmp_path / "outputs" / name / "config.yaml", "ModelType: STORM", "ModelType: GITSTORM")
    assert load_run(RunFiles.of_output(name, tmp_path / "outputs")).label == "STORM-GITSTORM"
