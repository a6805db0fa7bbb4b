"""Trains and evaluates a grid of runs: python sweep.py games=Boxing,Pong seeds=0,1; --help lists options."""

from __future__ import annotations

import configuration.packages  # noqa: F401  (first: it says which packages are missing)

# isort: split
import logging
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from evaluation.scoring import describe
from evaluation.tables import best_rows
from sweeping.local import LocalEngine
from sweeping.options import LOCAL, Options, help_text, parse_options
from sweeping.runs import LOGS, SweepRun, plan_runs
from sweeping.scheduler import FAILED, STOPPED, Entry, Table, carry_out, summary
from train import start_or_continue
from training.run import StopRequest
from utils import NOT_FINISHED, REPOSITORY, UserError, disk_errors, run_cli


def run_all(entries: Collection[Entry], options: Options, table: Table) -> bool:
    """Carry out what is not done; whether the sweep was asked to stop."""
    engine_type: type = LocalEngine
    if options.address != LOCAL:
        try:
            from sweeping.cluster import RayEngine as engine_type
        except ModuleNotFoundError as error:
            raise UserError("address= needs Ray: pip install -r requirements-sweep.txt") from error
    devices = {entry.run.config.BasicSettings.device for entry in entries}
    named = [device for device in devices - {"cuda:0"} if device.startswith("cuda:")]
    if named:
        raise UserError(
            f"BasicSettings.device={named[0]}: a sweep gives each run a card, which that run sees as cuda:0; "
            "CUDA_VISIBLE_DEVICES before the command says which cards there are"
        )
    engine = engine_type(options, devices <= {"cpu"})
    logs = Path(options.storage) / LOGS
    with disk_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
    stop = StopRequest()
    carry_out(entries, engine, options.retries, lambda: bool(stop.signal), lambda: table.show(entries))
    return bool(stop.signal)


def say_scores(runs: Collection[SweepRun]) -> int:
    """Print the score of each run's last evaluated checkpoint; how many there are."""
    last = {run.name: best_rows(run.evaluations())[-1] for run in runs if run.evaluations()}
    width = max(map(len, last), default=0)
    for name, row in last.items():
        print(f"{name:{width}}  {describe(row)}", flush=True)
    return len(last)


def write_report(options: Options, runs: Collection[SweepRun]) -> int:
    """Report on the runs of the grid; the exit code of report.py."""
    names = [run.name for run in runs if run.directory.config_file.is_file()]
    command = [sys.executable, str(REPOSITORY / "report.py"), "--outputs", f"{options.storage}/outputs"]
    return subprocess.run([*command, *names]).returncode


def main(arguments: list[str]) -> int:
    """Run the sweep that the command line describes; the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    logging.basicConfig(format="%(message)s")
    options = parse_options(arguments)
    runs = plan_runs(options)
    if options.task is not None:
        os.chdir(options.storage)
        return start_or_continue(runs[0].config)
    entries, table = [Entry(run) for run in runs], Table()
    table.show(entries)
    stopped = not all(entry.is_over for entry in entries) and run_all(entries, options, table)
    table.close()
    print(summary(entries), file=sys.stderr)
    failed = [entry for entry in entries if entry.state == FAILED]
    for entry in failed:
        print(f"failed: {entry.run.name}: {entry.note}", file=sys.stderr)
    if stopped and any(entry.state == STOPPED for entry in entries):
        print("stopped; the same command continues", file=sys.stderr)
        return NOT_FINISHED
    has_scores = say_scores(runs) > 0
    code = write_report(options, runs) if options.report and has_scores else 0
    return 1 if failed else code


if __name__ == "__main__":
    run_cli(main)
