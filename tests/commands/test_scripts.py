"""The shell scripts: what they pass on, that signals reach what they start, and which Python they choose."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CARDS = "CUDA_VISIBLE_DEVICES"  # hides them when it is empty
SCRIPTS = sorted(path.name for path in REPOSITORY.glob("*.sh"))
# Prints its process and its arguments; then waits for a signal if it is told to.
ECHO = """\
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print(os.getpid(), *sys.argv, sep="\\n", flush=True)
time.sleep(float(os.environ.get("ECHO_SECONDS", 0)))
sys.exit(int(os.environ.get("ECHO_CODE", 0)))
"""

# Packs the copy for pip install -e, with nothing to download.
BACKEND = """\
import zipfile

def build_editable(folder, settings=None, metadata=None):
    name, info = "git_storm-0-py3-none-any.whl", "git_storm-0.dist-info/"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: git-storm\\nVersion: 0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the scripts in a folder with awkward characters, whose commands print their arguments.

    Its requirements need no download: every environment meets them.
    """
    folder = tmp_path / 'a copy\'s "folder" $HOME'
    folder.mkdir()
    for name in [*SCRIPTS, "requirements.lock"]:
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    for name in ("sweep.py", "eval.py"):
        (folder / name).write_text(ECHO)
    for name in ("requirements.txt", "requirements-dev.txt"):
        (folder / name).write_text("pip>=1  # in every environment\n")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (folder / "backend.py").write_text(BACKEND)
    return folder


def start(folder: Path, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "STORM_PYTHON": sys.executable, **variables}
    environment = {name: value for name, value in environment.items() if value or name == CARDS}
    command = ["bash", str(folder / script), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": "/"}
    return subprocess.Popen(command, env=environment, **pipes)


def call(folder: Path, script: str, *arguments: str, **variables: str) -> tuple[int, list[str], str]:
    """Exit code, the arguments that a command was given, and what was said."""
    process = start(folder, script, *arguments, **variables)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output.splitlines()[1:], errors


@pytest.mark.parametrize("script", [*SCRIPTS, ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(REPOSITORY / script, os.X_OK)
    subprocess.run(["bash", "-n", str(REPOSITORY / script)], check=True)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("setup.sh", ["--dev", "junk"], ["usage", "--dev"]),
        ("train.sh", ["Boxing", "0"], ["usage", "<env_name> <seed> <config>"]),
        ("train.sh", ["--array", "Boxing", "0"], ["usage", "--array"]),
        ("evals.sh", ["Boxing", "run"], ["usage", "<env_name> <run_name> <config>"]),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_code_2(
    copy: Path, script: str, arguments: list[str], words: list[str]
) -> None:
    code, _, said = call(copy, script, *arguments)
    assert code == 2 and len(said.splitlines()) == 1 and said.startswith("error: ")
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "passed"),
    [
        ("train.sh", ["a b", "3", "c", "X.y=1 2"], {}, ["task=only", "games=a b", "seeds=3", "configs=c"]),
        (
            "train.sh",
            ["--array", "Boxing\nPong", "0,1", "STORM  GITSTORM", "X.y=1"],
            {"SLURM_ARRAY_TASK_ID": "07"},
            ["task=07", "games=Boxing,Pong", "seeds=0,1", "configs=STORM,GITSTORM", "X.y=1"],
        ),
        (
            "eval_manager.sh",
            ["-greedy"],
            {"GAMES": "Pong\nALE/Boxing-v5", "SEEDS": "0 1", "CONFIG": "STORM"},
            ["evaluate", "report=false", "games=Pong,ALE/Boxing-v5", "seeds=0,1", "configs=STORM", "-greedy"],
        ),
        ("eval_manager.sh", [], {"GAMES": " \n"}, ["games=", "seeds=0,1,2", "configs=STORM"]),
        ("sweep.sh", ["evaluate", "games=a b", "-greedy"], {}, ["evaluate", "games=a b", "-greedy"]),
        ("sweep.sh", [], {}, ["games=Boxing", "seeds=0,1", "configs=STORM-tiny,GITSTORM-tiny"]),
    ],
)  # fmt: skip
def test_every_launcher_hands_its_grid_to_the_sweep(
    copy: Path, script: str, arguments: list[str], variables: dict[str, str], passed: list[str]
) -> None:
    code, given, said = call(copy, script, *arguments, **variables)
    assert code == 0, said
    assert given[0] == str(copy / "sweep.py") and f"storage={copy}" in given
    assert [word for word in given if word in passed] == passed


def test_the_small_grid_of_sweep_sh_is_possible(copy: Path) -> None:
    from sweeping.options import parse_options
    from sweeping.runs import plan_runs

    _, given, _ = call(copy, "sweep.sh")
    options = parse_options(given[1:])
    assert len(plan_runs(options)) == 4 and options.evaluate and options.report


def test_evals_passes_its_arguments_on(copy: Path) -> None:
    code, given, _ = call(copy, "evals.sh", "Boxing", "my run", "STORM-tiny", "-num_episodes", "3")
    wanted = ["-config_path=STORM-tiny", "-env_name=Boxing", "-run_name=my run", "-num_episodes", "3"]
    assert code == 0 and given == ["eval.py", *wanted]


def test_evals_looks_for_a_folder_of_checkpoints_from_where_it_is_typed(copy: Path) -> None:
    typed = os.path.relpath(copy, "/")  # `start` types in /
    for words in ([f"-ckpt_dir={typed}"], [f"--ckpt_dir={typed}"], ["-ckpt_dir", typed]):
        _, given, _ = call(copy, "evals.sh", "Boxing", "run", "STORM", *words)
        assert given[-1].removeprefix("-ckpt_dir=") == str(copy)


def test_the_script_becomes_the_training_so_that_signals_reach_it(copy: Path) -> None:
    process = start(copy, "train.sh", "Boxing", "0", "STORM", ECHO_SECONDS="300")
    assert int(process.stdout.readline()) == process.pid
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    process.communicate()


# --- SLURM, without SLURM


def submit(copy: Path, task: str = "3", **variables: str) -> subprocess.Popen[str]:
    """The example as SLURM runs it: a copy of the file, from the folder where sbatch was typed."""
    for name, text in (("srun", 'exec "$@"'), ("scontrol", 'echo "$@" >>"$SLURM_SUBMIT_DIR/scontrol.log"')):
        path = copy / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    shutil.copy(copy / "examples" / "slurm_array.sh", copy / "bin" / "slurm_script")
    numbers = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": task, "SLURM_SUBMIT_DIR": str(copy)}
    path = f"{copy / 'bin'}:{os.environ['PATH']}"
    return start(copy / "bin", "slurm_script", PATH=path, **numbers, **variables)


def test_a_task_out_of_time_is_saved_and_requeued(copy: Path) -> None:
    job = submit(copy, ECHO_SECONDS="300")
    training = int(job.stdout.readline())
    assert training != job.pid
    os.kill(training, signal.SIGUSR1)  # as --signal does for the processes that srun started
    job.communicate(timeout=60)
    assert job.returncode == 75
    assert (copy / "scontrol.log").read_text() == "requeue 42_3\n"


@pytest.mark.parametrize("code", [0, 2])
def test_a_task_that_ended_is_not_requeued(copy: Path, code: int) -> None:
    job = submit(copy, ECHO_CODE=str(code))
    job.communicate(timeout=60)
    assert job.returncode == code and not (copy / "scontrol.log").exists()


def test_the_example_asks_for_as_many_tasks_as_its_grid_has(copy: Path) -> None:
    from sweeping.options import parse_options

    text = (copy / "examples" / "slurm_array.sh").read_text()
    given = submit(copy).communicate(timeout=60)[0].splitlines()
    grid = parse_options([word for word in given if word.startswith(("games=", "seeds=", "configs="))]).grid()
    assert f"#SBATCH --array=0-{len(grid) - 1}%" in text
    for option in ("--requeue", "--signal=USR1@", "--open-mode=append"):
        assert f"#SBATCH {option}" in text


# --- which Python the scripts choose; without a network


@pytest.mark.parametrize("program", ["/bin/true", "/bin/echo", "/no/such/python"])
def test_a_program_that_is_no_python_is_refused(copy: Path, program: str) -> None:
    code, _, said = call(copy, "train.sh", "Pong", "0", "STORM", STORM_PYTHON=program)
    assert code == 2 and len(said.splitlines()) == 1
    assert f"STORM_PYTHON={program}: is no Python or lacks packages" in said


def test_a_control_task_brings_its_own_requirements(copy: Path) -> None:
    task = "dm_control/cartpole-balance-v0"
    code, _, said = call(copy, "train.sh", task, "0", "STORM-control", STORM_PYTHON="/bin/false")
    assert code == 2 and "pip install -r requirements-control.txt" in said


def test_a_missing_version_is_not_taken_for_met(copy: Path) -> None:
    (copy / "requirements.txt").write_text("torch>=999\n")
    code, _, said = call(copy, "train.sh", "Pong", "0", "STORM")
    assert code == 2 and "lacks packages" in said


def test_a_python_with_the_packages_is_used_as_it_is(copy: Path) -> None:
    (copy / "requirements.txt").write_text("torch>=2.6\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    code, _, said = call(copy, "setup.sh", STORM_PYTHON="", CI="", PATH=path)
    assert code == 0 and "using" in said and not (copy / ".venv").exists()


@pytest.fixture
def bare(copy: Path) -> dict[str, str]:
    """Variables under which the python3 on PATH lacks the packages."""
    stub = copy.parent / "stubs" / "python3"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\n[ "$1" = - ] && exit 1\nexec "{sys.executable}" "$@"\n')
    stub.chmod(0o755)
    hidden = dict.fromkeys(("STORM_PYTHON", "CI", "VIRTUAL_ENV", "CONDA_PREFIX"), "")
    return {**hidden, "PATH": f"{stub.parent}:{os.environ['PATH']}"}


def test_a_half_made_environment_is_made_anew_by_one_of_two_set_ups(copy: Path, bare: dict[str, str]) -> None:
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "left over").touch()
    (copy / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (copy / ".venv.unfinished").touch()
    processes = [start(copy, "train.sh", "Pong", "0", "STORM", **bare) for _ in range(2)]
    said = "".join(process.communicate(timeout=300)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert said.count("installing requirements.txt") == 1
    assert said.count(f"type python commands yourself: source {copy}/.venv/bin/activate") == 2
    assert not (copy / ".venv" / "left over").exists() and not (copy / ".venv.unfinished").exists()
    active = {**bare, "VIRTUAL_ENV": f"{copy}/.venv", "PATH": f"{copy}/.venv/bin:{os.environ['PATH']}"}
    code, _, said = call(copy, "train.sh", "Pong", "0", "STORM", **active)
    assert code == 0 and f"using {copy}/.venv/bin/python" in said and "activate" not in said


@pytest.mark.slow
def test_continuous_integration_always_makes_a_new_environment_once(copy: Path, bare: dict[str, str]) -> None:
    (copy / ".venv").mkdir()
    (copy / ".venv" / "left over").touch()
    (copy / "sweep.py").write_text("import sys; print(0, sys.executable, sep='\\n')")
    (copy / "outer.sh").write_text(
        'source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"\nset_up requirements.txt\n'
        '"$STORM_ROOT/train.sh" Pong 0 STORM\n'
    )
    variables = {**bare, "CI": "true", "PATH": os.environ["PATH"]}
    code, printed, said = call(copy, "outer.sh", **variables)
    assert code == 0 and printed == [f"{copy}/.venv/bin/python"], said
    assert said.count("installing") == 1 and not (copy / ".venv" / "left over").exists()


@pytest.mark.slow
def test_a_failed_installation_is_said_and_not_taken_for_done(copy: Path, bare: dict[str, str]) -> None:
    (copy / "requirements.txt").write_text("surely-no-such-package>=1\n")
    code, _, said = call(copy, "train.sh", "Pong", "0", "STORM", PIP_NO_INDEX="1", **bare)
    assert code == 2 and said.splitlines()[-1].startswith("error: installing requirements.txt")
    assert (copy / ".venv.unfinished").exists()


def test_packages_that_cannot_be_added_leave_the_environment_as_it_is(
    copy: Path, bare: dict[str, str]
) -> None:
    python = copy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")  # neither has packages nor gets any
    python.chmod(0o755)
    for _ in range(2):
        code, _, said = call(copy, "train.sh", "Pong", "0", "STORM", **bare)
        assert code == 2 and said.splitlines()[-1].startswith("error: installing requirements.txt")
        assert python.read_text().startswith("#!/bin/sh") and not (copy / ".venv.unfinished").exists()


def test_setup_says_that_torch_cannot_use_a_card(tmp_path: Path) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\n")
    driver.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    code, _, said = call(REPOSITORY, "setup.sh", PATH=path, CUDA_VISIBLE_DEVICES="99")  # none of them
    assert code == 2 and said.startswith("error: ") and "BasicSettings.device=cpu" in said
