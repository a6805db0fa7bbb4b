"""Serves one session to the browsers that watch and play it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from evaluation.playing.commands import LONGEST, apply, read_command
from evaluation.playing.session import Session

PAGE = Path(__file__).with_name("page.html")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MOST_CLIENTS = 8
FULL = 4_001  # code of a connection that is closed because there are as many; the page knows it
MOST_WAITING = 100  # commands
PATIENCE = 10.0  # seconds that a client may take for a message
HEARTBEAT = 20.0  # seconds
PACE = 15.0  # steps a second, unless the page asks for another
SLOW = 0.9  # a smaller share of the wanted pace is said
HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Client:
    """A browser: of each kind of message it gets the latest, and misses those that it was too slow for."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self._latest: dict[str, str | bytes] = {}
        self._ready = asyncio.Event()

    def offer(self, kind: str, message: str | bytes) -> None:
        """Replace what waits of that kind."""
        self._latest[kind] = message
        self._ready.set()

    async def send(self) -> None:
        """Send what is offered, until it takes longer than anyone's patience."""
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            while True:
                await self._ready.wait()
                self._ready.clear()
                messages, self._latest = self._latest, {}
                for message in messages.values():
                    send = self._socket.send_str if isinstance(message, str) else self._socket.send_bytes
                    await asyncio.wait_for(send(message), PATIENCE)


class Player:
    """Lets a session go on at its pace while somebody watches, in a thread of its own.

    Args:
        session: made in `thread`. thread: an executor of one thread.
    """

    def __init__(self, session: Session, thread: ThreadPoolExecutor) -> None:
        self.session, self._thread = session, thread
        self.pace, self.paused = PACE, False
        self.clients: set[Client] = set()
        self._commands: list[tuple[Client, str, Any]] = []
        self._holder: Client | None = None  # who gave the action that is held
        self._wake = asyncio.Event()
        self._rate = self.pace  # steps a second that are reached

    def ask(self, client: Client, name: str, value: Any) -> None:
        """Take a command; those that nobody can wait for are dropped."""
        if name == "pace":
            self.pace = self._rate = float(value)
        elif name == "pause":
            self.paused = value
        elif len(self._commands) < MOST_WAITING:
            self._commands.append((client, name, value))
            self._holder = client if name == "action" else self._holder
        self._wake.set()

    def join(self, client: Client) -> None:
        """Show a new client everything."""
        self.clients.add(client)
        client.offer("description", json.dumps({"description": self.session.description()}))
        client.offer("frame", self.session.message)
        self._wake.set()

    def leave(self, client: Client) -> None:
        """Forget a client, and let go of what it held."""
        self.clients.discard(client)
        if self._holder is client:
            self.ask(client, "action", self.session.idle)
            self._holder = None

    async def run(self) -> None:
        """Go on, without end."""
        loop = asyncio.get_running_loop()
        due = before = time.monotonic()
        while True:
            idle = not self.clients or (self.paused and not self._commands)
            if idle:
                self._publish(None)
                self._wake.clear()
                await self._wake.wait()
                due = before = time.monotonic()
                continue
            commands, self._commands = self._commands, []
            moves = not self.paused
            message, answers = await loop.run_in_executor(self._thread, self._advance, commands, moves)
            if moves or any(name != "look" for _, name, _ in commands):
                self._publish(message)
            for client, answer in answers:  # in place of the present
                client.offer("frame", answer)
            if moves:
                due = max(due + 1 / self.pace, time.monotonic())
                await asyncio.sleep(due - time.monotonic())
                now = time.monotonic()
                self._rate += 0.1 * (1 / max(now - before, 1e-3) - self._rate)
                before = now

    def _advance(self, commands: list, moves: bool) -> tuple[bytes, list[tuple[Client, bytes]]]:
        """In the session's thread: obey, then step; return what to show all, and what to show some."""
        answers = []
        for client, name, value in commands:
            if name != "look":
                apply(self.session, name, value)
            elif (found := self.session.look(value)) is not None:
                answers.append((client, found))
        if moves:
            self.session.step()
        return self.session.message, answers

    def _publish(self, message: bytes | None) -> None:
        status = json.dumps({"status": self.status()})
        for client in self.clients:
            client.offer("status", status)
            if message is not None:
                client.offer("frame", message)

    def status(self) -> dict[str, Any]:
        """Return how it goes on."""
        recording, controls = self.session.recording, self.session.controls
        return {
            "mode": controls.mode,
            "player": controls.player,
            "plan": self.session.plan,
            "held": controls.held,
            "paused": self.paused,
            "pace": self.pace,
            "rate": round(self._rate, 1),
            "slow": not self.paused and self._rate < SLOW * self.pace,
            "recording": None if recording is None else len(recording),
            "saved": self.session.saved,
            "problem": self.session.problem,
            "oldest": self.session.oldest,
        }


def make_app(player: Player, token: str | None = None, stop: asyncio.Event | None = None) -> web.Application:
    """Return the application that serves a player; its cleanup raises what ended the game, if something did.

    Args:
        token: that the address must hold; None serves whoever calls it by a loopback name.
        stop: set when the game cannot go on.
    """
    app = web.Application(middlewares=[_guard(token)])

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE.read_text(encoding="utf-8"), content_type="text/html", headers=HEADERS)

    async def no_icon(request: web.Request) -> web.Response:
        return web.Response(status=204)

    async def connect(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=LONGEST, heartbeat=HEARTBEAT)
        await socket.prepare(request)
        if len(player.clients) >= MOST_CLIENTS:
            await socket.close(code=FULL, message=b"too many watch already")
            return socket
        await _serve(player, socket, request)
        return socket

    async def running(app: web.Application) -> Any:
        task = asyncio.create_task(player.run())
        task.add_done_callback(lambda task: stop and stop.set())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app.add_routes([web.get("/", page), web.get("/favicon.ico", no_icon), web.get("/ws", connect)])
    app.cleanup_ctx.append(running)
    return app


async def _serve(player: Player, socket: web.WebSocketResponse, request: web.Request) -> None:
    client = Client(socket)
    sending = asyncio.create_task(client.send())
    sending.add_done_callback(lambda task: request.transport and request.transport.abort())
    player.join(client)
    try:
        async for message in socket:
            command = read_command(player.session, message.data) if message.type == WSMsgType.TEXT else None
            if command is not None:
                player.ask(client, *command)
    finally:
        player.leave(client)
        sending.cancel()


def _guard(token: str | None) -> Any:
    """A middleware that lets in nobody whom another site's page has sent, nor anybody without the token."""

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if token is None and re.sub(r":\d+$", "", host) not in LOOPBACK:
            raise web.HTTPForbidden(text="this page is for its own machine only")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise web.HTTPForbidden(text="asked for by the page of another site")
        given = request.query.get("token", "")
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            raise web.HTTPForbidden(text="the address lacks its token")
        return await handler(request)

    return check


def make_token() -> str:
    """Return a token that nobody guesses."""
    return secrets.token_urlsafe(24)
