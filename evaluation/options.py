"""The command line of eval.py."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from configuration.checks import read_value
from environments.single import environment_id
from utils import OneLineParser, UserError

DESCRIPTION = "Scores saved checkpoints: python eval.py -run_name=NAME"
PLAN = re.compile(r"([1-9]\d{0,3})/([1-9]\d{0,3})/(\d{1,3})")  # T_draft/T_revise/M
SCORING = ("num_episodes", "num_envs", "protocol", "record_video", "record_dream")
JUDGING = ("plans", "beside", "fvd_network", "frame_features", "lpips_network")
UNREAD = {  # what is asked for → options that it does not read
    "-video": ("world_model", "greedy", *SCORING),
    "-world_model": (*SCORING, *JUDGING),
    "scores": JUDGING,
}
BLINDLY = "JointTrainAgent.ActBlindly"  # the one setting of training that an evaluation may change
SETTINGS = {  # option → the setting that it overrides
    "num_episodes": "Evaluation.NumEpisodes",
    "num_envs": "Evaluation.NumEnvs",
    "num_threads": "BasicSettings.NumThreads",
    "seed": "BasicSettings.Seed",
    "device": "BasicSettings.device",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options, each with one or two dashes."""
    parser = OneLineParser(prog="eval.py", description=DESCRIPTION, allow_abbrev=False)
    option = parser.option
    option("run_name", "name of the run, or its folder outputs/NAME")
    option("config_path", "YAML file, for checkpoints without a saved run")
    option("env_name", "game or Gymnasium id, for checkpoints without a saved run", type=environment_id)
    option("ckpt_dir", "folder of checkpoints (default: those of the run)", type=Path)
    option("checkpoints", "all (default), last, or a step", default="all")
    option("num_episodes", "episodes per checkpoint (default: the run's Evaluation.NumEpisodes)", type=int)
    option("num_envs", "parallel environments (default: the run's Evaluation.NumEnvs)", type=int)
    option("num_threads", "CPU threads (default: the run's BasicSettings.NumThreads)", type=int)
    option("seed", "seed of the evaluation (default: the run's)", type=int)
    option("greedy", "take the most likely action", action="store_true")
    protocols = "fair: a quota per environment; release: first to finish (default: as ReleaseQuirks)"
    option("protocol", protocols, choices=["fair", "release"])
    option("record_video", "save the play of one environment as MP4 or GIF", action="store_true")
    option(
        "record_dream",
        "the same, with the dream beside it, begun anew every ImagineBatchLength steps",
        action="store_true",
    )
    option("world_model", "measure the world model on held-out episodes instead", action="store_true")
    option("video", "judge predictions of held-out clips, after Task=VideoPrediction", action="store_true")
    option("plans", "sampling plans of -video, as 1/1/1,4/4/1 (default: the run's)", default="")
    option("beside", "further runs of -video, with commas between", default="")
    option("fvd_network", "TorchScript I3D of -video, for FVD", type=Path)
    option("frame_features", "Fréchet distance of -video by EfficientNet-Lite0, not FVD", action="store_true")
    option("lpips_network", "TorchScript LPIPS of -video", type=Path)
    option("device", "device (default: the run's BasicSettings.device)")
    meaning = f"other settings of Environment, Evaluation or VideoPrediction, or {BLINDLY}"
    parser.add_argument("overrides", nargs="*", metavar="Section.Key=value", help=meaning)
    return parser


@contextlib.contextmanager
def named_as_options() -> Iterator[None]:
    """Let a complaint about a setting name the option that sets it."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for name, key in SETTINGS.items():
            text = re.sub(rf"^{re.escape(key)}|\b{re.escape(key)}(?==)", f"-{name}", text)
        raise UserError(text) from error


def read_plans(text: str) -> list[tuple[int, int, int]]:
    """Return the plans of a text as "1/1/1,4/4/1", none of an empty one; raise UserError for another form."""
    plans = [tuple(map(int, plan.groups())) for plan in map(PLAN.fullmatch, text.split(",")) if plan]
    if text and len(plans) < len(text.split(",")):
        raise UserError(f"-plans={text[:80]}: must be T_draft/T_revise/M, as 4/4/1, with commas between")
    return plans


def check_modes(options: argparse.Namespace) -> None:
    """Raise UserError for an option that what is asked for does not read."""
    asked = "-video" if options.video else "-world_model" if options.world_model else "scores"
    for name in UNREAD[asked]:
        if getattr(options, name):
            why = "goes with -video only" if name in JUDGING else f"does not go with {asked}"
            raise UserError(f"-{name}: {why}")


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read a command line; raise UserError, by its option's name, for a value that is impossible."""
    options = make_parser().parse_args(arguments)
    with named_as_options():
        for name, key in SETTINGS.items():
            if getattr(options, name) is not None:
                read_value(key, getattr(options, name))
    if options.run_name is None:  # after unknown options, which may be meant for it
        raise UserError("-run_name=NAME is missing; see python eval.py --help")
    check_modes(options)
    for text in options.overrides:
        sections = ("Evaluation", "VideoPrediction") if options.video else ("Environment", "Evaluation")
        acting = text.partition("=")[0] == BLINDLY and not options.video
        if text.split(".")[0] not in sections and not acting:
            raise UserError(f"{text!r}: must be an option, or a setting of {' or '.join(sections)}")
        if text.startswith("VideoPrediction.HeldOutShare="):
            raise UserError(f"{text!r}: what is held out was settled when the run began")
    options.plans = read_plans(options.plans)
    options.beside = [name for name in options.beside.split(",") if name]
    return options
