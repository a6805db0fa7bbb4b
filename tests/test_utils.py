"""What every command shares: how it ends, which device it takes, and how it writes files."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

import benchmark
import utils
from utils import (
    LONGEST_NAME,
    OneLineParser,
    UserError,
    as_file_name,
    nearest,
    resolve_device,
    write_atomically,
)

REPOSITORY = Path(__file__).resolve().parents[1]


def run_cli(body: str) -> subprocess.CompletedProcess[str]:
    program = f"from utils import UserError, run_cli\ndef main(arguments):\n    {body}\nrun_cli(main)"
    command = [sys.executable, "-c", program, "x"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("return None", 0, ""),
        ("return 75", 75, ""),
        ("assert arguments == ['x']", 0, ""),
        (r"raise UserError('a\n  b\x1b[31m')", 2, "error: a b?[31m\n"),
        ("raise KeyboardInterrupt", 130, ""),
        (
            "raise PermissionError(13, 'Permission denied', '/root/runs')",
            2,
            "error: /root/runs: Permission denied\n",
        ),
        ("__import__('os').stat('x' * 300)", 2, f"error: {'x' * 300}: File name too long\n"),
    ],
)
def test_how_commands_end(body: str, code: int, error: str) -> None:
    result = run_cli(body)
    assert (result.returncode, result.stderr) == (code, error)


def test_internal_errors_keep_their_traceback() -> None:
    result = run_cli("raise RuntimeError('a defect')")
    assert result.returncode == 1 and "Traceback" in result.stderr and "a defect" in result.stderr


ORDERS = [
    ["A.B=1", "C.D=2", "--steps", "0"],
    ["--steps", "0", "A.B=1", "C.D=2"],
    ["A.B=1", "--steps", "0", "C.D=2"],
    ["A.B=1", "--steps=0", "C.D=2"],
]


@pytest.mark.parametrize("arguments", ORDERS)
def test_overrides_may_stand_on_both_sides_of_an_option(arguments: list[str]) -> None:
    options = benchmark.make_parser().parse_args(arguments)
    assert (options.overrides, options.steps) == (["A.B=1", "C.D=2"], 0)


def test_what_is_missing_or_unknown_is_one_line_in_any_order() -> None:
    assert benchmark.make_parser().parse_args([]).overrides == []
    with pytest.raises(UserError, match=r"unrecognized argument --stops.*benchmark.py --help"):
        benchmark.make_parser().parse_args(["A.B=1", "--stops", "C.D=2"])
    parser = OneLineParser(prog="x.py")
    parser.add_argument("A")
    parser.add_argument("B")
    parser.add_argument("--out")
    assert vars(parser.parse_args(["1", "--out", "o", "2"])) == {"A": "1", "B": "2", "out": "o"}
    with pytest.raises(UserError, match="required: B"):
        parser.parse_args(["1", "--out", "o"])


def test_settings_are_no_values_of_the_option_before_them() -> None:
    parser = OneLineParser(prog="x.py")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--name")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(["--seeds", "0", "1", "A.B=2", "--name", "x=1", "C.D.E=a b"])
    assert (options.seeds, options.name, options.overrides) == ([0, 1], "x=1", ["A.B=2", "C.D.E=a b"])


def test_a_parser_offers_the_nearest_option_and_knows_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = OneLineParser(prog="x.py")
    parser.add_argument("-folder", type=Path)
    assert parser.parse_args(["-folder=~/a"]).folder == tmp_path / "a"
    with pytest.raises(UserError, match=r"-foldr=b .did you mean '-folder'"):
        parser.parse_args(["-foldr=b"])


def test_names_of_files_are_plain_and_not_too_long() -> None:
    assert as_file_name("../a b: c") == "_a_b_c"
    long = [as_file_name("x" * 300 + end) for end in ("a", "b")]
    assert long[0] != long[1] and all(len(name) == LONGEST_NAME for name in long)


def test_nearest_name() -> None:
    assert nearest("boxng", ["Boxing", "Pong"]) == " (did you mean 'Boxing'?)"
    assert nearest("zzz", ["Boxing", "Pong"]) == ""


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cpu:1", "mps:0", "", "CUDA", "auto:1"])
def test_unknown_devices_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="cuda:N"):
        resolve_device(text)


def test_devices_that_are_not_there_are_refused() -> None:
    import torch

    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="cuda:99"):
        resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("CUDA error: out of memory", "other programs fill it"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", "another program has it"),
        ("CUDA error: invalid device ordinal", "there are fewer cards"),
        ("CUDA error: no kernel image is available for execution on the device", "install the PyTorch build"),
    ],
)
def test_why_a_card_cannot_be_used(monkeypatch: pytest.MonkeyPatch, reason: str, advice: str) -> None:
    import torch

    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError(f"{reason}\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(UserError, match=advice) as raised:
        resolve_device("cuda:1")
    assert reason in str(raised.value) and ("install" in advice or "install" not in str(raised.value))


def test_a_card_that_torch_cannot_use_is_no_reason_to_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(utils, "nvidia_card_present", lambda: True)
    with pytest.raises(UserError, match=r"BasicSettings\.device=cpu"):
        resolve_device("auto")
    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto").type != "cuda"


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    write_atomically(path, lambda file: file.write(b"first"))

    def fail_half_way(file: BinaryIO) -> None:
        file.write(b"sec")
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        write_atomically(path, fail_half_way)
    assert path.read_bytes() == b"first" and list(path.parent.iterdir()) == [path]


FULL_DISK = """
import resource
from utils import run_cli, write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
run_cli(lambda arguments: write_atomically(arguments[0], lambda file: file.write(bytes(9999))))
"""


def test_a_full_disk_is_a_user_error_that_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first")
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2 and str(path) in result.stderr and len(result.stderr.splitlines()) == 1
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", lambda file: None)


@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_defect(tmp_path: Path, redirected: str) -> None:
    code = (
        "from utils import run_cli; run_cli(lambda arguments: print('λ') or open('file', 'w').write('mine'))"
    )
    command = f'"{sys.executable}" -c "{code}" {redirected}'
    run = subprocess.run(command, shell=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert run.returncode == 4 and (tmp_path / "file").read_text() == "mine"


def test_a_notebook_may_run_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shown(io.StringIO):
        """Like the streams of Jupyter, which are no files."""

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Shown())
    monkeypatch.setattr(sys, "argv", ["x.py"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests before have left

    def main(arguments: list[str]) -> None:
        with pytest.raises(utils.Interrupt):  # of a command, that an environment's own is told from
            signal.raise_signal(signal.SIGINT)
        raise UserError("said")

    with pytest.raises(SystemExit) as ended:
        utils.run_cli(main)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # the notebook's again
    assert ended.value.code == 2 and sys.stderr.getvalue() == "error: said\n"


def test_only_what_goes_to_a_terminal_is_silenced(tmp_path: Path) -> None:
    code = "import os, utils; utils.silence(only_terminal=True); os.write(1, b'a'); os.write(2, b'b')"
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(REPOSITORY)
        os.dup2(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), 2)
        os.execv(sys.executable, [sys.executable, "-c", code])
    with pytest.raises(OSError, match="Input/output"):  # the terminal's end, nothing before it
        os.read(terminal, 1)
    os.waitpid(process, 0)
    assert (tmp_path / "log").read_text() == "b"
