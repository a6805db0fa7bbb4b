"""benchmark.py at the smallest sizes: what it prints and writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import GIT_STORM, SMALL

import benchmark
from env_wrapper import EnvironmentFault, StepResult, VectorEnvironment
from utils import UserError

SHORT = ["--repeats=1", "--warm-up=0"]
PHASES = ["acting", "replay sampling", "world model", "imagination", "agent"]


def test_one_call_measures_phases_and_the_whole_loop(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "figures.json"
    benchmark.main([*SMALL, GIT_STORM, *SHORT, "--steps=24", f"--json={file}", f"--profile={tmp_path}"])
    figures = json.loads(file.read_text())
    keys = {"iteration_s", "iterations_per_s", "env_steps_per_s", "phases", "flop", "peak", "device"}
    assert keys | {"precision", "commit"} <= set(figures)
    assert list(figures["phases"]) == PHASES
    learning = PHASES[2:]
    assert figures["iteration_s"] == sum(figures["phases"][name]["median_s"] for name in learning)
    assert figures["flop"] == sum(figures["phases"][name]["flop"] for name in learning) > 0
    assert figures["env_steps_per_s"] > 0 and figures["precision"] == "float32"
    printed = capsys.readouterr().out
    assert all(name in printed for name in PHASES) and "whole loop" in printed
    assert "of copy" not in printed  # a share that said nothing to a reader, or more than all
    assert (tmp_path / "trace.json").stat().st_size and "aten::" in (tmp_path / "kernels.txt").read_text()


@pytest.mark.parametrize("other", ["BasicSettings.ImageSize=32", "JointTrainAgent.BatchSize=8"])
def test_the_release_is_compared_with_at_its_sizes_only(other: str) -> None:
    device = torch.device("cpu")
    assert benchmark.is_release_size(benchmark.load_config([]), device)
    assert not benchmark.is_release_size(benchmark.load_config([other]), device)
    assert not benchmark.is_release_size(benchmark.load_config([]), torch.device("meta"))


def test_an_environments_fault_does_not_end_the_measurement_of_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = VectorEnvironment.finish_step, []

    def failing(self: VectorEnvironment) -> StepResult:
        result = original(self)
        calls.append(result)
        if len(calls) == 3:
            raise EnvironmentFault("it died")
        return result

    monkeypatch.setattr(VectorEnvironment, "finish_step", failing)
    config = benchmark.load_config([*SMALL, "BasicSettings.env_name=Diagnostic/Catch-v0"])
    assert benchmark.evaluation_speed(config, 4)["evaluation_steps_per_s"] > 0 and len(calls) > 3


def test_all_rows_come_from_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "HORIZONS", (2, 4))
    file = tmp_path / "rows.json"
    benchmark.main([*SMALL, *SHORT, "--repeats=5", "--rows", "--steps=8", f"--json={file}"])
    rows = json.loads(file.read_text())
    assert rows["horizon_ratio"] > 0 and set(rows["horizons"]) == {"2", "4"}
    assert rows["env_steps_per_s"] == rows["loops"]["STORM-tiny"]["env_steps_per_s"]
    assert set(rows["loops"]) == {"STORM-tiny", "GITSTORM-tiny"}
    for loop in rows["loops"].values():
        assert loop["env_steps_per_s"] > 0 and loop["evaluation_steps_per_s"] > 0


def test_a_horizon_counts_the_fastest_of_turns_of_the_same_length(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def in_turn(clock: benchmark.Clock, *functions: Callable[[], None]) -> list[list[float]]:
        for function in functions:
            before = len(calls)
            function()
            calls[before:] = [len(calls) - before]
        return [[9.0, 8.0], [4.0], [6.0], [2.0, 3.0]]

    def counting(iteration: benchmark.Iteration) -> None:
        calls.append(1)

    monkeypatch.setattr(benchmark.Clock, "measure", in_turn)
    monkeypatch.setattr(benchmark.Iteration, "imagine", counting)
    monkeypatch.setattr(benchmark.Iteration, "encode_context", counting)
    config = benchmark.load_config(SMALL)
    clock = benchmark.Clock(benchmark.resolve_device("cpu"), 1, 0)
    spaces = benchmark.environment_spaces(config)
    growth = benchmark.imagination_growth(config, clock, spaces, (2, 8))
    assert calls == [4, 4, 1, 1]
    assert growth[2] == {"imagination_s": 2.0, "context_s": 1.0}
    assert growth[8] == {"imagination_s": 6.0, "context_s": 2.0}


@pytest.mark.parametrize("option", ["--repeats=0", "--warm-up=-1", "--steps=-1"])
def test_counts_that_make_no_sense_are_refused(option: str) -> None:
    with pytest.raises(UserError, match="at least"):
        benchmark.main([*SMALL, option])


def test_the_loops_of_a_gpu_are_runs_of_paper_size() -> None:
    loops = {title: benchmark.load_config(settings) for title, settings in benchmark.LOOPS["cuda"].items()}
    assert {loop.JointTrainAgent.ModelType for loop in loops.values()} == {"STORM", "GITSTORM"}
    assert {loop.BasicSettings.ReplayBufferOnGPU for loop in loops.values()} == {True, False}
    for loop in loops.values():
        assert loop.Evaluation.NumEnvs == 20 and loop.JointTrainAgent.ImagineBatchSize == 1024
