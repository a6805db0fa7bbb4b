"""Trains STORM or GIT-STORM: python train.py [Section.Key=value ...]; --help lists every key."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

from compute.memory_limits import memory_errors
from configuration.loading import config_help, config_to_yaml, load_config
from configuration.schema import Config, JointTrainAgent
from env_wrapper import EnvironmentFault
from run_files.directory import RunDirectory
from training.resume import open_session
from training.run import Session, StopRequest
from utils import UserError, run_cli

NOT_FINISHED = 75  # EX_TEMPFAIL: stopped by a signal and saved; the same command continues
MANY_PARAMETERS = 5_000_000  # from here on a CPU is too slow for a whole run


def train(session: Session, stop: StopRequest, bar: tqdm) -> bool:
    """The loop: act, let the emulator step while the device learns, store, log, save.

    Returns:
        Whether the run reached its last step (False if it was asked to stop, and is saved).
    """
    task = session.config.JointTrainAgent
    while session.step < task.SampleMaxSteps:
        if stop.signal is not None:
            session.save_state("stopped")
            return False
        frame = session.execution.upload(session.observation)
        learning = session.is_warm
        action = session.policy.act(frame) if learning else session.policy.act_randomly(frame)
        session.environment.start_step(action)
        if learning:
            session.learn()
        try:
            result = session.environment.finish_step()
        except EnvironmentFault as fault:
            handle_fault(session, fault, bar)
            continue
        session.remember(frame, action, result)
        before, session.step = session.step, session.step + task.NumEnvs
        session.faults_in_a_row = 0
        session.record(result)
        finish_step(session, before, bar)
    return True


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]; never if `every` is 0."""
    return every > 0 and now // every > before // every


def finish_step(session: Session, before: int, bar: tqdm) -> None:
    """Log, evaluate and save what is due after the steps (before, session.step]."""
    task, now = session.config.JointTrainAgent, session.step
    bar.update(min(now, task.SampleMaxSteps) - min(before, task.SampleMaxSteps))
    if crossed(before, now, task.LogEverySteps):
        session.log()
        bar.set_postfix_str(f"last return {session.last_return:g}")
        check_updates(session)
    if crossed(before, now, task.EvalEverySteps):
        bar.write(f"step {now}: evaluated, mean return {session.evaluate():.1f}", file=sys.stderr)
    steps = checkpoints_due(before, now, task)
    for nominal in steps:
        session.save_checkpoint(nominal)
    if steps:
        line = session.health_line()
        if line is not None:
            bar.write(line, file=sys.stderr)
        session.save_state("finished" if now >= task.SampleMaxSteps else "running")
    elif 0 < task.SaveEverySeconds <= session.seconds_since_save():
        session.save_state("running")


def checkpoints_due(before: int, now: int, task: JointTrainAgent) -> list[int]:
    """Nominal steps to save weights under after the steps (before, now]: the latest multiple, and the end."""
    steps = []
    if crossed(before, now, task.SaveEverySteps):
        steps.append(now // task.SaveEverySteps * task.SaveEverySteps)
    if now >= task.SampleMaxSteps:
        steps = [step for step in steps if step < task.SampleMaxSteps] + [task.SampleMaxSteps]
    return steps


def check_updates(session: Session) -> None:
    """Stop, saved, after too many updates in a row that were not finite."""
    try:
        session.learner.check_health(session.config.JointTrainAgent.MaxBadUpdates)
    except UserError:
        session.save_state("stopped")
        raise


def handle_fault(session: Session, fault: EnvironmentFault, bar: tqdm) -> None:
    """Drop the step whose environment failed; stop, saved, after too many in a row."""
    session.faults += 1
    session.faults_in_a_row += 1
    session.policy.forget_last()
    session.observation = fault.observation
    line = f"step {session.step}: {fault}; all environments began new episodes on seeds {fault.seeds}"
    bar.write(line, file=sys.stderr)
    session.logger.text("environment/fault", line, session.step)
    if session.faults_in_a_row >= session.config.Environment.MaxFaults:
        session.save_state("stopped")
        raise UserError(f"{session.faults_in_a_row} environment faults in a row, the last one: {fault}")


def announce(session: Session, config: Config) -> None:
    """Say what is about to run, and what to expect of it."""
    print(config_to_yaml(config))
    for note in session.notes:
        print(note, file=sys.stderr)
    parameters = sum(p.numel() for p in session.learner.world_model.parameters())
    execution = session.execution
    print(f"run {config.BasicSettings.n}: {execution.device}, {execution.dtype}", file=sys.stderr)
    if execution.device.type == "cpu" and parameters > MANY_PARAMETERS:
        print(
            f"this is a model of {parameters / 1e6:.1f} M parameters on a CPU: each update takes seconds, a "
            "whole run days; config_files/STORM-tiny.yaml and GITSTORM-tiny.yaml are made for a CPU",
            file=sys.stderr,
        )


def main(arguments: list[str]) -> int:
    """Train as the command line says; the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(config_help())
        return 0
    logging.basicConfig(format="%(message)s")
    config = load_config(arguments)
    directory = RunDirectory(config.BasicSettings.n)
    directory.lock()
    with memory_errors():
        return run(config, directory, StopRequest())


def run(config: Config, directory: RunDirectory, stop: StopRequest) -> int:
    """Start or continue the run of a locked directory; the exit code."""
    session = open_session(config, directory)
    if session is None:
        print(f"run {directory.name} is finished; its files are in {directory.outputs}")
        return 0
    announce(session, config)
    total = config.JointTrainAgent.SampleMaxSteps
    try:
        with tqdm(total=total, initial=session.step, unit="step", disable=config.BasicSettings.silent) as bar:
            finished = train(session, stop, bar)
    finally:
        session.close()
    if finished:
        print(f"finished: {directory.outputs}")
        return 0
    print(
        f"stopped by {stop.signal} at step {session.step}, saved; the same command continues", file=sys.stderr
    )
    return NOT_FINISHED


if __name__ == "__main__":
    run_cli(main)
