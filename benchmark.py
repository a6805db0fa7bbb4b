"""Measures speed: python benchmark.py [Section.Key=value ...] [--minutes M] [--json FILE] [--profile DIR].

Each phase of an iteration at the configured sizes, against what this device can do, both
measured in this process; then the whole training loop and an evaluation of a real game. Several devices,
precisions or sizes are several calls; with --rows the rows of docs/performance.md come from one.
Every line is printed as soon as it is measured; what --minutes did not suffice for is named.
"""

from __future__ import annotations

import configuration.packages  # noqa: F401  (first: it says which packages are missing)

# isort: split
import argparse
import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from compute.execution import COMPILING, Execution
from compute.memory_limits import memory_errors
from compute.threads import use_threads
from configuration.loading import apply_overrides, differences, load_config
from configuration.schema import Config
from evaluation.episodes import environment_spaces
from run_files.provenance import machine_facts
from train import train
from training.measurements import (
    Clock,
    Iteration,
    copy_bandwidth,
    end_to_end,
    evaluation_speed,
    measure_phases,
    product_rate,
)
from utils import OneLineParser, UserError, disk_errors, resolve_device, run_cli, write_atomically

# Measured by us on the original STORM code: one iteration at paper size, float32, on a 2-core CPU
# with native bfloat16, and the float32 rate of 1024×512×512 products on the same machine.
RELEASE_ITERATION_S = 22.7
RELEASE_FLOP_PER_S = 186e9

PRODUCT = (1024, 512, 512)
LARGE_PRODUCT = (8192, 8192, 8192)
SIZES = re.compile(  # keys that the release's figures hold for
    r"Models\.(WorldModel|Agent)\..*|BasicSettings\.ImageSize"
    r"|JointTrainAgent\.(ModelType|BatchSize|BatchLength|Imagine(BatchSize|BatchLength|ContextLength))"
)
HEADER = f"{'phase':<16}{'median ms':>11}{'min':>10}{'max':>10}{'GFLOP':>10}{'GFLOP/s':>10}{'of peak':>9}"
LATE = "not measured, --minutes did not suffice"
LEARNING_PHASES = ("world model", "imagination", "agent")
WARM_UP = 2  # calls; on a GPU after those that precede a graph and its capture
STEPS = {False: 200, True: 2500}  # of the whole loop, on a CPU and on a GPU; one checkpoint is among them
MINUTES = {False: 5.0, True: 30.0}  # without and with --rows
# Presets among the rows: by device, a title, and settings besides those of the command line.
ENVS = "Evaluation.NumEnvs=20"
PRESET = "BasicSettings.config_path=config_files/{}.yaml".format
SMALL = ("STORM-tiny", "GITSTORM-tiny", "STORM-small", "GITSTORM-small")
PRESETS = {
    "cpu": {preset: [PRESET(preset)] for preset in SMALL},
    "cuda": {
        **{preset: [PRESET(preset), ENVS] for preset in ("STORM", "GITSTORM")},
        "STORM, replay buffer on the host": [PRESET("STORM"), ENVS, "BasicSettings.ReplayBufferOnGPU=False"],
    },
}


def make_parser() -> argparse.ArgumentParser:
    """The options beside the dotted overrides."""
    parser = OneLineParser(prog="benchmark.py", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="settings, as Section.Key=value")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--profile", type=Path, help="write a chrome trace and the top kernels to this folder"
    )
    parser.add_argument(
        "--rows", action="store_true", help="measure what docs/performance.md lists for this device"
    )
    parser.add_argument("--repeats", type=int, default=5, help="counted calls of each phase (default 5)")
    parser.add_argument(
        "--warm-up", type=int, help="calls before them (default 2, on a GPU after the capture of graphs)"
    )
    parser.add_argument(
        "--steps", type=int, help="steps of the whole loop (default 200, on a GPU 2500); 0 leaves it out"
    )
    limit = "what has not begun by then is left out, and loops stop (default 5, with --rows 30)"
    parser.add_argument("--minutes", type=float, help=limit)
    return parser


def measure(config: Config, clock: Clock) -> dict[str, Any]:
    """Print and return the figures of the phases, as --json writes them."""
    task = config.JointTrainAgent
    for line in use_threads(config, task.BatchSize * task.BatchLength):
        print(line, file=sys.stderr)
    device, execution = clock.device, Execution(config.BasicSettings, clock.device)
    if execution.compiles:
        print(COMPILING, file=sys.stderr)
    peak, phases = measure_peak(clock, execution.dtype), {}
    print(HEADER, flush=True)
    for name, row in measure_phases(config, execution, clock, environment_spaces(config)):
        phases[name] = row | {"share_of_peak": row["flop_per_s"] / peak["product_flop_per_s"]}
        print(phase_line(name, phases[name]), flush=True)
    if device.type == "cuda":
        peak_memory = torch.cuda.max_memory_reserved(device)  # with what the graphs keep for themselves
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    iteration_s = sum(phases[name]["median_s"] for name in LEARNING_PHASES)
    own_work = iteration_s * peak["float32_1024x512x512_flop_per_s"]  # at equal speed of the machine
    ratio = RELEASE_ITERATION_S * RELEASE_FLOP_PER_S / own_work if is_release_size(config, device) else None
    figures = {
        "iteration_s": iteration_s,
        "iterations_per_s": 1 / iteration_s,
        "env_steps_per_s": None,
        "phases": phases,
        "flop": sum(phases[name]["flop"] for name in LEARNING_PHASES),
        "peak": peak,
        "peak_memory_bytes": peak_memory,
        "precision": str(execution.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "speed_up_over_release": ratio,
        **machine_facts(device),
    }
    print(summary(figures), flush=True)
    return figures


def measure_loop(config: Config, clock: Clock, steps: int) -> dict[str, float]:
    """Print and return the figures of the whole loop and of an evaluation; none if the time was up."""
    figures = {} if clock.is_over else end_to_end(config, steps, train, clock.end)
    print(loop_lines(figures) or f"whole loop: {LATE}", flush=True)
    speed = {} if clock.is_over else evaluation_speed(config, steps)
    print(loop_lines(speed) or f"evaluation: {LATE}", flush=True)
    return figures | speed


def measure_peak(clock: Clock, dtype: torch.dtype) -> dict[str, float]:
    """Return what this device reaches at best: matrix products and copies."""
    largest = PRODUCT if clock.device.type == "cpu" else LARGE_PRODUCT
    return {
        "float32_1024x512x512_flop_per_s": product_rate(clock, PRODUCT, torch.float32),
        "product_flop_per_s": product_rate(clock, largest, dtype),
        "copy_bytes_per_s": copy_bandwidth(clock),
    }


def is_release_size(config: Config, device: torch.device) -> bool:
    """Whether the release's figures, which are STORM's at paper size on a CPU, can be compared with."""
    changed = (key for key, _, _ in differences(config, Config()))
    return device.type == "cpu" and not any(map(SIZES.fullmatch, changed))


def phase_line(name: str, row: dict[str, float]) -> str:
    """A phase's line under the header."""
    return (
        f"{name:<16} "
        + "".join(f"{row[key] * 1e3:>10.2f}" for key in ("median_s", "min_s", "max_s"))
        + f"{row['flop'] / 1e9:>10.2f}{row['flop_per_s'] / 1e9:>10.1f}{row['share_of_peak']:>9.1%}"
    )


def summary(figures: dict[str, Any]) -> str:
    """What the phases come to, for reading."""
    peak, sampled = figures["peak"], figures["phases"]["replay sampling"]["bytes_per_s"]
    lines = [
        f"iteration without acting: {figures['iteration_s'] * 1e3:.2f} ms, "
        f"{figures['flop'] / 1e12:.3f} TFLOP",
        f"peak of this device: {peak['product_flop_per_s'] / 1e9:.0f} GFLOP/s ({figures['precision']}), "
        f"{peak['float32_1024x512x512_flop_per_s'] / 1e9:.0f} GFLOP/s (float32, 1024×512×512), "
        f"copy {peak['copy_bytes_per_s'] / 1e9:.1f} GB/s",
        f"replay sampling reads and writes {sampled / 1e9:.1f} GB/s",
        f"memory at most: {figures['peak_memory_bytes'] / 1e9:.2f} GB",
        f"{figures['hardware']}, {figures['threads']} threads, {figures['device']}, "
        f"commit {figures['commit']}",
    ]
    if figures["speed_up_over_release"] is not None:
        lines.append(
            f"against the STORM release at paper size, at equal speed of the machine: "
            f"{figures['speed_up_over_release']:.2f}×"
        )
    return "\n".join(lines)


def loop_lines(figures: dict[str, float]) -> str:
    """The figures of a whole loop for reading."""
    words = {
        "env_steps_per_s": "whole loop: {:.2f} environment steps/s",
        "memory_beside_replay_bytes": "memory of the whole loop beside the replay buffer: {:.3g} bytes",
        "host_wait_share": "share of the whole loop in which the GPU waits: {:.1%}",
        "evaluation_steps_per_s": "evaluation: {:.2f} environment steps/s",
    }
    return "\n".join(text.format(figures[name]) for name, text in words.items() if name in figures)


def write_profile(config: Config, clock: Clock, folder: Path) -> None:
    """Write a chrome trace of one iteration and a table of its most expensive kernels."""
    execution = Execution(config.BasicSettings, clock.device)
    phases = Iteration(config, environment_spaces(config), execution).phases().values()
    for phase in [*phases] * clock.warm_up:
        phase()
    with profile() as trace:
        for phase in phases:
            clock.once(phase)
    order = f"self_{'cuda' if clock.device.type == 'cuda' else 'cpu'}_time_total"
    text = trace.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60)
    write_atomically(folder / "kernels.txt", text)
    with disk_errors(folder / "trace.json"):
        trace.export_chrome_trace(str(folder / "trace.json"))


def measure_rows(config: Config, clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """Print and return the rows of docs/performance.md: precisions, then presets and their whole loops."""
    iterations, loops = {}, {}
    for precision in ("auto", "float32"):
        title = f"{config.JointTrainAgent.ModelType}, precision {precision}"
        if is_in_time(title, clock):
            figures = measure(apply_overrides(config, [f"BasicSettings.Precision={precision}"]), clock)
            iterations[figures["precision"]] = figures
    presets = PRESETS.get(clock.device.type, PRESETS["cpu"])
    for title, settings in presets.items() if options.steps else ():
        if not is_in_time(title, clock):
            continue
        given = load_config([*options.overrides, *settings])
        phases = measure(given, clock) if clock.device.type == "cpu" else {}
        loops[title] = phases | measure_loop(given, clock, options.steps)
    rate = next(iter(loops.values()), {}).get("env_steps_per_s")
    rows = {"iterations": iterations, "loops": loops, "env_steps_per_s": rate}
    return next(iter(iterations.values()), {}) | rows


def is_in_time(title: str, clock: Clock) -> bool:
    """Print the title of a row, and whether it is left out; return whether it is measured."""
    print(f"\n{title}{f': {LATE}' if clock.is_over else ''}", flush=True)
    return not clock.is_over


def main(arguments: list[str]) -> None:
    """Measure as the command line says."""
    options = make_parser().parse_args(arguments)
    counts = (options.repeats - 1, options.warm_up or 0, options.steps or 0)
    minutes = MINUTES[options.rows] if options.minutes is None else options.minutes
    if min(counts) < 0 or not minutes > 0:
        raise UserError("--repeats must be at least 1, --warm-up and --steps at least 0, --minutes above 0")
    config = load_config(options.overrides)
    device = resolve_device(config.BasicSettings.device)
    on_gpu = device.type == "cuda"
    before_capture = config.BasicSettings.GraphWarmUpCalls + 1 if on_gpu else 0
    warm_up = before_capture + WARM_UP if options.warm_up is None else options.warm_up
    options.steps = STEPS[on_gpu] if options.steps is None else options.steps
    clock = Clock(device, options.repeats, warm_up, time.monotonic() + 60 * minutes)
    with memory_errors():
        if options.rows:
            figures = measure_rows(config, clock, options)
        else:
            figures = measure(config, clock)
            if options.steps:
                figures |= measure_loop(config, clock, options.steps)
        if options.json is not None:
            write_atomically(options.json, json.dumps(figures, indent=1))
        if options.profile is not None:
            write_profile(config, clock, options.profile)


if __name__ == "__main__":
    run_cli(main)
