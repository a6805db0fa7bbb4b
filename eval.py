"""Scores saved checkpoints: python eval.py -run_name=Boxing-STORM-seed_0; --help lists the options."""

from __future__ import annotations

import configuration.packages  # noqa: F401  (first: it says which packages are missing)

# isort: split
import logging
import sys

from compute.memory_limits import memory_errors
from compute.threads import use_threads
from evaluation.options import named_as_options, parse_options
from evaluation.scoring import score
from evaluation.target import read_target
from evaluation.video_report import report_video
from evaluation.world_model_report import report_world_model
from utils import run_cli


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    logging.basicConfig(format="%(message)s")
    options = parse_options(arguments)
    target = read_target(options)
    windows = target.config.Evaluation.PredictionWindows * target.config.JointTrainAgent.BatchLength
    with memory_errors(), named_as_options():
        judged = options.world_model or options.video
        for line in use_threads(target.config, windows if judged else target.num_envs):
            print(line, file=sys.stderr)
        if options.world_model:
            report_world_model(target)
        elif options.video:
            report_video(target, options)
        else:
            score(target, options.record_video, options.record_dream)


if __name__ == "__main__":
    run_cli(main)
