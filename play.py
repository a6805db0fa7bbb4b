"""Shows an agent and its dream in the browser: python play.py demo, or python play.py -run_name=NAME."""

from __future__ import annotations

import configuration.packages  # noqa: F401  (first: it says which packages are missing)

# isort: split
import argparse
import asyncio
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal

import torch

from compute.memory_limits import memory_errors
from configuration.schema import schema
from evaluation.options import named_as_options
from evaluation.playing.session import Session
from evaluation.policies import SHIPPED, load_policy
from utils import OneLineParser, UserError, run_cli

DEMO = "STORM-catch"
PORT = 8765
RECORDINGS = Path("outputs") / "recordings"


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; raise UserError for what cannot be."""
    parser = OneLineParser(prog="play.py", description=__doc__, allow_abbrev=False)
    option = parser.option
    shipped = sorted(path.name for path in SHIPPED.iterdir())
    parser.add_argument("demo", nargs="?", choices=["demo"], help="show an agent that is there already:")
    parser.add_argument("agent", nargs="?", choices=shipped, default=DEMO, help=f"which (default {DEMO})")
    option("run_name", "name of a run, or of an agent in assets/agents, or a folder of either")
    option("checkpoint", "last (default), or a step", default="last")
    option("device", "auto (default), cuda, cuda:N, mps or cpu", default="auto")
    option("num_threads", "CPU threads (default 1)", type=int, default=1)
    option("port", f"of the page (default {PORT}; 0: any that is free)", type=int, default=PORT)
    option("host", "serve other machines too, at this address, to whoever has the token", default=None)
    options = parser.parse_args(arguments)
    options.run_name = options.run_name or (options.agent if options.demo else None)
    if options.run_name is None:
        raise UserError("-run_name=NAME is missing (or: python play.py demo); see python play.py --help")
    if not 0 <= options.port <= 65_535:
        raise UserError(f"-port={options.port}: must be 0 to 65535")
    most = schema()["BasicSettings.NumThreads"].allowed.high
    if not 1 <= options.num_threads <= most:
        raise UserError(f"-num_threads={options.num_threads}: must be 1 to {most}")
    return options


async def serve(
    session: Session,
    thread: ThreadPoolExecutor,
    host: str | None,
    port: int,
    say: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    """Serve until `stop` is set; say where.

    Raises:
        UserError: the address is taken, or not of this machine; or the game cannot go on.
    """
    from aiohttp import web

    from evaluation.playing.server import Player, make_app, make_token

    token = None if host is None else make_token()
    runner = web.AppRunner(
        make_app(Player(session, thread), token, stop), access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host or "127.0.0.1", port).start()
        except (OSError, UnicodeError) as error:  # the latter of what is no host's name
            place = f"-port={port}" if host is None else f"-host={host} -port={port}"
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{place}: {reason}; choose another one") from error
        address, port = runner.addresses[0][:2]
        address = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(address, address)
        address = f"[{address}]" if ":" in address else address
        say(f"open http://{address}:{port}/{f'?token={token}' if token else ''}   (Ctrl-C ends it)")
        if token is None:
            tunnel = f"ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}"
            say(f"from another machine: {tunnel}, then the same address")
        await stop.wait()
    finally:
        await runner.cleanup()


async def show(options: argparse.Namespace) -> None:
    """Load the agent, then serve until the process is told to end."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for signal in (SIGINT, SIGTERM, SIGHUP):  # a key, a queue, a closed terminal
        if getsignal(signal) != SIG_IGN:  # as under nohup
            loop.add_signal_handler(signal, stop.set)
    with ThreadPoolExecutor(1) as thread:  # what draws wants to stay in the thread in which it was made
        session = await loop.run_in_executor(thread, open_session, options)
        try:
            await serve(
                session, thread, options.host, options.port, lambda line: print(line, flush=True), stop
            )
        finally:
            await loop.run_in_executor(thread, session.close)


def open_session(options: argparse.Namespace) -> Session:
    """Return a session of the agent that the options name."""
    policy = load_policy(options.run_name, options.checkpoint, device=options.device)
    return Session(policy, RECORDINGS, Path(options.run_name).name)


def main(arguments: list[str]) -> None:
    """Serve as the command line says."""
    logging.basicConfig(format="%(message)s")
    options = parse_options(arguments)
    if find_spec("aiohttp") is None:
        raise UserError(
            "play.py needs aiohttp: ./play.sh installs it (or: pip install -r requirements-play.txt)"
        )
    torch.set_num_threads(options.num_threads)
    with memory_errors(), named_as_options():
        asyncio.run(show(options))


if __name__ == "__main__":
    run_cli(main)
