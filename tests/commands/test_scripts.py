"""The shell scripts: what they say to wrong arguments, and which Python they choose or make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ["setup.sh", "train.sh", "evals.sh", "eval_manager.sh", "test.sh"]
ECHO_ARGUMENTS = "import sys; print(*sys.argv, sep='\\n')"


def call(
    folder: Path, script: str, *arguments: str, cwd: Path = Path("/"), **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STORM_PYTHON": sys.executable, **variables}
    environment = {name: value for name, value in environment.items() if value}
    command = ["bash", str(folder / script), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the scripts in a folder with awkward characters, whose train.py prints its arguments."""
    folder = tmp_path / 'a copy\'s "folder" $HOME'
    folder.mkdir()
    for name in [*SCRIPTS, "requirements.txt", "requirements-dev.txt", "requirements.lock"]:
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "config_files", folder / "config_files")
    for name in ("train.py", "eval.py"):
        (folder / name).write_text(ECHO_ARGUMENTS)
    return folder


@pytest.mark.parametrize("script", [*SCRIPTS, ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(REPOSITORY / script, os.X_OK)
    subprocess.run(["bash", "-n", str(REPOSITORY / script)], check=True)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("setup.sh", ["--what"], ["usage", "--dev"]),
        ("setup.sh", ["--dev", "junk"], ["usage", "--dev"]),
        ("train.sh", [], ["usage", "<env_name> <seed> <config>"]),
        ("train.sh", ["Boxing", "0"], ["usage"]),
        ("train.sh", ["", "0", "STORM"], ["environment name ''"]),
        ("train.sh", ["Box; touch x", "0", "STORM"], ["environment name 'Box; touch x'"]),
        ("train.sh", ["Boxing", "one", "STORM"], ["seed 'one'"]),
        ("train.sh", ["Boxing", "-1", "STORM"], ["seed '-1'"]),
        ("train.sh", ["Boxing", "0", "STROM"], ["config 'STROM'", "STORM-tiny"]),
        ("train.sh", ["Boxing", "0", "$(touch x)"], ["config '$(touch x)'"]),
        ("train.sh", ["Boxing", "0", "STORM", "Seed"], ["'Seed'", "Section.Key=value"]),
        ("evals.sh", ["Boxing", "run"], ["usage", "<env_name> <run_name> <config>"]),
        ("evals.sh", ["Boxing", "../run", "STORM"], ["run name '../run'"]),
        ("evals.sh", ["Boxing", "", "STORM"], ["run name ''"]),
        ("evals.sh", ["Boxing", "run", "none"], ["config 'none'"]),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_code_2(
    tmp_path: Path, script: str, arguments: list[str], words: list[str]
) -> None:
    result = call(REPOSITORY, script, *arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")
    assert all(word in result.stderr for word in words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"GAMES": "Boxing", "SEEDS": "x"}, "seed 'x'"),
        ({"CONFIG": "STORM none"}, "config 'none'"),
        ({"GAMES": "Bo;xing"}, "environment name 'Bo;xing'"),
        ({"GAMES": "Boxing\nBo;xing"}, "environment name 'Bo;xing'"),
        ({"GAMES": " \n"}, "must each name at least one"),
    ],
)
def test_eval_manager_checks_its_grid_first(variables: dict[str, str], words: str) -> None:
    result = call(REPOSITORY, "eval_manager.sh", **variables)
    assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1


def test_train_passes_names_as_settings(copy: Path) -> None:
    overrides = ["Models.Agent.Gamma=0.9", "BasicSettings.n=a b"]
    result = call(copy, "train.sh", "Boxing", "3", "GITSTORM", *overrides)
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "train.py",
        "BasicSettings.env_name=ALE/Boxing-v5",
        "BasicSettings.Seed=3",
        "BasicSettings.config_path=config_files/GITSTORM.yaml",
        "BasicSettings.n=null",
        "Models.Agent.Gamma=0.9",
        "BasicSettings.n=a b",
    ]


@pytest.mark.parametrize(
    ("given_name", "environment"),
    [("Pong", "ALE/Pong-v5"), ("ALE/Pong-v5", "ALE/Pong-v5"), ("CarRacing-v3", "CarRacing-v3")],
)
def test_bare_games_and_full_ids(copy: Path, given_name: str, environment: str) -> None:
    result = call(copy, "train.sh", given_name, "0", "STORM")
    assert f"BasicSettings.env_name={environment}" in result.stdout.splitlines()


def test_paths_are_meant_from_where_the_command_is_typed(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "my config.yaml").write_text("base: STORM.yaml")
    (tmp_path / "demo.npz").touch()
    override = "BasicSettings.trajectory_path=demo.npz"
    result = call(copy, "train.sh", "Pong", "0", "my config.yaml", override, cwd=tmp_path)
    assert f"BasicSettings.config_path={tmp_path}/my config.yaml" in result.stdout.splitlines()
    assert f"BasicSettings.trajectory_path={tmp_path}/demo.npz" in result.stdout.splitlines()


def test_evals_passes_its_arguments_on(copy: Path) -> None:
    result = call(copy, "evals.sh", "Boxing", "my run", "STORM-tiny", "-num_episodes", "3")
    assert result.stdout.splitlines() == [
        "eval.py",
        "-config_path=config_files/STORM-tiny.yaml",
        "-env_name=ALE/Boxing-v5",
        "-run_name=my run",
        "-num_episodes",
        "3",
    ]


@pytest.mark.parametrize("program", ["/bin/true", "/bin/echo", "/no/such/python"])
def test_a_program_that_is_no_python_is_refused(copy: Path, program: str) -> None:
    result = call(copy, "train.sh", "Pong", "0", "STORM", STORM_PYTHON=program)
    assert result.returncode == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert f"STORM_PYTHON={program}: is no Python or lacks packages" in result.stderr


def make_run(folder: Path, name: str, steps: list[int], evaluated: list[int]) -> None:
    checkpoints = folder / "outputs" / name / "ckpt"
    checkpoints.mkdir(parents=True)
    for step in steps:
        (checkpoints / f"agent_{step}.pth").touch()
    results = folder / "outputs" / "eval_result"
    results.mkdir(exist_ok=True)
    lines = ["step,episode_avg_return", *(f"{step},1.0" for step in evaluated)]
    (results / f"{name}.csv").write_text("\n".join(lines) + "\n")


def test_eval_manager_skips_what_is_done_and_lists_what_failed(copy: Path) -> None:
    failing = "if '-run_name=Pong-STORM-seed_0' in sys.argv: sys.exit(3)"
    (copy / "eval.py").write_text(f"{ECHO_ARGUMENTS}\n{failing}")
    make_run(copy, "Boxing-STORM-seed_0", [5000, 10000], [5000, 10000])
    make_run(copy, "Boxing-STORM-seed_1", [5000, 10000], [10000])
    make_run(copy, "Pong-STORM-seed_0", [5000], [])
    result = call(
        copy, "eval_manager.sh", "-greedy", GAMES="Pong\nALE/Boxing-v5", SEEDS="0 1", CONFIG="STORM"
    )
    assert result.returncode == 1
    assert "Boxing-STORM-seed_0: already evaluated, skipped" in result.stdout
    assert "-run_name=Boxing-STORM-seed_0" not in result.stdout
    assert "-run_name=Boxing-STORM-seed_1" in result.stdout and "-greedy" in result.stdout
    failures = result.stderr.split("not evaluated:\n")[1].splitlines()
    assert failures == ["  Pong-STORM-seed_0 (exit code 3)", "  Pong-STORM-seed_1 (no such run)"]


# --- which Python the scripts choose; without a network, so the requirement is one that every venv meets


@pytest.fixture
def bare(copy: Path, tmp_path: Path) -> Path:
    """The copy, with requirements that need no download and a python3 on PATH that lacks them."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        (copy / name).write_text("pip>=1  # in every environment\n")
    stub = tmp_path / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\n[ "$1" = - ] && exit 1\nexec "{sys.executable}" "$@"\n')
    stub.chmod(0o755)
    return copy


def without_packages(bare: Path) -> dict[str, str]:
    hidden = dict.fromkeys(("STORM_PYTHON", "CI", "VIRTUAL_ENV", "CONDA_PREFIX"), "")
    return {**hidden, "PATH": f"{bare.parent / 'bin'}:{os.environ['PATH']}"}


def test_a_python_with_the_packages_is_used_as_it_is(copy: Path) -> None:
    (copy / "requirements.txt").write_text("torch>=2.6\n")
    folder = Path(sys.executable).parent
    result = call(copy, "setup.sh", STORM_PYTHON="", CI="", PATH=f"{folder}:{os.environ['PATH']}")
    assert result.returncode == 0 and "using" in result.stderr
    assert not (copy / ".venv").exists()


def test_a_missing_version_is_not_taken_for_met(copy: Path) -> None:
    (copy / "requirements.txt").write_text("torch>=999\n")
    result = call(copy, "train.sh", "Pong", "0", "STORM")
    assert result.returncode == 2 and "lacks packages" in result.stderr


def test_a_half_made_environment_is_made_anew_by_one_of_two_set_ups(bare: Path) -> None:
    (bare / ".venv" / "bin").mkdir(parents=True)
    (bare / ".venv" / "left over").touch()
    (bare / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (bare / ".venv.unfinished").touch()
    variables = {**os.environ, **without_packages(bare)}
    variables = {name: value for name, value in variables.items() if value}
    command = ["bash", str(bare / "train.sh"), "Pong", "0", "STORM"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": "/"}
    processes = [subprocess.Popen(command, env=variables, **pipes) for _ in range(2)]
    errors = "".join(process.communicate(timeout=300)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert errors.count("installing requirements.txt") == 1
    assert errors.count(f"using {bare}/.venv/bin/python") == 2
    assert not (bare / ".venv" / "left over").exists() and not (bare / ".venv.unfinished").exists()


@pytest.mark.slow
def test_continuous_integration_always_makes_a_new_environment_once(bare: Path) -> None:
    (bare / ".venv").mkdir()
    (bare / ".venv" / "left over").touch()
    (bare / "train.py").write_text("import sys; print(sys.executable)")
    outer = bare / "outer.sh"
    outer.write_text(
        'source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"\nset_up requirements.txt\n'
        '"$STORM_ROOT/train.sh" Pong 0 STORM\n'
    )
    result = call(bare, "outer.sh", **{**without_packages(bare), "CI": "true", "PATH": os.environ["PATH"]})
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{bare}/.venv/bin/python"
    assert result.stderr.count("installing") == 1 and not (bare / ".venv" / "left over").exists()


@pytest.mark.slow
def test_a_failed_installation_is_said_and_not_taken_for_done(bare: Path) -> None:
    (bare / "requirements.txt").write_text("surely-no-such-package>=1\n")
    variables = {**without_packages(bare), "PIP_NO_INDEX": "1"}
    result = call(bare, "train.sh", "Pong", "0", "STORM", **variables)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: installing requirements.txt")
    assert (bare / ".venv.unfinished").exists()


def test_setup_says_that_torch_cannot_use_a_card(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this torch uses the card")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\n")
    driver.chmod(0o755)
    result = call(REPOSITORY, "setup.sh", PATH=f"{tmp_path}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "BasicSettings.device=cpu" in result.stderr
