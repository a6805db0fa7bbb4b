"""Speed settings change nothing but rounding: precision, compiled kernels, CUDA graphs."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_support import image_spaces

from compute import execution
from compute.execution import Execution, GraphedFunction, choose_precision, cpu_has_bfloat16
from configuration.loading import load_config
from configuration.schema import BasicSettings
from sub_models.batch import Rollout
from training.measurements import Iteration
from utils import resolve_device

MODEL_TYPES = ("STORM", "GITSTORM")
NUM_ACTIONS = 4
REPOSITORY = Path(__file__).resolve().parents[2]

# Compiled and eager code add in another order. What an update changes in all parameters together, and
# in each, may differ by this much, relative to its norm. Eager code differs from itself by 3e-4 and 8e-3
# when it convolves without oneDNN: gradients before a BatchNorm nearly cancel. And this share of sampled
# actions may fall on the other side of a draw.
TOLERANCE, EACH = 1e-3, 2e-2
OTHER_ACTIONS = 0.01


def make_iteration(model_type: str, device: str, compiled: bool) -> Iteration:
    """The same weights, data and noise at every call.

    A large epsilon makes Adam's step smooth in the gradient, so that rounding stays rounding.
    """
    config = load_config(
        [
            f"BasicSettings.config_path=config_files/{model_type}-catch.yaml",
            "BasicSettings.Precision=float32",
            f"BasicSettings.Compile={'always' if compiled else 'never'}",
            "Models.WorldModel.Dropout=0",
            "Models.WorldModel.AdamEps=1",
            "Models.Agent.AdamEps=1",
        ]
    )
    torch.manual_seed(0)
    spaces = image_spaces(config.BasicSettings.ImageSize, NUM_ACTIONS)
    return Iteration(config, spaces, Execution(config.BasicSettings, resolve_device(device)))


def change(module: torch.nn.Module, update: Callable[[], None], times: int) -> dict[str, torch.Tensor]:
    """What repeating an update changes in each trained parameter."""
    before = {
        name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad
    }
    for _ in range(times):
        update()
    after = dict(module.named_parameters())
    return {name: (after[name].detach() - value).cpu() for name, value in before.items()}


def run(model_type: str, device: str, compiled: bool, updates: int) -> tuple[list[dict], torch.Tensor]:
    """Parameter changes of world model and agent, and the last imagined actions."""
    iteration = make_iteration(model_type, device, compiled)
    for _ in range(updates):
        feature, action, reward, termination = iteration.imagine()
    actions = action.cpu().clone()
    generator = torch.Generator().manual_seed(0)
    rollout = Rollout(
        torch.rand(feature.shape, generator=generator).to(feature),
        torch.randint(NUM_ACTIONS, actions.shape, generator=generator).to(device),
        torch.rand(reward.shape, generator=generator).to(reward),
        torch.zeros_like(termination),
    )
    learner = iteration.learner
    changes = [
        change(learner.agent, lambda: learner.update_agent(rollout), updates),
        change(learner.world_model, lambda: learner.update_world_model(iteration.windows), updates),
    ]
    return changes, actions


def assert_compiled_agrees(model_type: str, device: str, updates: int, compiled: bool = True) -> None:
    compiled, compiled_actions = run(model_type, device, compiled, updates)
    eager, eager_actions = run(model_type, device, False, updates)
    for one, other in zip(compiled, eager, strict=True):
        for name, value in other.items():
            assert value.norm() > 0, name
            assert (one[name] - value).norm() / value.norm() <= EACH, name
        one, other = (torch.cat([value.flatten() for value in changes.values()]) for changes in (one, other))
        assert (one - other).norm() / other.norm() <= TOLERANCE
    assert (compiled_actions != eager_actions).float().mean() <= OTHER_ACTIONS


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


FAULTS_OF_A_LARGE_TENSOR = """
import resource, torch
from configuration.schema import BasicSettings
from compute.execution import Execution

Execution(BasicSettings(), torch.device("cpu"))
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_reused_without_the_system_clearing_it_again() -> None:
    """In a process of its own: what lay in this one's memory before would decide where there is room."""
    command = [sys.executable, "-c", FAULTS_OF_A_LARGE_TENSOR]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    pages = (1 << 26) // resource.getpagesize()
    # The first ones make room, perhaps twice where something small comes to lie in between.
    assert min(int(line) for line in output.split()) < pages / 10


def test_autocast_covers_the_call_and_nothing_after() -> None:
    run = Execution(BasicSettings(Precision="bfloat16"), torch.device("cpu"))
    weight = torch.randn(4, 4)
    product = run.autocast(lambda x: x @ weight)
    assert product(weight).dtype is torch.bfloat16
    assert (weight @ weight).dtype is torch.float32


def test_a_function_that_cannot_be_compiled_runs_eagerly_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Breaks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(20))

        def plus_one(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return x + 1

    run = Execution(BasicSettings(Precision="bfloat16", Compile="always"), torch.device("cpu"))
    compiled = run.compile(run.autocast(Breaks().plus_one))
    assert compiled(torch.zeros(1)).item() == 1
    assert compiled.fallback_reason and compiled.fallback_reason in caplog.text
    (said,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "Breaks.plus_one" in said and len(said.splitlines()) == 1
    assert compiled(torch.ones(1)).item() == 2


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_compiled_agrees_with_eager_on_a_cpu(model_type: str, caplog: pytest.LogCaptureFixture) -> None:
    assert_compiled_agrees(model_type, "cpu", updates=2)
    assert "cannot compile" not in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_graphs_agree_with_eager_on_a_gpu(model_type: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    assert_compiled_agrees(model_type, "cuda", updates=6)
    assert "running it eagerly" not in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_phase_is_captured_as_a_graph(model_type: str) -> None:
    iteration = make_iteration(model_type, "cuda", compiled=True)
    for _ in range(iteration.config.BasicSettings.GraphWarmUpCalls + 1):
        for phase in iteration.phases().values():
            phase()
    learner = iteration.learner
    for function in (
        learner.world_model_optimizer._update,
        learner._roll_out,
        learner.agent_optimizer._update,
        iteration.policy._choose,
    ):
        assert not function.failures and function._graph is not None


@pytest.mark.gpu
def test_after_a_failed_capture_all_goes_on_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    run = Execution(BasicSettings(Compile="always"), resolve_device("cuda"))
    good = run.graph(lambda x: torch.nn.functional.dropout(x, 0.5))
    bad = run.graph(lambda x: torch.nn.functional.dropout(x, 0.5) * x.sum().item())
    x = torch.ones(64, device=run.device)
    for _ in range(run.warm_up_calls + 1):
        good(x)
    for _ in range(run.warm_up_calls + 1):
        bad(x)
    assert run.graph_failures and run.graph_failures[0] in caplog.text
    assert not torch.equal(bad(x), bad(x)) and not torch.equal(good(x), good(x))


class BrokenCapture:
    """In place of torch.cuda.graph: fails on leaving, as after an operation that cannot be captured."""

    def __init__(self, graph: object, stream: object) -> None:
        self.graph, self.stream = graph, stream

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_failed_capture_is_told_once_and_shared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    restored: list[str] = []
    devices: list[torch.device] = []

    def entered(device: torch.device) -> contextlib.AbstractContextManager[None]:
        devices.append(device)
        return contextlib.nullcontext()

    for name, stand_in in {
        "graph": BrokenCapture,
        "CUDAGraph": object,
        "current_stream": lambda: None,
        "set_stream": lambda stream: None,
        "get_rng_state": lambda: "state before",
        "device": entered,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(execution, "replace_default_generator", restored.append)
    failures: list[str] = []
    card = torch.device("cuda:1")
    one, other = (GraphedFunction(lambda x: x + 1, 0, failures, card) for _ in range(2))
    other._graph = other._outputs = "memory of a card"
    for _ in range(2):
        assert one(torch.zeros(1)).item() == other(torch.zeros(1)).item() == 1
    assert failures == ["operation not permitted when stream is capturing"] and restored == ["state before"]
    assert caplog.text.count("no CUDA graph") == 1
    assert devices == [card] * 4, "a function acts on its own card, whichever is the current one"
    assert other._graph is None and other._outputs is None


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_bad_batch_leaves_no_trace(device: str) -> None:
    iteration = make_iteration("STORM", device, compiled=device == "cuda")
    learner, good = iteration.learner, iteration.windows
    bad = good._replace(reward=good.reward * float("nan"))
    for _ in range(iteration.execution.warm_up_calls + 2):  # captured by then
        learner.update_world_model(good)
    before = {name: value.clone() for name, value in learner.world_model.state_dict().items()}
    learner.update_world_model(bad)
    assert learner.world_model_optimizer.bad_total == 1
    for name, value in learner.world_model.state_dict().items():
        assert torch.equal(value, before[name]), name
    learner.update_world_model(good)
    after = learner.world_model.state_dict()
    assert not all(torch.equal(value, before[name]) for name, value in after.items())


def phases_of_an_update(iteration: Iteration) -> list[Callable[[], object]]:
    """Everything of an iteration but acting, which fetches the actions."""
    frame = iteration.windows.observation[:1, 0]

    def store() -> None:
        numbers = (np.zeros(1, np.int64), np.zeros(1, np.float32), np.zeros(1, np.float32))
        iteration.replay.append(frame, *map(iteration.execution.upload, numbers))

    return [store, *(phase for name, phase in iteration.phases().items() if name != "acting")]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_the_tests_of_a_gpu_and_of_compilers_do_runs_here(model_type: str) -> None:
    assert_compiled_agrees(model_type, "cpu", updates=1, compiled=False)
    iteration = make_iteration(model_type, "cpu", compiled=False)
    stored = iteration.replay.count
    for phase in phases_of_an_update(iteration):
        phase()
    assert iteration.replay.count == stored + 1


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_host_never_waits_for_an_update(model_type: str, compiled: bool) -> None:
    iteration = make_iteration(model_type, "cuda", compiled)
    phases = phases_of_an_update(iteration)
    for _ in range(iteration.execution.warm_up_calls + 2):
        for phase in phases:
            phase()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for phase in phases:
            phase()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_uploads_do_not_wait() -> None:
    run = Execution(BasicSettings(), resolve_device("cuda"))
    array = np.arange(12, dtype=np.uint8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor = run.upload(array)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tensor.cpu().tolist() == array.tolist()
