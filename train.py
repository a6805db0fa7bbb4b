"""Trains STORM or GIT-STORM: python train.py [Section.Key=value ...]; --help lists every key."""

from __future__ import annotations

import configuration.packages  # noqa: F401  (first: it says which packages are missing)

# isort: split
import contextlib
import logging
import sys
from collections.abc import Iterator

from tqdm import tqdm

from compute.execution import COMPILING
from compute.memory_limits import memory_errors
from configuration.loading import config_help, config_to_yaml, load_config
from configuration.schema import Config, JointTrainAgent
from env_wrapper import EnvironmentFault
from run_files.directory import RunDirectory
from training.next_steps import next_steps
from training.resume import has_weights, open_run
from training.run import StopRequest, TrainingRun
from utils import NOT_FINISHED, UserError, run_cli

MANY_PARAMETERS = 5_000_000  # from here on a CPU is too slow for a whole run


def train(run: TrainingRun, stop: StopRequest, bar: tqdm) -> bool:
    """The loop: take a step, log, save.

    Returns:
        Whether the run reached its last step (False if it was asked to stop, and is saved).
    """
    task = run.config.JointTrainAgent
    catch_up(run, stop, bar)
    while run.step < task.SampleMaxSteps:
        if stop.signal is not None:
            run.save_state("stopped")
            return False
        before = run.step
        try:
            take_step(run)
        except EnvironmentFault as fault:
            handle_fault(run, fault, bar)
            continue
        log_and_save(run, before, stop, bar)
    return not run.evaluation_due


def catch_up(run: TrainingRun, stop: StopRequest, bar: tqdm) -> None:
    """Do what was left when the run stopped: an evaluation, or the weights where it is to end by now."""
    task = run.config.JointTrainAgent
    ended, was_due = run.step >= task.SampleMaxSteps, run.evaluation_due
    run.evaluation_due = was_due and task.EvalEverySteps > 0
    if ended and not has_weights(run.step, run.config, run.directory):
        run.save_checkpoint(run.step)
    if run.evaluation_due:
        evaluate(run, stop, bar)
    if ended or was_due:
        run.save_state(status_of(run))


def take_step(run: TrainingRun) -> None:
    """Act, let the emulator step while the device learns, and store; of video, learn only.

    With UpdateAfterStoring the update waits for the step, and can draw it.
    """
    if not run.plays:  # training/video.py
        return run.update_models()
    waits = run.config.JointTrainAgent.UpdateAfterStoring
    observation = run.execution.upload(run.observation)
    learning = run.is_warm
    action = run.policy.act(observation) if learning else run.policy.act_randomly(observation)
    run.environment.start_step(action)
    if learning and not waits:
        run.update_models()
    result = run.environment.finish_step()
    run.store_step(observation, action, result)
    if learning and waits:
        run.update_models()
    run.step += run.config.JointTrainAgent.NumEnvs
    run.faults_in_a_row = 0
    run.record(result)


def status_of(run: TrainingRun) -> str:
    """Return how a run stands; at its last step an evaluation that was put off is still to be made."""
    if run.step < run.config.JointTrainAgent.SampleMaxSteps:
        return "running"
    return "stopped" if run.evaluation_due else "finished"


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]; never if `every` is 0."""
    return every > 0 and now // every > before // every


def log_and_save(run: TrainingRun, before: int, stop: StopRequest, bar: tqdm) -> None:
    """Log, save and evaluate what is due after the steps (before, run.step]; first what cannot refuse."""
    task, now = run.config.JointTrainAgent, run.step
    bar.update(min(now, task.SampleMaxSteps) - min(before, task.SampleMaxSteps))
    is_logged = crossed(before, now, task.LogEverySteps)
    if is_logged:
        run.log()
        if run.plays:
            bar.set_postfix_str(f"last return {run.last_return:g}")
    steps = checkpoints_due(before, now, task)
    for nominal in steps:
        run.save_checkpoint(nominal)
    run.evaluation_due = crossed(before, now, task.EvalEverySteps)
    if is_logged:
        with saved_if_refused(run):
            run.learner.stop_if_diverged(task.MaxBadUpdates)
    if run.evaluation_due:
        evaluate(run, stop, bar)
    if steps:
        line = run.health_line()
        if line is not None:
            bar.write(line, file=sys.stderr)
        run.save_state(status_of(run))
    elif 0 < task.SaveEverySeconds <= run.seconds_since_save():
        run.save_state("running")


def evaluate(run: TrainingRun, stop: StopRequest, bar: tqdm) -> None:
    """Evaluate the present weights; if asked to stop meanwhile, do so when the run continues."""
    with saved_if_refused(run):
        mean = run.evaluate(lambda: stop.signal is not None)
    if mean is not None:
        bar.write(f"step {run.step}: evaluated, mean return {mean:.1f}", file=sys.stderr)


def checkpoints_due(before: int, now: int, task: JointTrainAgent) -> list[int]:
    """Nominal steps to save weights under after the steps (before, now]: the latest multiple, and the end."""
    steps = []
    if crossed(before, now, task.SaveEverySteps):
        steps.append(now // task.SaveEverySteps * task.SaveEverySteps)
    if now >= task.SampleMaxSteps:
        steps = [step for step in steps if step < task.SampleMaxSteps] + [task.SampleMaxSteps]
    return steps


@contextlib.contextmanager
def saved_if_refused(run: TrainingRun) -> Iterator[None]:
    """Save the run if a UserError inside ends it."""
    try:
        yield
    except UserError:
        run.save_state("stopped")
        raise


def handle_fault(run: TrainingRun, fault: EnvironmentFault, bar: tqdm) -> None:
    """Drop the step whose environment failed; stop, saved, after too many in a row.

    What was learned while the environment stepped stays, and counts.
    """
    run.faults += 1
    run.faults_in_a_row += 1
    run.policy.drop_last_step()
    run.observation = run.environment.observation
    seeds = run.environment.seeds
    line = f"step {run.step}: {fault}; all environments began new episodes on seeds {seeds}"
    bar.write(line, file=sys.stderr)
    run.logger.text(run.step, "environment/fault", line)
    if run.faults_in_a_row >= run.config.Environment.MaxFaults:
        run.save_state("stopped")
        raise UserError(f"{run.faults_in_a_row} environment faults in a row, the last one: {fault}")


def announce(run: TrainingRun) -> None:
    """Say what is about to run, and what to expect of it."""
    config = run.config
    print(config_to_yaml(config))
    for note in run.notes:
        print(note, file=sys.stderr)
    parameters = sum(p.numel() for p in run.learner.world_model.parameters())
    execution = run.execution
    print(f"run {config.BasicSettings.n}: {execution.device}, {execution.dtype}", file=sys.stderr)
    if execution.compiles:
        print(COMPILING, file=sys.stderr)
    if execution.device.type == "cpu" and parameters > MANY_PARAMETERS:
        print(
            f"this is a model of {parameters / 1e6:.1f} M parameters on a CPU: each update takes seconds, a "
            "whole run days; of config_files/, STORM-tiny (games), STORM-control (vectors), STORM-video "
            "(clips) and the same of GITSTORM are made for a CPU",
            file=sys.stderr,
        )


def main(arguments: list[str]) -> int:
    """Train as the command line says; the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(config_help())
        return 0
    logging.basicConfig(format="%(message)s")
    return start_or_continue(load_config(arguments))


def start_or_continue(config: Config) -> int:
    """Start or continue the run that a config names, in this folder; return the exit code."""
    directory = RunDirectory(config.BasicSettings.n)
    directory.lock()
    with memory_errors():
        stop, run = StopRequest(), open_run(config, directory)
        if run is not None and not train_to_the_end(run, stop):
            line = f"stopped by {stop.signal} at step {run.step}, saved; the same command continues"
            print(line, file=sys.stderr)
            return NOT_FINISHED
    print(next_steps(directory, config.Task == "VideoPrediction"))
    return 0


def train_to_the_end(run: TrainingRun, stop: StopRequest) -> bool:
    """Say what is about to run, `train` under a progress bar, and close the run."""
    announce(run)
    total, silent = run.config.JointTrainAgent.SampleMaxSteps, run.config.BasicSettings.silent
    try:
        with tqdm(total=total, initial=run.step, unit="step", disable=silent) as bar:
            return train(run, stop, bar)
    finally:
        run.close()


if __name__ == "__main__":
    run_cli(main)
