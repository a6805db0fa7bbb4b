"""Speed settings change nothing but rounding: precision, compiled kernels, CUDA graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import execution
from config import load_config
from config_schema import BasicSettings, Config
from execution import CompiledFunction, Execution, choose_precision, cpu_has_bfloat16
from measurements import Iteration

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
MODEL_TYPES = ("STORM", "GITSTORM")
NUM_ACTIONS = 4

# Compiled and eager differ by the order of float32 sums alone: relative to the largest value.
TOLERANCE = 1e-4


def small_config(model_type: str, *overrides: str) -> Config:
    return load_config(
        [
            f"BasicSettings.config_path=config_files/{model_type}-catch.yaml",
            "BasicSettings.Precision=float32",
            "Models.WorldModel.Dropout=0",
            *overrides,
        ]
    )


def run_updates(model_type: str, device: str, compiled: bool, updates: int = 6) -> dict[str, torch.Tensor]:
    """Weights, rollout and metrics after some updates on the same data with the same noise."""
    config = small_config(model_type, f"BasicSettings.Compile={'always' if compiled else 'never'}")
    iteration = Iteration(config, NUM_ACTIONS, Execution(config.BasicSettings, torch.device(device)))
    torch.manual_seed(0)
    for part in (iteration.learner.world_model, iteration.learner.agent):
        for parameter in part.parameters():
            parameter.data = torch.randn(parameter.shape).mul(0.05).to(device)
    for _ in range(updates):
        iteration.fit_world_model()
        iteration.imagine()
        iteration.fit_agent()
    results = {f"rollout {index}": value for index, value in enumerate(iteration.rollout)}
    results |= {f"weight {name}": value for name, value in iteration.learner.world_model.state_dict().items()}
    results |= {f"agent {name}": value for name, value in iteration.learner.agent.state_dict().items()}
    return {name: value.detach().float().cpu().clone() for name, value in results.items()}


def assert_agree(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = other[name].abs().max().clamp(min=1e-6)
        assert (value - other[name]).abs().max() / scale <= TOLERANCE, name


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx512_bf16 sse", True),
        ("flags : fpu avx512f", False),
        ("Features : fp bf16", True),
        ("", False),
    ],
)
def test_native_bfloat16_is_read_off_the_processor(tmp_path: Path, flags: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\n{flags}\n")
    assert cpu_has_bfloat16(path) is expected


def test_auto_precision_takes_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(execution, "cpu_has_bfloat16", lambda native=native: native)
        assert choose_precision("auto", device) is dtype
    assert choose_precision("float16", device) is torch.float16


def test_auto_never_compiles_on_a_cpu() -> None:
    device = torch.device("cpu")
    assert not Execution(BasicSettings(Compile="auto"), device).compiles
    assert not Execution(BasicSettings(Compile="never"), device).compiles
    always = Execution(BasicSettings(Compile="always"), device)
    assert always.compiles and not always.graphs


def test_autocast_covers_the_call_and_nothing_after() -> None:
    run = Execution(BasicSettings(Precision="bfloat16"), torch.device("cpu"))
    weight = torch.randn(4, 4)
    product = run.autocast(lambda x: x @ weight)
    assert product(weight).dtype is torch.bfloat16
    assert (weight @ weight).dtype is torch.float32


def test_a_function_that_cannot_be_compiled_runs_eagerly_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def breaks(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    compiled = CompiledFunction(breaks)
    compiled._compiled = torch.compile(breaks, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == 1
    assert compiled.fallback_reason and compiled.fallback_reason in caplog.text
    assert compiled(torch.ones(1)).item() == 2


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_compiled_agrees_with_eager_on_a_cpu(model_type: str) -> None:
    assert_agree(run_updates(model_type, "cpu", True, 2), run_updates(model_type, "cpu", False, 2))


@needs_gpu
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_graphs_agree_with_eager_on_a_gpu(model_type: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    assert_agree(run_updates(model_type, "cuda", True), run_updates(model_type, "cuda", False))


@needs_gpu
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_phase_is_captured_as_a_graph(model_type: str) -> None:
    config = small_config(model_type, "BasicSettings.Compile=always", "BasicSettings.Precision=bfloat16")
    iteration = Iteration(config, NUM_ACTIONS, Execution(config.BasicSettings, torch.device("cuda")))
    for _ in range(config.BasicSettings.GraphWarmUpCalls + 1):
        for phase in iteration.phases().values():
            phase()
    learner = iteration.learner
    for function in (
        learner._fit_world_model,
        learner._imagine,
        learner._fit_agent,
        iteration.policy._choose,
    ):
        assert function.fallback_reason is None and function._graph is not None


@needs_gpu
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_update_never_waits_for_the_device(model_type: str) -> None:
    config = small_config(model_type, "BasicSettings.Compile=never")
    iteration = Iteration(config, NUM_ACTIONS, Execution(config.BasicSettings, torch.device("cuda")))
    phases = (iteration.sample_all, iteration.fit_world_model, iteration.imagine, iteration.fit_agent)
    for phase in phases:
        phase()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for phase in phases:
            phase()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_uploads_do_not_wait() -> None:
    run = Execution(BasicSettings(), torch.device("cuda"))
    array = np.arange(12, dtype=np.uint8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor = run.upload(array)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tensor.cpu().tolist() == array.tolist()
