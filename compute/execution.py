"""How the steps of training and acting are run: precision, compiled kernels, CUDA graphs.

The steps themselves are plain functions of tensors. This module wraps them, so that results do
not depend on speed settings beyond rounding.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from configuration.schema import BasicSettings

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
COMPILING = "the first updates wait for kernels to be compiled, minutes (BasicSettings.Compile=never: none)"
NATIVE_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and Arm processors
KEEP_FREED_MEMORY = {-1: -1, -4: 0}  # glibc's malloc.h: M_TRIM_THRESHOLD never, M_MMAP_MAX no block


def keep_freed_memory() -> None:
    """Let this process reuse the memory it frees, where the C library can (glibc's mallopt).

    By default glibc gives every large block back to the system, which then clears it page by page
    for the next one: a third of the time of a paper-size update on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        for name, value in KEEP_FREED_MEMORY.items():
            mallopt(name, value)


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor multiplies bfloat16 natively."""
    if not cpuinfo.exists():
        return False
    flags = next(
        (line.split() for line in cpuinfo.open() if line.lower().startswith(("flags", "features"))), []
    )
    return any(flag in flags for flag in NATIVE_BFLOAT16_FLAGS)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype that matrix products run in; "auto" takes what the device has natively."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's name, for a log: a method's own text shows the whole module that it belongs to."""
    return getattr(function, "__qualname__", type(function).__name__)


class CompiledFunction:
    """A function through torch.compile, or eagerly, with the reason logged, if that fails."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.fallback_reason: str | None = None
        # A break in the graph is an error, not a silent loss of speed.
        self._compiled = torch.compile(function, dynamic=False, fullgraph=True)
        # The backward pass is compiled with the forward one, where PyTorch can, so that it fails here too.
        if hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
            torch._functorch.config.force_non_lazy_backward_lowering = True

    def __call__(self, *arguments: Any) -> Any:
        if self.fallback_reason is not None:
            return self.function(*arguments)
        try:
            return self._compiled(*arguments)
        except (
            torch._dynamo.exc.TorchDynamoException,
            torch._dynamo.exc.FailOnRecompileLimitHit,
        ) as error:
            self.fallback_reason = str(error).strip().splitlines()[0]
            log.warning(
                "cannot compile %s, running it eagerly: %s", name_of(self.function), self.fallback_reason
            )
            return self.function(*arguments)


class GraphedFunction:
    """A function of tensors, nested or not, as one CUDA graph: one launch instead of thousands.

    The first calls run eagerly and for real, on a side stream, so that libraries choose their
    kernels; the next one is captured. From then on a call copies its inputs into the graph's
    own tensors and replays it, and its outputs are overwritten by the next call. Inputs of a
    new shape start over. If the capture fails the reason is logged and every function that shares
    `failures` runs eagerly from then on: graphs captured before use the random numbers that the
    failed one has spoilt.

    Args:
        function: of tensors only; random numbers come in as arguments (dropout's generator is
            registered with the graph by PyTorch itself).
        warm_up_calls: eager calls before the capture.
        failures: reasons of failed captures, shared by the functions of a run.
        device: CUDA's, where the inputs are; it need not be the current one.
    """

    def __init__(
        self, function: Callable[..., Any], warm_up_calls: int, failures: list[str], device: torch.device
    ) -> None:
        self.function = function
        self.device = device
        self.warm_up_calls = warm_up_calls
        self.failures = failures
        self._signature: tuple[Any, ...] = ()  # structure, shapes and dtypes of the inputs
        self._seen = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Any, ...] = ()
        self._outputs: Any = None
        self._side: torch.cuda.Stream | None = None

    def __call__(self, *inputs: Any) -> Any:
        with torch.cuda.device(self.device):  # streams and captures belong to the current one, by thread
            return self._call(inputs)

    def _call(self, inputs: tuple[Any, ...]) -> Any:
        tensors, structure = pytree.tree_flatten(inputs)
        signature = (structure, [(tensor.shape, tensor.dtype) for tensor in tensors])
        if signature != self._signature:
            self._signature, self._seen, self._graph = signature, 0, None
        self._seen += 1
        if self.failures:
            self._graph, self._inputs, self._outputs = None, (), None  # gives back their memory
            return self.function(*inputs)
        if self._seen <= self.warm_up_calls:
            return self._on_side_stream(*inputs)
        if self._graph is None and not self._capture(inputs):
            return self.function(*inputs)
        torch._foreach_copy_(pytree.tree_leaves(self._inputs), tensors)
        self._graph.replay()
        return self._outputs

    def _on_side_stream(self, *inputs: Any) -> Any:
        self._side = self._side or torch.cuda.Stream()
        current, side = torch.cuda.current_stream(), self._side
        side.wait_stream(current)
        with torch.cuda.stream(side):
            outputs = self.function(*inputs)
        current.wait_stream(side)
        for tensor in pytree.tree_leaves(inputs):
            tensor.record_stream(side)
        for tensor in pytree.tree_leaves(outputs):
            tensor.record_stream(current)
        return outputs

    def _capture(self, inputs: tuple[Any, ...]) -> bool:
        self._inputs = pytree.tree_map(torch.clone, inputs)
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        random_state = torch.cuda.get_rng_state()
        try:
            with torch.cuda.graph(graph, stream=self._side):  # on which autograd knows the parameters
                self._outputs = self.function(*self._inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own
            replace_default_generator(random_state)
            cause = error.__context__ or error  # the end of a broken capture fails once more
            self.failures.append(str(cause).strip().splitlines()[0])
            log.warning(
                "no CUDA graph for %s, running it eagerly, and so all others: %s",
                name_of(self.function),
                self.failures[-1],
            )
            return False
        self._graph = graph
        return True


def replace_default_generator(state: Tensor) -> None:
    """Give the current CUDA device's default generator a new state: a failed capture keeps the old one."""
    index = torch.cuda.current_device()
    fresh = torch.Generator(f"cuda:{index}")
    fresh.set_state(state)
    torch.cuda.default_generators[index].graphsafe_set_state(fresh.graphsafe_get_state())


class Execution:
    """Device, precision and compilation of a run.

    Args:
        settings: the BasicSettings section. device: as `resolve_device` gives it, CUDA's with an index.
    """

    def __init__(self, settings: BasicSettings, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # what a card can do is asked of the current one
        self.dtype = choose_precision(settings.Precision, device)
        self.initial_loss_scale = settings.LossScale
        self.compiles = settings.Compile == "always" or (settings.Compile == "auto" and device.type == "cuda")
        # The loss scaler of float16 keeps part of its state on the host, which a graph would freeze.
        self.graphs = self.compiles and device.type == "cuda" and self.dtype != torch.float16
        self.warm_up_calls = settings.GraphWarmUpCalls
        self.graph_failures: list[str] = []
        if device.type == "cpu":
            keep_freed_memory()
        if device.type == "cuda":
            reduced = self.dtype != torch.float32  # TF32 for what autocast leaves in float32
            torch.set_float32_matmul_precision("high" if reduced else "highest")
            torch.backends.cudnn.allow_tf32 = reduced
            torch.backends.cudnn.benchmark = True  # shapes never change

    def autocast(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its matrix products in this run's precision.

        The context opens and closes within the function, so that no cast weight outlives an update.
        """
        if self.dtype == torch.float32:
            return function

        @functools.wraps(function)
        def with_precision(*arguments: Any) -> Any:
            with torch.autocast(self.device.type, self.dtype):
                return function(*arguments)

        return with_precision

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with fused kernels where this run compiles."""
        return CompiledFunction(function) if self.compiles else function

    def graph(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as one CUDA graph where this run uses them."""
        if not self.graphs:
            return function
        return GraphedFunction(function, self.warm_up_calls, self.graph_failures, self.device)

    def upload(self, array: Any) -> Tensor:
        """An array on the device; the copy does not wait where the host's memory can be pinned."""
        tensor = torch.as_tensor(array)
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
