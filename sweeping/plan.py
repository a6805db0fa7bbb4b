"""From a command line to the runs of its grid, everything checked before anything starts."""

from __future__ import annotations

import os
import re

from configuration.loading import apply_overrides, load_config
from configuration.schema import Config
from environments.single import find_spec
from run_files.directory import RunDirectory
from run_files.states import StateStore
from sweeping.options import LOCAL, Options
from sweeping.runs import EVALUATE, TRAIN, SweepRun, parse_eval_options
from training.resume import check_resumable
from utils import UserError


def plan_runs(options: Options) -> list[SweepRun]:
    """The runs of a grid, all of their settings checked.

    Raises UserError for an unknown game, config or setting, for a run that exists with other
    settings, and for one that needs more cores than there are.
    """
    _check_cores(options)
    parse_eval_options(options.eval_options)
    environments = {game: environment_id(game) for game in options.games}
    for name in environments.values():
        find_spec(name)
    bases = {
        name: load_config([f"BasicSettings.config_path={name}", "BasicSettings.n=null", *options.overrides])
        for name in options.configs
    }
    runs: dict[str, SweepRun] = {}
    for game, seed, config in options.grid():
        cell = (f"BasicSettings.env_name={environments[game]}", f"BasicSettings.Seed={seed}")
        run = _plan_run(options, bases[config], cell)
        if run.name in runs and runs[run.name].config != run.config:
            raise UserError(f"two runs of the grid would be named {run.name}: rename one of the configs")
        runs[run.name] = run
    return list(runs.values())


def _check_cores(options: Options) -> None:
    cores, wanted = os.cpu_count(), options.cpus_per_run
    if options.address == LOCAL and cores is not None and wanted > cores:
        raise UserError(f"cpus_per_run={wanted:g}: more than this machine has, which is {cores}")


def _plan_run(options: Options, base: Config, cell: tuple[str, ...]) -> SweepRun:
    config = apply_overrides(base, [*cell, "BasicSettings.n=null"])
    directory = RunDirectory(config.BasicSettings.n, options.storage)
    if options.train and StateStore(directory.state).exists():
        _check_resumable(config, directory)
    path = base.BasicSettings.config_path
    settings = (f"BasicSettings.config_path={path}", "BasicSettings.n=null", "BasicSettings.silent=True")
    wanted = {TRAIN: options.train, EVALUATE: options.evaluate}
    return SweepRun(
        config=config,
        settings=(*cell, *settings, *options.overrides),
        directory=directory,
        stages=tuple(stage for stage, is_wanted in wanted.items() if is_wanted),
        eval_options=options.eval_options,
    )


def _check_resumable(config: Config, directory: RunDirectory) -> None:
    try:
        check_resumable(config, directory)
    except UserError as error:
        way = "in a sweep, name a YAML file of other settings in configs=, or another folder with storage="
        raise UserError(f"{error}; {way}") from error


def environment_id(game: str) -> str:
    """Full Gymnasium id of a game given by its bare name: Boxing is ALE/Boxing-v5."""
    return game if "/" in game or re.search(r"-v\d", game) else f"ALE/{game}-v5"
