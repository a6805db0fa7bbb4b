"""Trains and evaluates a grid of runs on Ray.

python sweep.py games=… seeds=… configs=… [Section.Key=value ...]    train, then evaluate
python sweep.py evaluate games=… seeds=… configs=… [eval.py options]    evaluate only
python sweep.py --help                                                  all options
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from collections.abc import Collection

from sweeping.options import Options, help_text, parse_options
from sweeping.plan import plan_runs
from sweeping.runs import LOGS
from sweeping.scheduler import FAILED, STOPPED, Entry, Sweep
from sweeping.table import Table, summary
from training.run import StopRequest
from utils import REPOSITORY, UserError, run_cli

NOT_FINISHED = 75  # as train.py: stopped, saved; the same command continues
NEEDED = "sweeps need Ray: pip install -r requirements-sweep.txt"


def run_sweep(sweep: Sweep, options: Options, table: Table) -> bool:
    """Run what is not done; whether the sweep was asked to stop."""
    try:
        from sweeping.engine import RayEngine
    except ModuleNotFoundError as error:
        if error.name == "ray":
            raise UserError(NEEDED) from error
        raise
    (options.storage / LOGS).mkdir(parents=True, exist_ok=True)
    entries = sweep.entries.values()
    on_cpu = all(entry.run.config.BasicSettings.device == "cpu" for entry in entries)
    print(f"starting Ray (address={options.address})", file=sys.stderr)
    with contextlib.closing(RayEngine(options, on_cpu)) as engine:
        stop = StopRequest()
        sweep.run(engine, lambda: stop.signal is not None, lambda: table.show(entries))
    return stop.signal is not None


def say_result(entries: Collection[Entry]) -> None:
    """Say how many runs are done, and where to look for what failed."""
    print(summary(entries), file=sys.stderr)
    failed = [entry for entry in entries if entry.state == FAILED]
    if failed:
        print("failed:", file=sys.stderr)
    for entry in failed:
        log = f"; see {entry.run.log(entry.stage)}" if entry.stage else ""
        print(f"  {entry.run.name}: {entry.note}{log}", file=sys.stderr)


def write_report(options: Options, entries: Collection[Entry]) -> int:
    """Report on the runs of the grid; the exit code of report.py."""
    names = [entry.run.name for entry in entries if entry.run.directory.config_file.is_file()]
    command = [sys.executable, str(REPOSITORY / "report.py"), "--outputs", str(options.storage / "outputs")]
    return subprocess.run([*command, *names]).returncode


def main(arguments: list[str]) -> int:
    """Run the sweep that the command line describes; the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    logging.basicConfig(format="%(message)s")
    options = parse_options(arguments)
    sweep = Sweep(plan_runs(options), options.retries)
    entries = sweep.entries.values()
    table = Table(sys.stderr)
    table.show(entries)
    stopped = not sweep.is_over and run_sweep(sweep, options, table)
    table.clear()
    say_result(entries)
    if stopped and any(entry.state == STOPPED for entry in entries):
        print("stopped; the same command continues", file=sys.stderr)
        return NOT_FINISHED
    code = write_report(options, entries) if options.report else 0
    return 1 if any(entry.state == FAILED for entry in entries) else code


if __name__ == "__main__":
    run_cli(main)
