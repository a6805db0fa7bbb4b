"""Change the code in one small place, see whether a test fails; many times.

    python tests/mutation.py [--mutants 160] [--seed 0] [--processes 2] [--out mutation.jsonl] [FILE ...]

Mutants are drawn from the Python files (default: sub_models/, agents.py, training/, env_wrapper.py): other
operators, comparisons, constants and conditions, exchanged arguments, another setting of the same type, left
out statements. Each is tested in a copy of the repository by the tests of its file, up to the first failure;
one that takes them several times as long counts as killed. Those found in --out are not run again. Prints the
survivors and the share that was killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configuration.schema import schema

REPOSITORY = Path(__file__).resolve().parents[1]

TARGETS = ("sub_models", "agents.py", "training", "env_wrapper.py")
MODEL_TESTS = [
    "tests/sub_models",
    "tests/test_agents.py",
    "tests/test_key_effects.py",
    "tests/training/test_trainer.py",
]
RUN_TESTS = [
    "tests/training/test_trainer.py",
    "tests/training",
    "tests/test_key_effects.py",
    "tests/commands/test_end_to_end.py",
]
TESTS = {  # of a file: of the first of these that its path begins with
    "sub_models/storm_checkpoint": ["tests/sub_models/test_parity.py", "tests/commands/test_end_to_end.py"],
    "sub_models/": MODEL_TESTS,
    "agents": [*MODEL_TESTS, "tests/evaluation"],
    "training/measurements": ["tests/benchmarking"],
    "training/video": ["tests/training/test_video.py", "tests/evaluation"],
    "training/": [*RUN_TESTS, "tests/evaluation", "tests/commands/test_bad_input.py"],
    "env_wrapper": ["tests/test_env_wrapper.py", "tests/environments", *RUN_TESTS],
}
PATIENCE = 6.0  # times what tests take without a mutant
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div}
OPERATORS |= {ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr}
OPERATORS |= {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq}
OPERATORS |= {ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
OPERATORS |= {ast.And: ast.Or, ast.Or: ast.And}
# What no test could notice, or need not: assertions, annotations, texts and errors' words, types' names.
UNTOUCHED = (ast.Assert, ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Mutant:
    """One changed place: bytes [start, end) of a file replaced by a text."""

    file: str
    line: int
    start: int
    end: int
    text: str
    kind: str

    def apply(self, source: bytes) -> bytes:
        """The file's content with the change."""
        return source[: self.start] + self.text.encode() + source[self.end :]


def mutants(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in touched(ast.parse(source)):
        for kind, text in changes(node):
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            found.append(Mutant(file, node.lineno, start, end, text, kind))
    return found


def touched(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that may be changed, all but annotations and what `UNTOUCHED` names."""
    if isinstance(node, UNTOUCHED):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from touched(child)


def changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(kind, new text) of each change of a node."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OPERATORS:
        yield "operator", written(node, op=OPERATORS[type(node.op)]())
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield "comparison", written(node, ops=[OPERATORS[type(node.ops[0])]()])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "operator", f"({ast.unparse(node.operand)})"
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        other = not node.value if isinstance(node.value, bool) else node.value + 1
        yield "constant", repr(2 * node.value if isinstance(node.value, float) and node.value else other)
    if isinstance(node, ast.IfExp):
        yield "condition", written(node, body=node.orelse, orelse=node.body)
    if isinstance(node, ast.Call):
        yield from exchanged_arguments(node)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr[0].isupper():
        yield from (("setting", written(node, attr=name)) for name in similar_settings(node.attr))
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if (is_call and "super()" not in ast.unparse(node)) or isinstance(node, ast.AugAssign):
        yield "left out", "pass"


def written(node: ast.expr, **fields: object) -> str:
    """A node with other fields as text, in brackets."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return f"({ast.unparse(changed)})"


def exchanged_arguments(node: ast.Call) -> Iterator[tuple[str, str]]:
    """Two neighbouring arguments that are plain names or attributes change places."""
    for index in range(len(node.args) - 1):
        pair = node.args[index : index + 2]
        if all(isinstance(each, (ast.Name, ast.Attribute)) for each in pair):
            arguments = [*node.args[:index], *reversed(pair), *node.args[index + 2 :]]
            yield "arguments", written(node, args=arguments)


def similar_settings(name: str) -> list[str]:
    """The setting of the same section and type whose name is most like this one's, if it is a setting."""
    similar = set()
    for dotted, key in schema().items():
        section, _, last = dotted.rpartition(".")
        if last == name:
            others = [other for other, its in schema().items() if its.type is key.type and other != dotted]
            others = [other.rpartition(".")[2] for other in others if other.rpartition(".")[0] == section]
            similar |= set(difflib.get_close_matches(name, others, n=1, cutoff=0))
    return sorted(similar)


def draw(files: list[Path], number: int, seed: int) -> list[Mutant]:
    """Random mutants of the files, at most one a line."""
    every = [mutant for file in files for mutant in mutants(str(file), (REPOSITORY / file).read_bytes())]
    random.Random(seed).shuffle(every)
    places = {(mutant.file, mutant.line): mutant for mutant in reversed(every)}
    return [mutant for mutant in every if places[mutant.file, mutant.line] is mutant][:number]


def make_copy(folder: Path) -> Path:
    """The repository's tracked files in a folder of their own."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in names.decode().split("\0")[:-1]:
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def passes(folder: Path, tests: list[str], limit_s: float | None = None) -> tuple[str, str]:
    """Run tests up to the first failure: ("passed" or "failed" or "ran out of time", the failure)."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow and not first", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return "ran out of time", ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return ("failed", (failed or [output])[-1][-200:]) if process.returncode else ("passed", "")


def judge(mutant: Mutant, folder: Path, limit_s: float) -> dict[str, object]:
    """What becomes of a mutant in a copy of the repository."""
    path, start = folder / mutant.file, time.monotonic()
    source = path.read_bytes()
    path.write_bytes(mutant.apply(source))
    outcome, by = passes(folder, tests_of(mutant.file), limit_s)
    path.write_bytes(source)
    return {
        "survived": outcome == "passed",
        "by": by or outcome,
        "seconds": round(time.monotonic() - start, 1),
    }


def limits(chosen: list[Mutant], folder: Path) -> dict[str, float]:
    """Seconds that the tests of each file may take: a few times what they take without a mutant.

    Raises:
        SystemExit: some fail without one.
    """
    needed: dict[tuple[str, ...], float] = {}
    for tests in sorted({tuple(tests_of(mutant.file)) for mutant in chosen}):
        start = time.monotonic()
        outcome, by = passes(folder, list(tests))
        if outcome != "passed":
            sys.exit(f"the tests fail without a mutant: {by}")
        needed[tests] = PATIENCE * (time.monotonic() - start)
    return {mutant.file: needed[tuple(tests_of(mutant.file))] for mutant in chosen}


def tests_of(file: str) -> list[str]:
    """The tests that a mutant of this file has to survive."""
    return next(tests for start, tests in TESTS.items() if file.startswith(start))


def run(chosen: list[Mutant], processes: int, out: Path) -> dict[Mutant, dict[str, object]]:
    """Judge all mutants that `out` does not hold yet; the results of all of them."""
    lines = out.read_text().splitlines() if out.is_file() else []
    known = {Mutant(**line.pop("mutant")): line for line in map(json.loads, lines)}
    left = [mutant for mutant in chosen if mutant not in known]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(processes) as pool:
        copies: Queue[Path] = Queue()
        for number in range(processes):
            copies.put(make_copy(Path(scratch) / str(number)))
        seconds = limits(left, copies.queue[0])

        def look(mutant: Mutant) -> None:
            folder = copies.get()
            result = judge(mutant, folder, seconds[mutant.file])
            copies.put(folder)
            known[mutant] = result
            with out.open("a") as file:
                file.write(json.dumps({"mutant": asdict(mutant)} | result) + "\n")
            print(f"{result['seconds']} s, {result['by']}: {describe(mutant)}", flush=True)

        list(pool.map(look, left))
    return {mutant: known[mutant] for mutant in chosen}


def describe(mutant: Mutant) -> str:
    """Where and what, in one line."""
    source = (REPOSITORY / mutant.file).read_bytes()
    old = " ".join(source[mutant.start : mutant.end].decode(errors="replace").split())
    return f"{mutant.file}:{mutant.line}: {mutant.kind}: {old[:90]} -> {mutant.text[:90]}"


def main() -> int:
    """Draw, test, count; 1 if fewer than --least were killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mutants", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--least", type=float, default=0.85, help="share that must be killed")
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"))
    parser.add_argument("files", nargs="*", type=Path, default=[Path(target) for target in TARGETS])
    options = parser.parse_args()
    paths = [
        path
        for each in options.files
        for path in sorted((REPOSITORY / each).rglob("*.py")) or [REPOSITORY / each]
    ]
    chosen = draw([path.relative_to(REPOSITORY) for path in paths], options.mutants, options.seed)
    results = run(chosen, options.processes, options.out)
    survivors = [mutant for mutant, result in results.items() if result["survived"]]
    print("\nsurvivors:", *map(describe, survivors), sep="\n  ", end="\n\n")
    for kind in sorted({mutant.kind for mutant in chosen}):
        survived = [result["survived"] for mutant, result in results.items() if mutant.kind == kind]
        print(f"{kind}: {survived.count(False)} of {len(survived)}")
    share = 1 - len(survivors) / len(chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed: {share:.1%}")
    return int(share < options.least)


if __name__ == "__main__":
    sys.exit(main())
