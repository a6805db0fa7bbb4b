"""Reports on finished runs: a web page, a comparison of two sets, or an entry of results/.

python report.py [runs...]            outputs/report/index.html, tables and figures
python report.py compare A B          did the change from A to B help?
python report.py record [run...]      keep finished runs under results/ and refresh its README
"""

from __future__ import annotations

import configuration.packages  # noqa: F401  (first: it says which packages are missing)

# isort: split
import argparse
from pathlib import Path

from reporting.compare import compare_runs
from reporting.page import PAGE, build_report
from reporting.published import load_published
from reporting.record import record_run, refresh_readme
from reporting.runs import find_runs
from reporting.tables import write_csv
from utils import REPOSITORY, OneLineParser, UserError, run_cli, write_atomically

OUT = {"type": Path, "help": "folder to write to (default: <outputs>/report)"}


def new_parser(command: str, text: str) -> OneLineParser:
    """Return a parser with what all commands take."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog=f"report.py{command}", description=text, formatter_class=layout)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder of the runs")
    return parser


def report(arguments: list[str]) -> None:
    """Write the report."""
    parser = new_parser("", __doc__ or "")
    parser.add_argument("runs", nargs="*", help="names, globs, comma lists, results/<model>/<game>/seed_<n>")
    parser.add_argument("--out", **OUT)
    given = parser.parse_args(arguments)
    for word in COMMANDS.keys() & set(given.runs):
        raise UserError(f"{word} must be the first word: python report.py {word} --help")
    out = given.out or given.outputs / "report"
    runs, left_out = find_runs(given.outputs, given.runs)
    for line in build_report(runs, left_out, load_published(), out):
        print(line)
    print(f"\nOpen {(out / PAGE).absolute()}")


def compare(arguments: list[str]) -> None:
    """Print the comparison of two sets of runs and write it beside the report."""
    parser = new_parser(" compare", "Per game: the difference of B from A with its 95 % interval.")
    parser.add_argument("--out", **OUT)
    parser.add_argument("A", help="runs before the change: a name, a glob or a comma list")
    parser.add_argument("B", help="runs after it")
    given = parser.parse_args(arguments)
    first, left_out = find_runs(given.outputs, [given.A])
    second, also_left_out = find_runs(given.outputs, [given.B])
    table = compare_runs(first, second)
    out = given.out or given.outputs / "report"
    write_csv(out, table.name, table.frame)
    write_atomically(out / "compare.md", table.markdown)
    left_out += also_left_out
    left_out += [f"{run.name}: not evaluated" for run in [*first, *second] if not run.evaluations]
    print(table.markdown, *(f"left out: {line}" for line in left_out), sep="\n")


def record(arguments: list[str]) -> None:
    """Record runs and refresh the README of the results."""
    text = "Copy the small files of finished runs to results/<model>/<game>/seed_<n>/."
    parser = new_parser(" record", text)
    parser.add_argument("--results-dir", type=Path, default=REPOSITORY / "results", help="recorded results")
    parser.add_argument("--partial", action="store_true", help="take runs that stopped early, marked as such")
    parser.add_argument("runs", nargs="*", help="run names; none only refreshes README.md")
    given = parser.parse_args(arguments)
    for name in given.runs:
        print(f"recorded {record_run(name, given.outputs, given.results_dir, given.partial)}")
    print(f"wrote {refresh_readme(given.results_dir)}")


COMMANDS = {"compare": compare, "record": record}  # each the first word, before its options


def main(arguments: list[str]) -> None:
    """Run the command that the first argument names, else the report."""
    if arguments and arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        report(arguments)


if __name__ == "__main__":
    run_cli(main)
