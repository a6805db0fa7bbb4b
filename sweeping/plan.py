"""From a command line to the runs of its grid, everything checked before anything starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from configuration.checks import show
from configuration.loading import apply_overrides, load_config
from configuration.schema import Config
from environments.single import find_spec
from run_files.directory import RunDirectory
from run_files.states import StateStore
from sweeping.options import LOCAL, Options
from sweeping.runs import EVALUATE, TRAIN, SweepRun, parse_eval_options
from training.resume import check_resumable
from utils import REPOSITORY, UserError, nearest


def plan_runs(options: Options) -> list[SweepRun]:
    """The runs of a grid, all of their settings checked.

    Raises UserError for an unknown game, config or setting, for a run that exists with other
    settings, and for one that needs more cores than there are.
    """
    _check_cores(options)
    parse_eval_options(options.eval_options)
    paths = {config: _find_config(config) for config in options.configs}
    environments = {game: environment_id(game) for game in options.games}
    for name in environments.values():
        find_spec(name)
    bases = {
        config: load_config([f"BasicSettings.config_path={path}", "BasicSettings.n=null", *options.overrides])
        for config, path in paths.items()
    }
    runs: dict[str, SweepRun] = {}
    for game, seed, config in options.grid():
        cell = (f"BasicSettings.env_name={environments[game]}", f"BasicSettings.Seed={seed}")
        run = _plan_run(options, bases[config], paths[config], cell)
        if run.name in runs and runs[run.name].config != run.config:
            raise UserError(f"two runs of the grid would be named {run.name}: rename one of the configs")
        runs[run.name] = run
    return list(runs.values())


def _check_cores(options: Options) -> None:
    cores, wanted = os.cpu_count(), options.cpus_per_run
    if options.address == LOCAL and cores is not None and wanted > cores:
        raise UserError(f"cpus_per_run={wanted:g}: more than this machine has, which is {cores}")


def _plan_run(options: Options, base: Config, path: str, cell: tuple[str, ...]) -> SweepRun:
    config = apply_overrides(base, [*cell, "BasicSettings.n=null"])
    directory = RunDirectory(config.BasicSettings.n, options.storage)
    if options.train and StateStore(directory.state).exists():
        _check_resumable(config, directory)
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


def _find_config(text: str) -> str:
    """The path that train.py is given: from the repository on if it is inside, else absolute."""
    folder = REPOSITORY / "config_files"
    for path in (Path(text), REPOSITORY / text, folder / f"{text}.yaml"):
        if path.is_file():
            absolute = path.resolve()
            is_inside = absolute.is_relative_to(REPOSITORY)
            return str(absolute.relative_to(REPOSITORY) if is_inside else absolute)
    suggestion = nearest(Path(text).stem, (path.stem for path in folder.glob("*.yaml")))
    raise UserError(f"config {show(text)}: no such file{suggestion}; see {folder}")
