"""The experiment on joint priors, at its real size but for the end-to-end part: two minutes on one core."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from environments.diagnostic import twins_pictures
from experiments import joint_prior
from experiments.joint_prior import FACTORISED, Settings, collect, compare_priors, judge, read_options
from utils import UserError

SETTINGS = replace(Settings(), prior_steps=1000, timed_batch=8, timed_repeats=1)
LIKE_THE_POSTERIOR, INDEPENDENT, JOINT, SPREAD = 0.95, 0.2, 0.8, 0.85


@pytest.fixture(scope="module")
def priors() -> dict[str, dict[str, float]]:
    return compare_priors(collect(SETTINGS), SETTINGS)[0]


@pytest.fixture
def threads() -> Iterator[None]:
    """Leave PyTorch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_encoder_and_decoder_are_no_obstacle(priors: dict[str, dict[str, float]]) -> None:
    assert priors["posterior"]["consistent"] >= LIKE_THE_POSTERIOR
    assert priors["posterior"]["class_entropy"] >= LIKE_THE_POSTERIOR


@pytest.mark.slow
@pytest.mark.parametrize("name", [FACTORISED, "MaskGIT 1/1/1"])
def test_independent_draws_disagree(priors: dict[str, dict[str, float]], name: str) -> None:
    assert priors[name]["consistent"] <= INDEPENDENT


@pytest.mark.slow
def test_joint_draws_agree_without_collapsing(priors: dict[str, dict[str, float]]) -> None:
    best = max((priors["MaskGIT 4/4/1"], priors["MaskGIT 8/8/1"]), key=lambda result: result["consistent"])
    assert best["consistent"] >= JOINT
    assert best["class_entropy"] >= SPREAD


def test_frames_are_judged_by_agreement_and_spread() -> None:
    pictures = twins_pictures(32)
    mixed = pictures.copy()
    mixed[:, :8, :8] = np.roll(pictures, 1, axis=0)[:, :8, :8]  # one part of another class
    assert judge(pictures) == pytest.approx({"consistent": 1.0, "class_entropy": 1.0})
    assert judge(mixed) == {"consistent": 0.0, "class_entropy": 0.0}
    one_class = np.concatenate([pictures[:1], pictures[:1], mixed[:2]])
    assert judge(one_class) == pytest.approx({"consistent": 0.5, "class_entropy": 0.0})


def test_experience_is_what_the_environment_shows() -> None:
    data = collect(replace(SETTINGS, frames=128))
    observation = data.export_rows(0, 128)["observation"][:, 0]
    assert observation.shape == (128, 32, 32, 3) and judge(observation)["consistent"] == 1
    changes = (observation[1:] != observation[:-1]).any((1, 2, 3)).mean()
    assert changes == pytest.approx(15 / 16, abs=0.08)


def test_only_the_prior_moves_while_it_is_fitted() -> None:
    settings = replace(SETTINGS, prior_steps=2, frames=128)
    world_model = joint_prior.make_world_model(settings, "GITSTORM")
    before = {name: value.clone() for name, value in world_model.state_dict().items()}
    joint_prior.fit_prior(world_model, collect(settings), settings)
    moved = {
        name.split(".")[0]
        for name, value in world_model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"prior", "sequence_model"}


def test_the_command_writes_what_it_measured(tmp_path: Path, threads: None) -> None:
    few = {"frames": 256, "autoencoder_steps": 2, "prior_steps": 2, "end_to_end_steps": 2, "curve_points": 1}
    few |= {"timed_batch": 2, "timed_repeats": 1, "imagined_windows": 4, "latents": 4, "classes": 4}
    joint_prior.main([f"--out={tmp_path}", *(f"--{name}={value}" for name, value in few.items())])
    record = json.loads((tmp_path / "4x4.json").read_text())
    tried = ["MaskGIT 1/1/1", "MaskGIT 2/2/1", "MaskGIT 4/4/1"]
    assert list(record["priors"]) == ["posterior", FACTORISED, *tried]
    assert list(record["end_to_end"]) == [FACTORISED, "MaskGIT 4/4/1"]
    assert [point["step"] for point in record["end_to_end"][FACTORISED]] == [2]
    assert (tmp_path / "4x4.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("--latents 12", "--width 64: must be a multiple of --latents 12"),
        ("--width 60", "--width 60: must be a multiple of --latents 8 and of 8 heads"),
        ("--image_size 40", "--image_size 40: must be"),
        ("--latents 2", "--latents 2: must be at least 4"),
        *(
            (f"--{name} 0", f"--{name}: '0': must be")
            for name in ("frames", "windows", "timed_repeats", "width")
        ),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_at_once(wrong: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        read_options(wrong.split())


def test_every_setting_is_an_option() -> None:
    settings, out = read_options(["--latents", "32", "--learning_rate", "3e-4", "--out", "elsewhere"])
    assert (settings.latents, settings.learning_rate, str(out)) == (32, 3e-4, "elsewhere")
    assert replace(settings, latents=8, learning_rate=1e-3) == Settings()


def test_models_see_all_that_is_imagined() -> None:
    settings = replace(Settings(), context=3, horizon=99)
    assert joint_prior.model_config(settings).Models.WorldModel.TransformerMaxLength >= 102
