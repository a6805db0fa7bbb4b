"""Ray as the sweep uses it: commands in, exit codes out."""

from __future__ import annotations

import logging
import os
import re
import socket
from typing import Any

import ray
from ray.exceptions import RayError, TaskCancelledError

from sweeping import worker
from sweeping.options import LOCAL, Options
from sweeping.scheduler import Outcome
from utils import UserError

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 * 2**20  # near the least that Ray takes; commands and exit codes need nothing
SETTINGS = {  # variables that Ray reads, where the user has not set them
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a run without a share of a card sees none
    "RAY_kill_child_processes_on_worker_exit": "0",  # the kernel stops them by SIGTERM, on which they save
}


class RayEngine:
    """Commands on Ray, each with its share of a machine.

    Raises UserError if there is no such cluster, or none with room for a single run.
    """

    def __init__(self, options: Options, on_cpu: bool) -> None:
        connect(options.address)
        gpus = options.gpus_per_run
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) and not on_cpu else 0.0
        self._cpus = options.cpus_per_run
        ray.cloudpickle.register_pickle_by_value(worker)
        make_task = ray.remote(num_cpus=self._cpus, num_gpus=gpus, max_retries=0)
        self._task = make_task(worker.run_command)
        self._names: dict[Any, str] = {}
        complaint = lacking({"CPU": self._cpus, "GPU": gpus})
        if complaint and options.address == LOCAL:
            self.close()
            raise UserError(f"{complaint} this machine has")
        if complaint:  # a cluster may grow
            logger.warning("warning: %s any node of the cluster has: the runs wait for one", complaint)

    def submit(self, name: str, command: list[str], folder: str, log: str, lock: str | None) -> None:
        """Have a command run when there is room; `wait` tells its outcome under `name`."""
        environment = {
            "PYTHONUNBUFFERED": "1",
            "TQDM_DISABLE": "1",
            "OMP_NUM_THREADS": str(max(1, int(self._cpus))),
        }
        reference = self._task.options(name=name).remote(command, folder, log, lock, environment)
        self._names[reference] = name

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The commands that ended, after at most `seconds`."""
        references = list(self._names)
        ended, _ = ray.wait(references, num_returns=len(references), timeout=seconds, fetch_local=False)
        return [(self._names.pop(reference), outcome_of(reference)) for reference in ended]

    def stop(self) -> None:
        """Ask all commands to stop; those that run may save first."""
        for reference in self._names:
            ray.cancel(reference, force=False)

    def close(self) -> None:
        """Leave Ray; ends what still runs."""
        ray.shutdown()


def lacking(wanted: dict[str, float]) -> str:
    """The beginning of a complaint if no single node has room for a run, else ""."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(kind, 0) >= number for kind, number in wanted.items()) for node in nodes):
        return ""
    asked = " and ".join(f"{kind.lower()}s_per_run={number:g}" for kind, number in wanted.items())
    return f"{asked}: more than"


def connect(address: str) -> None:
    """Start Ray on this machine, or join a cluster.

    Raises UserError if there is no cluster at the address, or if it does not let us in.
    """
    check_reachable(address)
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address == LOCAL:
        settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "if the cluster wants a token, set RAY_AUTH_MODE=token"
        raise UserError(f"address={address}: {reason} ({hint})") from error


def check_reachable(address: str) -> None:
    """Raise UserError if nothing listens at host:port; Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^:/]+):(\d{1,5})", address)
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"address={address}: no Ray cluster answers there ({error})") from error


def outcome_of(reference: Any) -> Outcome:
    """The outcome of a command that has ended."""
    try:
        code, host = ray.get(reference)
        return Outcome(code, host)
    except TaskCancelledError:
        return Outcome(None, "cancelled")
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return Outcome(None, lines[0] if lines else type(cause).__name__)
