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
from reporting.entries import find_entries
from reporting.ledger import README, render_readme
from reporting.published import load_published
from reporting.record import record_run
from reporting.runs import RunFiles, find_runs, load_run
from run_files.seals import SEAL, check_run, seal_run
from run_files.tensor_files import write_tensors
from training.run import TrainingRun
from utils import UserError

BELOW = "below STORM's published minimum"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty results folder."""
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(RESULTS / "published.json", folder)
    return folder


def record(root: Path, *names: str) -> str:
    """Record runs by the command line; the README."""
    report.main(
        ["record", *names, "--outputs", str(root / "outputs"), "--results-dir", str(root / "results")]
    )
    return (root / "results" / README).read_text(encoding="utf-8")


def test_complete_run_stands_beside_the_published_range(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun(score=80.0))
    assert (tmp_path / "outputs" / name / "ckpt" / "agent_100000.pth").is_file()
    text = record(tmp_path, name)
    entry = results / "STORM" / "Boxing" / "seed_0"
    assert "| Boxing | 79.7 (71.5 to 90.5) | [80.0](STORM/Boxing/seed_0/) (seed 0) | no run yet |" in text
    assert "a fake processor" in text and "0123456789ab" in text and BELOW not in text
    assert "| Pong | 11.3 (-7.4 to 20.8) | no run yet | no run yet |" in text
    names = {path.name for path in entry.iterdir()}
    assert names == {
        "config.yaml",
        "run.json",
        "evaluation.csv",
        "episodes.csv",
        "metrics.jsonl",
        "manifest.json",
    }
    assert set(json.loads((entry / "manifest.json").read_text())["files"]) == names - {"manifest.json"}
    assert len((entry / "episodes.csv").read_text().splitlines()) == 1 + 2 * 4
    assert record(tmp_path, name) == text, "recording the same run again changes nothing"


def test_score_below_the_published_minimum_is_flagged_until_explained(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun(score=60.0))
    text = record(tmp_path, name)
    assert text.count(BELOW) >= 2 and "not explained yet" in text
    (results / "STORM" / "Boxing" / "seed_0" / "notes.md").write_text("Sticky actions were off.")
    text = record(tmp_path)
    assert "Sticky actions were off." in text and "not explained yet" not in text and BELOW in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reached": 35_000, "evaluated": (30_000,)}, "stopped at step 35,000 of 102,000"),
        ({"evaluated": ()}, "does not cover the checkpoint of step 100,000"),
        ({"evaluated": (50_000, 95_000)}, "does not cover the checkpoint of step 100,000"),
    ],
)
def test_incomplete_run_needs_partial_and_stays_out_of_scores(
    tmp_path: Path, results: Path, change: dict, reason: str
) -> None:
    run = FakeRun(**change)
    name = write_run(tmp_path, run)
    with pytest.raises(UserError, match=reason):
        record(tmp_path, name)
    assert not (results / "STORM" / "Boxing" / "seed_0").exists()
    text = record(tmp_path, "--partial", name)
    assert "| Boxing | 79.7 (71.5 to 90.5) | no run yet | no run yet |" in text
    assert f"{run.last_step} (partial)" in text.split("## Partial and shorter runs")[1]


def test_metrics_that_end_early_are_incomplete(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun())
    metrics = tmp_path / "outputs" / name / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-20]))
    with pytest.raises(UserError, match="metrics end at step"):
        record(tmp_path, name)


def test_tiny_run_is_recorded_but_not_compared(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun(label="STORM-tiny", steps=2_000, evaluated=(1_000, 2_000), score=5.0))
    text = record(tmp_path, name)
    assert "0 complete runs" in text
    assert "2000 (complete)" in text.split("## Partial and shorter runs")[1] and BELOW not in text


def alter_return(root: Path, name: str) -> None:
    path = root / "outputs" / "eval_result" / f"{name}.csv"
    path.write_text(path.read_text().replace("100000,80.0", "100000,95.0"))


def alter_episodes(root: Path, name: str) -> None:
    path = root / "outputs" / "eval_result" / f"{name}_episodes.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def alter_target(root: Path, name: str) -> None:
    path = root / "outputs" / name / "config.yaml"
    path.write_text(path.read_text().replace("SampleMaxSteps: 102000", "SampleMaxSteps: 100000"))


def alter_name(root: Path, name: str) -> None:
    path = root / "outputs" / name / "config.yaml"
    path.write_text(path.read_text().replace(name, "Boxing-STORM-seed_5"))


def alter_metrics(root: Path, name: str) -> None:
    path = root / "outputs" / name / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 200000}\n')


def alter_order(root: Path, name: str) -> None:
    path = root / "outputs" / name / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5}\n')


def forget_commit(root: Path, name: str) -> None:
    path = root / "outputs" / name / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "commit": None}))


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (alter_return, "was altered.*95.*mean 80"),
        (alter_episodes, "was altered.*3 episodes"),
        (alter_target, "altered.*sample_max_steps is 102000, not 100000"),
        (alter_name, "altered.*BasicSettings.n"),
        (alter_metrics, "altered.*after its end at 102,000"),
        (alter_order, "altered.*go backwards"),
        (forget_commit, "does not say commit"),
    ],
)
def test_altered_run_is_refused_even_as_partial(tmp_path: Path, results: Path, alter, reason: str) -> None:  # noqa: ANN001
    name = write_run(tmp_path, FakeRun(score=80.0))
    alter(tmp_path, name)
    with pytest.raises(UserError, match=reason):
        record(tmp_path, "--partial", name)
    assert find_entries(results) == []


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_score(tables: Path, name: str) -> None:
    """Two points more, in the mean and in every episode."""
    edit(tables / f"{name}.csv", "\n100000,80.0", "\n100000,82.0")
    edit(tables / f"{name}_episodes.csv", ",82.0,100,4", ",84.0,100,4")
    path = tables / f"{name}_episodes.csv"
    path.write_text(path.read_text().replace(",78.0,100,4", ",80.0,100,4"))


def edit_step(tables: Path, name: str, old: str, new: str) -> None:
    for end in ("", "_episodes"):
        edit(tables / f"{name}{end}.csv", f"\n{old},", f"\n{new},")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap_evaluations(tables: Path, name: str) -> None:
    """The tables of another seed, with their seal."""
    other = write_run(tables.parents[1], FakeRun(seed=1, score=90.0))
    for end in (".csv", "_episodes.csv", f"_{SEAL}"):
        (tables / f"{other}{end}").replace(tables / f"{name}{end}")


def reseal_edited(run: Path) -> None:
    """Another config than at the evaluation, sealed."""
    edit(run / "config.yaml", "StickyActions: 0.25", "StickyActions: 0.5")
    (run / SEAL).unlink()
    seal_run(run)


SEALED: list[tuple[Callable[[Path, Path, str], object], str]] = [
    (lambda run, tables, name: edit(run / "config.yaml", "Lambda: 0.95", "Lambda: 0.9"), "config.yaml"),
    (lambda run, tables, name: edit(run / "run.json", "a fake", "another"), "run.json"),
    (
        lambda run, tables, name: edit(run / "metrics.jsonl", '_reward": 80.0', '_reward": 81.0'),
        "metrics.jsonl",
    ),
    (lambda run, tables, name: damage(run / "ckpt" / "agent_50000.pth"), "agent_50000.pth"),
    (lambda run, tables, name: (run / "ckpt" / "agent_50000.pth").write_bytes(b""), "agent_50000.pth"),
    (lambda run, tables, name: write_tensors(run / "ckpt" / "agent_100000.pth", [1]), "agent_100000.pth"),
    (lambda run, tables, name: write_tensors(run / "ckpt" / "agent_7.pth", [1]), "agent_7.pth"),
    (lambda run, tables, name: (run / "ckpt" / "agent_50000.pth").unlink(), "agent_50000.pth is missing"),
    (lambda run, tables, name: (run / SEAL).write_text("["), f"{SEAL} was altered"),
    (lambda run, tables, name: (run / SEAL).unlink(), f"has no {SEAL}"),
    (lambda run, tables, name: edit(tables / f"{name}.csv", ",,4,0", ",,4,1"), r"seed_0.csv was altered"),
    (lambda run, tables, name: edit(tables / f"{name}_episodes.csv", ",100,4", ",99,4"), "_episodes.csv"),
    (lambda run, tables, name: edit_score(tables, name), r"seed_0.csv .* step 100000"),
    (lambda run, tables, name: edit_step(tables, name, "50000", "60000"), r"seed_0.csv .* step 50000"),
    (lambda run, tables, name: swap_evaluations(tables, name), "played with other weights"),
    (lambda run, tables, name: (tables / f"{name}_{SEAL}").unlink(), "evaluate that step again"),
    (lambda run, tables, name: reseal_edited(run), "played with another config.yaml"),
]


@pytest.mark.parametrize(("alter", "reason"), SEALED)
def test_run_that_differs_from_its_seal_is_refused(
    tmp_path: Path, results: Path, alter: Callable[[Path, Path, str], object], reason: str
) -> None:
    name = write_run(tmp_path, FakeRun(score=80.0))
    alter(tmp_path / "outputs" / name, tmp_path / "outputs" / "eval_result", name)
    for options in ([], ["--partial"]):
        with pytest.raises(UserError, match=reason):
            record(tmp_path, *options, name)
    assert find_entries(results) == []


def stop_at(patch: pytest.MonkeyPatch, step: int, stop: Callable[[], object]) -> None:
    original = TrainingRun.record

    def recorded(self: TrainingRun, result: object) -> None:
        original(self, result)
        if self.step == step:
            stop()

    patch.setattr(TrainingRun, "record", recorded)


def test_real_runs_are_sealed_when_they_end_or_stop(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tables = tmp_path / "outputs" / "run", tmp_path / "outputs" / "eval_result"

    def is_unsealed() -> None:
        assert (folder / "ckpt" / "agent_50.pth").is_file() and not (folder / SEAL).exists()

    with monkeypatch.context() as patch:
        stop_at(patch, 60, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(tmp_path, "run").code == 75
    record(tmp_path, "--partial", "run")
    with monkeypatch.context() as patch:
        stop_at(patch, 70, is_unsealed)
        assert train(tmp_path, "run").code == 0
    assert evaluate(tmp_path, "-run_name=run").code == 0
    assert "120 (complete)" in record(tmp_path, "run")

    sealed = (folder / SEAL).read_bytes()
    (folder / SEAL).unlink()  # as if it had died at its very end
    edit(folder / "run.json", '"finished"', '"running"')
    assert train(tmp_path, "run").code == 0
    assert (folder / SEAL).read_bytes() == sealed
    check_run(folder)

    edit(tables / "run.csv", "\n50,", "\n50,1")
    assert evaluate(tmp_path, "-run_name=run", "-checkpoints=last").code == 0
    with pytest.raises(UserError, match=r"run.csv was altered.*step 50 "):
        record(tmp_path, "run")
    weights = [folder / "ckpt" / f"{model}_120.pth" for model in ("world_model", "agent")]
    (tmp_path / "other").mkdir()
    for path in weights:
        shutil.copy(path.with_name(path.name.replace("120", "50")), tmp_path / "other" / path.name)
    assert evaluate(tmp_path, "-run_name=run").code == 0
    assert evaluate(tmp_path, "-run_name=run", "-ckpt_dir=other").code == 0
    with pytest.raises(UserError, match="step 120 was played with other weights"):
        record(tmp_path, "run")


def test_metrics_altered_between_two_processes_are_refused(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 60, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(tmp_path, "run").code == 75
    edit(
        tmp_path / "outputs" / "run" / "metrics.jsonl",
        '"replay_buffer/length": 60.0',
        '"replay_buffer/length": 50.0',
    )
    result = train(tmp_path, "run", "JointTrainAgent.SampleMaxSteps=65")
    assert result.code == 0 and "metrics.jsonl was altered" in result.err
    with pytest.raises(UserError, match=r"metrics.jsonl was altered"):
        record(tmp_path, "--partial", "run")


@pytest.mark.parametrize("file", ["evaluation.csv", "config.yaml", "metrics.jsonl", "extra.txt"])
def test_altered_entry_stops_the_table(tmp_path: Path, results: Path, file: str) -> None:
    name = write_run(tmp_path, FakeRun())
    path = record_run(name, tmp_path / "outputs", results) / file
    path.write_text((path.read_text() if path.exists() else "") + "\n")
    for arguments in ((), (name,)):
        with pytest.raises(UserError, match=f"altered after it was recorded: {file}"):
            record(tmp_path, *arguments)


def test_manifest_cannot_promote_a_partial_run(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun(reached=101_000))
    path = record_run(name, tmp_path / "outputs", results, partial=True) / "manifest.json"
    path.write_text(path.read_text().replace('"partial"', '"complete"'))
    with pytest.raises(UserError, match=r"manifest.json was altered"):
        find_entries(results)


def test_only_a_partial_entry_gives_way_to_a_longer_run(tmp_path: Path, results: Path) -> None:
    run = FakeRun(reached=40_000, evaluated=(40_000,))
    name = write_run(tmp_path, run)
    entry = record_run(name, tmp_path / "outputs", results, partial=True)
    (entry / "notes.md").write_text("The machine went away.")
    shutil.rmtree(tmp_path / "outputs")
    write_run(tmp_path, FakeRun(score=85.0))
    text = record(tmp_path, name)
    assert "[85.0](STORM/Boxing/seed_0/)" in text and "The machine went away." in text
    write_evaluations(tmp_path, FakeRun(score=90.0))
    with pytest.raises(UserError, match="already holds another complete run"):
        record(tmp_path, name)
    assert find_entries(results)[0].run.scored.mean == 85.0


def test_a_score_made_greedily_says_so(tmp_path: Path, results: Path) -> None:
    text = record(tmp_path, write_run(tmp_path, FakeRun(score=80.0, how="fair,1")))
    assert "[80.0](STORM/Boxing/seed_0/) (seed 0, greedily)" in text and "evaluated greedily" in text


def test_recorded_entries_can_be_reported(tmp_path: Path, results: Path) -> None:
    name = write_run(tmp_path, FakeRun(score=80.0))
    record(tmp_path, name)
    shutil.rmtree(tmp_path / "outputs")
    (run,), left_out = find_runs(tmp_path / "outputs", [str(results / "*" / "*" / "seed_*")])
    assert (run.name, run.game, run.seed, run.scored.mean, left_out) == (name, "Boxing", 0, 80.0, [])
    assert run.history.last_step == 102_000 and len(run.history.returns) == 102


def test_unknown_and_hostile_run_names_are_refused(tmp_path: Path, results: Path) -> None:
    write_run(tmp_path, FakeRun())
    for name, reason in (
        ("Boxing-STORM-seed_1", "did you mean 'Boxing-STORM-seed_0'"),
        ("../x", "plain name"),
    ):
        with pytest.raises(UserError, match=reason):
            record(tmp_path, name)


def test_readme_of_this_repository_is_what_its_entries_say() -> None:
    text = render_readme(find_entries(RESULTS), load_published(RESULTS), RESULTS)
    assert (RESULTS / README).read_text(encoding="utf-8") == text


def test_a_run_called_by_another_model_is_not_recorded_as_that_model(tmp_path: Path) -> None:
    name = write_run(tmp_path, FakeRun())
    edit(tmp_path / "outputs" / name / "config.yaml", "ModelType: STORM", "ModelType: GITSTORM")
    assert load_run(RunFiles.of_output(name, tmp_path / "outputs")).label == "STORM-GITSTORM"
