"""The server of play.py: whom it serves, and what it does with nonsense, crowds and the deaf."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from play_support import make_session

import play
from utils import UserError

pytest.importorskip("aiohttp")
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestClient, TestServer

from evaluation.playing import server
from evaluation.playing.server import Player, make_app

Scenario = Callable[[TestClient, Player], Awaitable[None]]


def serve(folder: Path, scenario: Scenario, token: str | None = None) -> None:
    """Let a client do what the scenario says with a running server."""

    async def run() -> None:
        with ThreadPoolExecutor(1) as thread:
            player = Player(make_session(folder), thread)
            player.pace = 60.0
            async with TestClient(TestServer(make_app(player, token))) as client:
                await asyncio.wait_for(scenario(client, player), 60)
            player.session.close()

    asyncio.run(run())


async def frames(socket: ClientWebSocketResponse, count: int) -> list[dict]:
    """The facts of the next pictures."""
    found = []
    while len(found) < count:
        message = await socket.receive(timeout=20)
        if message.type == WSMsgType.BINARY:
            length = int.from_bytes(message.data[:4], "little")
            found.append(json.loads(message.data[4 : 4 + length]))
        else:
            assert message.type == WSMsgType.TEXT, message
    return found


def nonsense(number: int) -> str | bytes:
    """Messages that are almost something."""
    chance = random.Random(number)
    value = chance.choice(
        [None, True, -1, 3, 1e999, "dream", "../../etc/passwd", [1], {}, float("nan"), 2**70]
    )
    name = chance.choice(["action", "mode", "plan", "pace", "look", "eval", "__class__", 7, None, ["step"]])
    texts = [
        json.dumps({"do": name, "value": value, "file": "x"}),
        json.dumps({"do": name, "value": [value] * 3}),
        json.dumps([name, value]),
        "[" * chance.randrange(2_000),
        '{"do":"action","value":',
        "".join(chr(chance.randrange(1, 0x300)) for _ in range(40)),
        "",
    ]
    text = chance.choice(texts)
    return text.encode() if chance.random() < 0.2 else text


def test_a_thousand_malformed_messages_are_dropped(tmp_path: Path) -> None:
    async def scenario(client: TestClient, player: Player) -> None:
        async with client.ws_connect("/ws") as socket:
            for number in range(1_000):
                message = nonsense(number)
                await (socket.send_str if isinstance(message, str) else socket.send_bytes)(message)
            before = (await frames(socket, 1))[0]["step"]
            later = (await frames(socket, 3))[-1]
            assert later["step"] > before and later["mode"] == "game" and player.status()["player"] == "agent"
            assert player.pace == 60.0 and not player.paused

    serve(tmp_path, scenario)


def test_pause_step_and_look_answer_at_once(tmp_path: Path) -> None:
    async def scenario(client: TestClient, player: Player) -> None:
        async with client.ws_connect("/ws") as socket:
            await frames(socket, 4)
            await socket.send_json({"do": "pause", "value": True})
            await asyncio.sleep(0.5)
            step = player.session.number
            await asyncio.sleep(0.3)
            assert player.session.number == step
            await socket.send_json({"do": "step"})
            while (await frames(socket, 1))[0]["step"] != step + 1:
                pass
            await socket.send_json({"do": "look", "value": 1})
            while (await frames(socket, 1))[0]["step"] != 1:
                pass
            assert player.session.number == step + 1
            (first,) = player.clients
            async with client.ws_connect("/ws") as other:
                await frames(other, 1)
                (second,) = player.clients - {first}
                player.ask(first, "step", None)
                player.ask(second, "look", 1)  # in the same batch
                while (await frames(socket, 1))[0]["step"] != step + 2:
                    pass

    serve(tmp_path, scenario)


def test_two_clients_watch_one_game_and_a_deaf_one_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.5)

    async def scenario(client: TestClient, player: Player) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port, limit=1)
        lines = (
            "GET /ws HTTP/1.1",
            "Host: 127.0.0.1",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        writer.write("\r\n".join([*lines, "", ""]).encode())
        while not player.clients:
            await asyncio.sleep(0.02)
        (deaf,) = player.clients
        async with client.ws_connect("/ws") as one, client.ws_connect("/ws") as other:
            while len(player.clients) < 3:
                await frames(one, 1)
            for _ in range(40):  # large messages, until no buffer takes more of them
                deaf.offer("flood", b"x" * 2**20)
                await frames(one, 1)
                if len(player.clients) == 2:
                    break
            assert len(player.clients) == 2
            seen, also = (await frames(one, 3))[-1]["step"], (await frames(other, 3))[-1]["step"]
            assert seen > 0 and also > 0
        while player.clients:
            await asyncio.sleep(0.02)
        writer.close()

    serve(tmp_path, scenario)


def test_one_too_many_is_told_so(tmp_path: Path) -> None:
    async def scenario(client: TestClient, player: Player) -> None:
        watching = [await client.ws_connect("/ws") for _ in range(server.MOST_CLIENTS)]
        async with client.ws_connect("/ws") as socket:
            message = await socket.receive()
            assert (message.data, message.extra) == (server.FULL, "too many watch already")
        for socket in watching:
            await socket.close()

    serve(tmp_path, scenario)


def test_what_a_page_held_is_let_go_when_it_is_closed(tmp_path: Path) -> None:
    async def scenario(client: TestClient, player: Player) -> None:
        controls, idle = player.session.controls, player.session.idle
        async with client.ws_connect("/ws") as other:
            async with client.ws_connect("/ws") as socket:
                await socket.send_json({"do": "player", "value": "you"})
                await socket.send_json({"do": "action", "value": 2})
                while controls.held != 2:
                    await frames(other, 1)
                assert player.status()["held"] == 2
            while controls.held != idle:
                await frames(other, 1)

    serve(tmp_path, scenario)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8001"}, 403),
    ],
)
def test_only_its_own_page_is_served(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async def scenario(client: TestClient, player: Player) -> None:
        response = await client.get("/", headers=headers)
        assert response.status == status
        if status == 403:
            with pytest.raises(WSServerHandshakeError):
                await client.ws_connect("/ws", headers=headers)

    serve(tmp_path, scenario)


def test_other_machines_need_the_token_and_no_request_names_a_file(tmp_path: Path) -> None:
    async def scenario(client: TestClient, player: Player) -> None:
        for path, status in (
            ("/", 403),
            ("/?token=wrong", 403),
            ("/?token=s3cret", 200),
            ("/page.html?token=s3cret", 404),
            ("/../play.py?token=s3cret", 404),
        ):
            assert (await client.get(path, headers={"Host": "gpu.example:8765"})).status == status
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/ws")
        async with client.ws_connect("/ws?token=s3cret") as socket:
            await frames(socket, 1)

    serve(tmp_path, scenario, token="s3cret")


def test_who_is_slower_than_wanted_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: TestClient, player: Player) -> None:
        step = player.session.step
        async with client.ws_connect("/ws") as socket:
            await socket.send_json({"do": "pace", "value": 4})
            await frames(socket, 4)
            assert not player.status()["slow"]
            monkeypatch.setattr(player.session, "step", lambda: time.sleep(0.6) or step())
            while not player.status()["slow"]:
                await frames(socket, 1)

    serve(tmp_path, scenario)


def test_a_game_that_cannot_go_on_ends_it_all_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, lines = make_session(tmp_path), []

    def fail() -> None:
        raise UserError("the game has gone")

    monkeypatch.setattr(session, "step", fail)

    async def run() -> None:
        with ThreadPoolExecutor(1) as thread:
            serving = asyncio.create_task(
                play.serve(session, thread, "localhost", 0, lines.append, asyncio.Event())
            )
            while not lines:
                await asyncio.sleep(0.02)
            address = lines[0].split()[1]
            assert "?token=" in address and len(lines) == 1  # no tunnel where others may come directly
            async with ClientSession() as client, client.ws_connect(address.replace("/?", "/ws?")):
                with pytest.raises(UserError, match="the game has gone"):
                    await asyncio.wait_for(serving, 20)

    asyncio.run(run())
    session.close()


def test_an_address_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    session = make_session(tmp_path)

    async def run() -> None:
        with ThreadPoolExecutor(1) as thread:
            for host, word in (
                ("no.such.host.invalid", "-host=no.such"),
                ("8.8.8.8", "-host=8.8.8.8"),
                ("192.168..7", "-host=192.168..7"),
            ):
                with pytest.raises(UserError, match=word):
                    await play.serve(session, thread, host, 0, print, asyncio.Event())

    asyncio.run(run())
    session.close()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "-run_name=NAME is missing"),
        (["demo", "nothing"], "nothing"),
        (["demo", "-port=70000"], "-port=70000"),
        (["demo", "-num_threads=0"], "-num_threads=0"),
        (["demo", "-num_threads=4294967296"], "must be 1 to 1024"),
        (["demo", "-device=gpu"], "^-device='gpu'"),
        (["-run_name=nobody"], "nobody"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(
    arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=word):
        play.main(arguments)
