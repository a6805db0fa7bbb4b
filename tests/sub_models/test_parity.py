"""Our modules against what the original STORM code computed, and its checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from tests_support import small_models

from compute.execution import Execution
from run_files.weights import load_into, load_weights
from sub_models.storm_checkpoint import agent_table, convert, is_original, world_model_table
from utils import UserError, run_cli

DATA = Path(__file__).resolve().parents[1] / "data"
GOLDEN, MANIFEST = DATA / "storm.npz", DATA / "manifest.json"


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    return parity.errors(parity.read_golden(GOLDEN), parity.read_manifest(MANIFEST), GOLDEN)


QUANTITIES = [
    "posterior_logits", "prior_logits", "hidden", "reconstruction", "reward_logits", "reward_decoded",
    "termination_logits", "loss_reconstruction", "loss_reward", "loss_termination", "loss_kl_clipped",
    "loss_kl", "policy_logits", "value_logits", "value", "slow_value", "lambda_return", "percentile_05",
    "percentile_95", "symlog_out", "ac_policy_loss", "ac_value_loss", "ac_entropy_loss", "ac_S",
    "ac_norm_ratio", "ac_total_loss", "ac_after_actor_head_bias", "ac_after_critic_head_bias",
    "ac_after_slow_critic_head_bias",
]  # fmt: skip


@pytest.mark.parametrize("name", QUANTITIES)
def test_quantity_equals_the_original(errors: dict[str, float], name: str) -> None:
    assert errors[name] <= parity.BAR


@pytest.mark.slow
def test_compiled_code_equals_the_original(caplog: pytest.LogCaptureFixture) -> None:
    table = parity.errors(parity.read_golden(GOLDEN), parity.read_manifest(MANIFEST), GOLDEN, "always")
    assert set(table) == set(QUANTITIES) and max(table.values()) <= parity.BAR
    assert "cannot compile" not in caplog.text


def test_every_result_of_the_golden_file_is_compared(errors: dict[str, float]) -> None:
    assert set(errors) == set(QUANTITIES) == set(np.load(GOLDEN).files) - set(parity.INPUTS)


# Other sizes: a golden file of our own making, so that every size must come from the manifest.


def original_shapes(
    state: dict[str, torch.Tensor], table: dict[str, tuple[str, ...]]
) -> dict[str, list[int]]:
    """What the original's tensors look like whose conversion gives `state`."""
    shapes = {}
    for ours, parts in table.items():
        shape = list(state[ours].shape)
        for part in parts:
            shapes[part] = [shape[0] // len(parts), *shape[1:]] if len(parts) > 1 else shape
    return shapes


@pytest.fixture(scope="module")
def other_sizes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Golden file and manifest of `small_models`, salted, with results computed by ourselves."""
    folder = tmp_path_factory.mktemp("golden")
    world_model, agent = small_models()
    config = {
        "in_channels": 3, "action_dim": 3, "transformer_max_length": 32, "transformer_hidden_dim": 16,
        "transformer_num_layers": 2, "transformer_num_heads": 4,
        "agent_num_layers": 2, "agent_hidden_dim": 16,
        "gamma": 0.9, "lambda_": 0.8, "entropy_coef": 1e-2, "salt": 5,
    }  # fmt: skip
    manifest = {
        "config": config,
        "world_model": original_shapes(world_model.state_dict(), world_model_table(stages=2, blocks=2)),
        "agent": original_shapes(agent.state_dict(), agent_table(layers=2)),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rng = np.random.default_rng(0)
    inputs = {
        "obs": rng.integers(0, 256, (3, 5, 16, 16, 3), dtype=np.uint8),
        "action": rng.integers(0, 3, (3, 5)),
        "reward": rng.standard_normal((3, 5)),
        "termination": rng.integers(0, 2, (3, 5)),
        "latent_index": rng.integers(0, 5, (3, 5, 4)),
        "percentile_in": rng.standard_normal(300),
        "symlog_in": rng.standard_normal(7) * 100,
        "ac_latent": rng.standard_normal((9, 4, 36)),
        "ac_action": rng.integers(0, 3, (9, 3)),
        "ac_reward": rng.standard_normal((9, 3)),
        "ac_termination": rng.integers(0, 2, (9, 3)),
    }
    path = folder / "golden.npz"
    np.savez(path, **inputs)
    results = parity.compute(parity.read_golden(path), parity.read_manifest(folder / "manifest.json"), path)
    np.savez(path, **inputs, **{name: value.detach().numpy() for name, value in results.items()})
    return path, folder / "manifest.json"


@pytest.fixture
def run_parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # noqa: ANN201
    """The command's exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            run_cli(parity.main)
        return exit_.value.code, *capsys.readouterr()

    return run


def test_the_command_works_for_other_sizes(run_parity, other_sizes: tuple[Path, Path]) -> None:  # noqa: ANN001
    code, output, _ = run_parity(*other_sizes)
    assert code == 0
    assert f"{len(QUANTITIES)} of {len(QUANTITIES)} within" in output
    assert all(name in output for name in QUANTITIES)


def test_the_command_sees_a_difference(  # noqa: ANN201
    run_parity,  # noqa: ANN001
    other_sizes: tuple[Path, Path],
    tmp_path: Path,
):
    golden, manifest = other_sizes
    arrays = dict(np.load(golden))
    arrays["hidden"] = arrays["hidden"].copy()
    arrays["hidden"][0, 0, 0] += 1e-3 * np.abs(arrays["hidden"]).max()
    arrays["value"] = np.full_like(arrays["value"], np.nan)
    np.savez(tmp_path / "golden.npz", **arrays)
    code, output, _ = run_parity(tmp_path / "golden.npz", manifest)
    assert code == 1
    assert {line.split()[0] for line in output.splitlines() if "ABOVE" in line} == {"hidden", "value"}


@pytest.mark.parametrize(("section", "key", "value"), [("config", "salt", 6), ("config", "gamma", 0.8)])
def test_weights_and_numbers_come_from_the_manifest(
    other_sizes: tuple[Path, Path], tmp_path: Path, section: str, key: str, value: float
) -> None:
    golden, manifest = other_sizes
    content = json.loads(manifest.read_text())
    content[section][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    errors = parity.errors(
        parity.read_golden(golden), parity.read_manifest(tmp_path / "manifest.json"), golden
    )
    assert errors["lambda_return"] > 1e-3
    assert (errors["hidden"] > 1e-3) == (key == "salt")


def drop(key: str):  # noqa: ANN201
    return lambda content: content.pop(key)


FAULTS = {
    "no config": drop("config"),
    "a negative size": lambda content: content["config"].update(action_dim=-1),
    "a size as text": lambda content: content["config"].update(agent_hidden_dim="16"),
    "a wrong size": lambda content: content["config"].update(transformer_hidden_dim=32),
    "heads that do not divide": lambda content: content["config"].update(transformer_num_heads=5),
    "an unknown tensor": lambda content: content["agent"].update({"actor.9.gain": [3]}),
    "a missing tensor": lambda content: content["world_model"].pop("dist_head.prior_head.bias"),
    "a shape that is none": lambda content: content["world_model"].update({"dist_head.prior_head.bias": "x"}),
    "a huge shape": lambda content: content["agent"].update({"actor.0.weight": [10**9, 10**9]}),
    "an action too many": lambda content: content["config"].update(action_dim=2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_manifest_that_does_not_fit(other_sizes: tuple[Path, Path], tmp_path: Path, fault: str) -> None:
    golden, manifest = other_sizes
    content = json.loads(manifest.read_text())
    FAULTS[fault](content)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError):
        parity.errors(parity.read_golden(golden), parity.read_manifest(path), golden)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, "missing") for name in ("obs", "ac_latent", "value", "ac_S")),
        *((name, "shape") for name in ("obs", "latent_index", "ac_latent", "value", "ac_S")),
        *((name, "range") for name in ("action", "latent_index", "ac_action")),
    ],
)
def test_a_golden_file_that_does_not_fit(
    other_sizes: tuple[Path, Path], tmp_path: Path, name: str, fault: str
) -> None:
    golden, manifest = other_sizes
    arrays = dict(np.load(golden))
    if fault == "missing":
        del arrays[name]
    else:
        arrays[name] = arrays[name] + 9 if fault == "range" else arrays[name][None]
    path = tmp_path / "golden.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=f"golden.npz: .*'{name}'"):
        parity.errors(parity.read_golden(path), parity.read_manifest(manifest), path)


def test_bad_files_end_in_one_line(run_parity, tmp_path: Path) -> None:  # noqa: ANN001
    cases = [
        (),
        (GOLDEN,),
        (tmp_path / "none.npz", MANIFEST),
        (MANIFEST, MANIFEST),
        (GOLDEN, GOLDEN),
        (GOLDEN, "/"),
    ]
    for arguments in cases:
        code, _, errors = run_parity(*arguments)
        assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1


def test_the_command_runs_from_anywhere() -> None:
    command = [sys.executable, parity.__file__, str(GOLDEN), str(MANIFEST)]
    path = {"PYTHONPATH": str(Path(parity.__file__).parents[1])}  # as where the package is installed
    assert subprocess.run(command, capture_output=True, cwd="/", env={**os.environ, **path}).returncode == 0


# Checkpoints of the original.


def original_state(part: str) -> dict[str, torch.Tensor]:
    manifest = parity.read_manifest(MANIFEST)
    return manifest.weights(getattr(manifest, part))


def test_original_checkpoints_are_recognised_and_ours_are_not() -> None:
    world_model, agent = small_models()
    assert is_original(original_state("world_model")) and is_original(original_state("agent"))
    assert not is_original(world_model.state_dict()) and not is_original(agent.state_dict())
    assert not is_original(small_models("GITSTORM")[0].state_dict())


def test_query_key_and_value_weights_become_one() -> None:
    state = original_state("world_model")
    converted = convert(state)
    block = "storm_transformer.layer_stack.1.slf_attn"
    parts = [state[f"{block}.{name}.weight"] for name in ("w_qs", "w_ks", "w_vs")]
    joined = converted["sequence_model.blocks.1.attention.query_key_value.weight"]
    assert torch.equal(joined, torch.cat(parts))


def test_return_averages_start_at_zero() -> None:
    converted = convert(original_state("agent"))
    assert converted["return_scale.low"] == 0 and converted["return_scale.high"] == 0
    assert torch.equal(converted["slow_critic.6.bias"], original_state("agent")["slow_critic.6.bias"])


@pytest.mark.parametrize("part", ["world_model", "agent"])
def test_missing_and_unknown_tensors_are_named(part: str) -> None:
    state = original_state(part)
    for name in list(state)[3::7]:
        rest = {key: value for key, value in state.items() if key != name}
        with pytest.raises(UserError, match=r"old\.pth") as caught:
            model = convert(rest, "old.pth")
            load_into(small_models()[part == "agent"], model, "old.pth")
        assert "missing" in str(caught.value) or "not one of" in str(caught.value)
    with pytest.raises(UserError, match=r"old\.pth: tensor 'surprise' is not one of"):
        convert(state | {"surprise": torch.zeros(1)}, "old.pth")


def test_projections_that_do_not_fit_together_are_refused() -> None:
    state = original_state("world_model")
    state["storm_transformer.layer_stack.0.slf_attn.w_ks.weight"] = torch.zeros(3, 5)
    with pytest.raises(UserError, match="query, key and value"):
        convert(state)


def test_an_original_checkpoint_loads_from_its_file(tmp_path: Path) -> None:
    manifest = parity.read_manifest(MANIFEST)
    golden = parity.read_golden(GOLDEN)
    config = parity.make_config(manifest, golden)
    learner = parity.make_learner(manifest, config, Execution(config.BasicSettings, torch.device("cpu")))
    for part in ("world_model", "agent"):
        torch.save(original_state(part), tmp_path / f"{part}_1000.pth")
        weights = load_weights(tmp_path / f"{part}_1000.pth")
        assert is_original(weights)
        load_into(getattr(learner, part), convert(weights), part)
