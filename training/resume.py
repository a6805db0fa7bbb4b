"""Starting a run, or continuing the one that is there."""

from __future__ import annotations

from configuration.loading import config_to_yaml, differences, load_saved_config
from configuration.schema import Config, schema
from run_files.directory import RunDirectory
from run_files.manifest import read_json
from run_files.states import SavedState, StateStore
from run_files.weights import list_checkpoints
from training.run import TrainingRun
from training.video import VideoRun
from utils import UserError

OTHER_WAYS = "choose another BasicSettings.n, or BasicSettings.Restart=True to archive it and start over"


def check_resumable(config: Config, directory: RunDirectory) -> list[str]:
    """Compare the config with the saved one; return lines on what changed harmlessly.

    Raise UserError if settings that change the model or the data differ, each named, or if the
    saved config is not readable.
    """
    try:
        changed = differences(load_saved_config(directory.config_file), config)
    except UserError as error:
        raise UserError(f"run {directory.name} cannot be continued ({error}): {OTHER_WAYS}") from error
    refused = [change for change in changed if not schema()[change[0]].may_change]
    if refused:
        listed = "; ".join(f"{key} was {old}, now {new}" for key, old, new in refused)
        raise UserError(
            f"run {directory.name} exists with other settings ({listed}): give it those, or {OTHER_WAYS}"
        )
    return [f"{key}: {old} → {new}" for key, old, new in changed if key != "BasicSettings.Restart"]


def find_state(
    config: Config, directory: RunDirectory, store: StateStore
) -> tuple[SavedState | None, list[str]]:
    """Return the state to continue from, None to start a run, and lines for the user.

    Raise UserError if there is a run that cannot be continued with this config.
    """
    if config.BasicSettings.Restart:
        return None, []
    if store.exists():
        notes = check_resumable(config, directory)
        saved = store.load()
        return saved, [*notes, f"continuing {directory.name} at step {saved.step}"]
    if list_checkpoints(directory.checkpoints):
        raise UserError(f"run {directory.name} has checkpoints but no state to continue from: {OTHER_WAYS}")
    return None, []


def has_weights(step: int, config: Config, directory: RunDirectory) -> bool:
    """Return whether there is a checkpoint of this step; its nominal step may be lower by less than NumEnvs.

    There is none if a run had passed the step at which its config now ends it.
    """
    return any(
        0 <= step - saved < config.JointTrainAgent.NumEnvs
        for saved in list_checkpoints(directory.checkpoints)
    )


def open_run(config: Config, directory: RunDirectory) -> TrainingRun | None:
    """Start a run, or continue the one in `directory`; return None if that one is finished.

    The directory must be locked. A new run saves its first state at once, so that there is one
    whenever the process ends. Lines for the user are in its `notes`.
    """
    store = StateStore(directory.state)
    saved, notes = find_state(config, directory, store)
    reached = saved is not None and saved.step >= config.JointTrainAgent.SampleMaxSteps
    if reached and not saved.state.get("evaluation_due") and has_weights(saved.step, config, directory):
        status = read_json(directory.status_file)
        if not directory.is_closed() or status.get("status") != "finished":  # it ended before it said so
            directory.write_status(status | {"status": "finished", "finished_step": saved.step})
        return None
    kind = VideoRun if config.Task == "VideoPrediction" else TrainingRun
    run = kind(config, directory, store, saved)
    run.notes = [*notes, *run.notes]
    directory.save_config(config)
    if saved is None:
        run.logger.text(0, "config", f"```yaml\n{config_to_yaml(config)}```")
        run.save_state("running")
    else:
        run.write_status("running")
    return run
