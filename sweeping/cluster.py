"""Jobs on a Ray cluster, each with its share of a node."""

from __future__ import annotations

import re
import signal
import socket
from typing import Any

import ray
from ray.exceptions import RayError

from sweeping import local
from sweeping.options import Options
from utils import UserError

CONNECT_SECONDS = 10.0


class RayEngine:
    """Jobs on the cluster at `address=`, as many at once as fit. Raise UserError if not even one does."""

    def __init__(self, options: Options, on_cpu: bool) -> None:
        connect(options.address)
        gpus = options.gpus_per_run
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) and not on_cpu else 0.0
        wanted = {"CPU": options.cpus_per_run} | ({"GPU": gpus} if gpus else {})
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.places = sum(int(min(node.get(kind, 0) / wanted[kind] for kind in wanted)) for node in nodes)
        if self.places == 0:
            raise UserError(f"no node of the cluster has what a run asks for, which is {wanted}")
        remote = ray.remote(num_cpus=options.cpus_per_run, num_gpus=gpus, max_retries=0)
        self._task = remote(run_until_interrupted)
        self._variables = {"OMP_NUM_THREADS": str(max(1, int(options.cpus_per_run)))}
        self._variables |= {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
        self._running: set[Any] = set()

    def run(self, job: local.Job) -> int | str:
        """Run a job when there is room; return its exit code, or why there is none."""
        reference = self._task.remote(job, self._variables)
        self._running.add(reference)
        try:
            return ray.get(reference)
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            return next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        finally:
            self._running.discard(reference)

    def stop(self) -> None:
        """Ask all jobs to stop; those that run may save first."""
        for reference in list(self._running):
            ray.cancel(reference, force=False)


def run_until_interrupted(job: local.Job, variables: dict[str, str]) -> int:
    """Run a job to its end; an interrupt, which is Ray's way to cancel, asks it to stop."""
    asked: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        return local.run_job(job, variables, lambda: bool(asked))
    finally:
        signal.signal(signal.SIGINT, previous)


def connect(address: str) -> None:
    """Join a cluster. Raise UserError if there is none at the address, or if it does not let us in."""
    listens_at = re.fullmatch(r"(?:ray://)?([^:/]+):(\d{1,5})", address)
    try:
        if listens_at:  # Ray itself would try for minutes
            socket.create_connection((listens_at[1], int(listens_at[2])), CONNECT_SECONDS).close()
        ray.init(address=address, logging_level="error", log_to_driver=False)
    except (OSError, OverflowError, RuntimeError, ValueError, RayError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"address={address}: no Ray cluster answers there ({reason})") from error
