"""The page of play.py in headless Chromium, with a shipped agent."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from play_support import make_session

import play
from configuration.schema import EnvironmentConfig
from evaluation import load_policy
from evaluation.playing.session import Session
from training.demonstrations import load_demonstrations

pytest.importorskip("aiohttp")
sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
SECONDS = 60
READ = """name => { const canvas = document.getElementById(`picture-${name}`);
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data] }"""

# Lightness, in percent, in the middle of each of so many rows and columns.
READ_SWEEPS = """([rows, columns]) => { const canvas = document.getElementById("sweeps");
  const context = canvas.getContext("2d"), row = Math.min(canvas.height / rows, 28 * devicePixelRatio);
  const width = canvas.width / columns;
  const at = (y, x) => context.getImageData((x + 0.5) * width - 1, (y + 0.5) * row - 1, 1, 1).data;
  const lightness = ([r, g, b]) => (Math.max(r, g, b) + Math.min(r, g, b)) / 5.1;
  return [...Array(rows).keys()].map(y => [...Array(columns).keys()].map(x => lightness(at(y, x)))) }"""


class Site:
    """The server in a thread of its own; it can be ended and started again on its port."""

    def __init__(self, make: Callable[[], Session]) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.session = self._thread.submit(make).result()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Serve, and wait until it does."""
        ready = threading.Event()
        lines: list[str] = []

        def say(line: str) -> None:
            lines.append(line)
            ready.set()

        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await play.serve(self.session, self._thread, None, self.port, say, self._stop)

        self._server = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._server.start()
        assert ready.wait(SECONDS)
        self.address = lines[0].split()[1]
        self.port = int(self.address.rstrip("/").rpartition(":")[2])

    def end(self) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._server.join(SECONDS)

    def close(self) -> None:
        """End the game too."""
        self.end()
        self._thread.submit(self.session.close).result()
        self._thread.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("recordings")
    site = Site(lambda: Session(load_policy("GITSTORM-catch", device="cpu"), folder, "catch"))
    yield site
    site.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser: Any, site: Site) -> Any:
    """A page that keeps what its console complains of."""
    page = browser.new_page(viewport={"width": 1180, "height": 900}, has_touch=True)
    page.complaints = []
    page.on("console", lambda line: line.type == "error" and page.complaints.append(line.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(site.address)
    return page


@pytest.fixture(scope="module")
def page(browser: Any, site: Site) -> Any:
    return open_page(browser, site)


def set_paused(page: Any, site: Site, paused: bool) -> None:
    """Pause or go on, whatever the tests before have left."""
    wait_until(page, lambda: step_of(page) > 5)  # there is something to look back on
    if (page.evaluate("document.body.dataset.paused") == "true") != paused:
        page.click("#pause")
    wait_until(page, lambda: page.evaluate("document.body.dataset.paused") == str(paused).lower())
    wait_until(page, lambda: not paused or step_of(page) == site.session.number)


def step_of(page: Any) -> int:
    """Return the step whose pictures are drawn."""
    return int(page.evaluate("document.body.dataset.step ?? -1"))


def wait_until(page: Any, holds: Callable[[], bool]) -> None:
    """Let the browser work until something holds."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, page.inner_text("main")
        page.wait_for_timeout(20)


def picture(page: Any, name: str) -> np.ndarray:
    """What a canvas shows, float (S, S, 3)."""
    pixels = np.array(page.evaluate(READ, name), float).reshape(-1, 4)
    side = int(len(pixels) ** 0.5)
    return pixels.reshape(side, side, 4)[..., :3]


def paddle(page: Any) -> float:
    """Where the paddle is, from 0 to 1, in what the model sees."""
    blue = np.abs(picture(page, "seen")[-1] - (64, 176, 255)).sum(-1) < 30
    return float(np.flatnonzero(blue).mean() / len(blue))


def test_frames_arrive_without_a_complaint(page: Any) -> None:
    wait_until(page, lambda: step_of(page) > 3)
    assert picture(page, "game").std() > 1 and picture(page, "dream").std() > 1
    assert page.inner_text("#game") == "Diagnostic/Catch-v0" and page.complaints == []


def test_pause_step_and_keys_move_the_paddle(page: Any, site: Site) -> None:
    set_paused(page, site, True)
    page.evaluate("bindings = { LEFT: 'ArrowLeft', RIGHT: 'ArrowRight' }")
    page.wait_for_timeout(500)
    step = step_of(page)
    page.wait_for_timeout(300)
    assert step_of(page) == step
    page.click("#reset")
    wait_until(page, lambda: step_of(page) == step + 1)
    places = []
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        before = step_of(page)
        page.keyboard.press(key)  # a step each, as it is paused; who presses a key plays
        wait_until(page, lambda before=before: step_of(page) == before + 1)
        places.append(paddle(page))
    assert places[0] > places[1] < places[2]
    assert "on" in page.get_attribute("[data-player=you]", "class")


def test_what_is_chosen_while_it_is_paused_is_shown(page: Any, site: Site) -> None:
    set_paused(page, site, True)
    for player in ("agent", "you"):
        page.click(f"[data-player={player}]")
        wait_until(page, lambda player=player: site.session.controls.player == player)
        page.wait_for_timeout(200)
        assert page.get_attribute(f"[data-player={player}]", "aria-pressed") == "true"
    page.select_option("#plan", "4/4/1")
    wait_until(page, lambda: site.session.plan == "4/4/1")
    page.wait_for_timeout(200)
    assert page.input_value("#plan") == "4/4/1"
    page.select_option("#plan", "1/1/1")
    wait_until(page, lambda: site.session.plan == "1/1/1")


def test_arrow_keys_move_what_has_the_focus(page: Any, site: Site) -> None:
    set_paused(page, site, True)
    step, oldest = step_of(page), int(page.get_attribute("#timeline", "min") or 0)
    assert step > oldest + 1
    page.focus("#timeline")
    page.keyboard.press("ArrowLeft")
    wait_until(page, lambda: step_of(page) == step - 1)
    page.click("#record")  # all are shown the present then, but not who looks back
    page.click("#record")
    page.wait_for_timeout(300)
    assert step_of(page) == step - 1 == int(page.input_value("#timeline")) and site.session.number == step
    page.evaluate("document.activeElement.blur()")
    page.focus("[data-token=LEFT]")
    page.keyboard.press("Enter")
    wait_until(page, lambda: step_of(page) == step + 1)


def test_keys_are_changed_and_stay_so(page: Any, site: Site) -> None:
    set_paused(page, site, True)
    page.click("#remap")
    for key in ("a", "d"):
        page.keyboard.press(key)
    assert [key.split() for key in page.locator("#keys button").all_inner_texts()] == [
        ["left", "a"],
        ["right", "d"],
    ]
    page.reload()
    wait_until(page, lambda: page.evaluate("document.getElementById('picture-seen').width") == 64)
    before, step = paddle(page), step_of(page)
    page.keyboard.press("D")  # Caps Lock
    wait_until(page, lambda: step_of(page) == step + 1)
    assert paddle(page) > before or before > 0.8


def test_many_actions_without_names_have_a_key_each(page: Any) -> None:
    many = (
        "() => { about.actions.size = 50; about.meanings = []; makeKeys(); return Object.values(bindings) }"
    )
    keys = [key for key in page.evaluate(many) if key]
    page.reload()
    page.wait_for_selector("[data-token=RIGHT]")
    assert len(keys) == len(set(keys)) == 33 and not set(keys) & set("pbr.")


def test_the_timeline_goes_back_and_the_dream_begins_there(page: Any, site: Site) -> None:
    set_paused(page, site, True)
    latest = step_of(page)
    page.fill("#timeline", str(latest - 3))
    wait_until(page, lambda: step_of(page) == latest - 3)
    assert page.inner_text("#when") == f"step {latest - 3}"
    page.click("[data-token=RIGHT]")  # who plays on does so now
    wait_until(page, lambda: step_of(page) == latest + 1 and page.inner_text("#when") == "now")
    page.fill("#timeline", str(latest - 3))
    wait_until(page, lambda: step_of(page) == latest - 3)
    page.click("#split-at")
    wait_until(page, lambda: step_of(page) > latest + 2)
    assert page.evaluate("document.body.dataset.mode") == "dream"
    page.click("#pause")
    page.click("[data-mode=game]")
    wait_until(page, lambda: page.evaluate("document.body.dataset.mode") == "game")


def test_latents_are_shown_as_they_are_drawn(page: Any, site: Site) -> None:
    page.select_option("#plan", "4/4/1")
    page.click("#step")
    wait_until(page, lambda: site.session.plan == "4/4/1" and page.is_visible("#sweeps-section"))
    wait_until(page, lambda: step_of(page) == site.session.number)
    groups = np.array(site.session.dream.groups)  # sweeps, latents
    assert groups.shape[0] == 2 and set(groups.flat) == {0, 1, 2, 3}
    shown = np.array(page.evaluate(READ_SWEEPS, groups.shape))
    np.testing.assert_allclose(shown, 70 - 50 * groups / 3, atol=1)  # the darker, the later drawn
    page.select_option("#plan", "1/1/1")
    wait_until(page, lambda: site.session.plan == "1/1/1")


def test_branch_and_what_is_recorded(page: Any, site: Site) -> None:
    set_paused(page, site, True)
    page.click("[data-mode=branch]")
    wait_until(page, lambda: "0 steps apart" in page.inner_text("#note-dream"))
    wait_until(page, lambda: np.abs(picture(page, "game") - picture(page, "dream")).mean() < 8)  # at first
    page.click("#record")
    page.click("#pause")
    wait_until(page, lambda: site.session.recording is not None and len(site.session.recording) > 20)
    page.click("#record")
    wait_until(page, lambda: page.inner_text("#saved") != "")
    path = Path(site.session.saved[0])
    demonstrations = load_demonstrations(
        path, site.session.spaces, 16, site.session.policy.streams.device, EnvironmentConfig()
    )
    assert len(demonstrations) > 20 and path.name in page.inner_text("#saved")
    assert Path(site.session.saved[1]).stat().st_size > 1_000


def test_a_reload_and_another_start_of_the_server_reconnect(page: Any, site: Site) -> None:
    set_paused(page, site, False)
    page.reload()
    wait_until(page, lambda: step_of(page) > 0)
    complaints = list(page.complaints)
    site.end()
    wait_until(page, lambda: "connection lost" in page.inner_text("#status"))
    site.start()
    before = step_of(page)
    wait_until(page, lambda: step_of(page) > before + 3)
    assert complaints == []


def test_a_phone_shows_it_all_and_is_played_by_touch(page: Any, site: Site) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("[data-mode=game]")
    page.click("[data-player=agent]")
    set_paused(page, site, True)
    page.click("#reset")
    page.wait_for_timeout(300)
    before = paddle(page)
    page.tap("[data-token=LEFT]")
    wait_until(page, lambda: paddle(page) < before)
    assert site.session.controls.player == "you"


def test_states_are_curves_and_continuous_actions_are_sliders(browser: Any, tmp_path: Path) -> None:
    site = Site(lambda: make_session(tmp_path, "STORM", "Diagnostic/Reach-v0"))
    page = open_page(browser, site)
    try:
        wait_until(page, lambda: step_of(page) > 3)
        assert page.locator("#keys input").count() == 2 and not page.is_visible("#remap")
        page.keyboard.down("ArrowRight")
        wait_until(page, lambda: site.session.controls.held == [1, 0])
        page.keyboard.up("ArrowRight")
        wait_until(page, lambda: site.session.controls.held == [0, 0])
        assert site.session.controls.player == "you"
        assert np.ptp(page.evaluate(READ, "dream")) > 0 and page.complaints == []
    finally:
        page.close()
        site.close()
