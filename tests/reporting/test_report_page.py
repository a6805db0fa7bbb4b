"""The report's page: self-contained, free of injected markup, working in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_runs import FakeRun, gif, make_report, write_evaluations, write_run
from pandas import DataFrame

from reporting.figures import draw_game


@pytest.fixture
def two_by_two(tmp_path: Path) -> Path:
    """A sweep of two methods and two seeds; one run left videos, and a damaged one with a later step."""
    for label in ("STORM-tiny", "GITSTORM-tiny"):
        for seed in range(2):
            run = FakeRun("Boxing", label, seed, 10.0 + seed, 3_000, evaluated=(1_000, 2_000, 3_000))
            write_run(tmp_path, run)
    for name in ("Boxing-STORM-tiny-seed_0", "Boxing-GITSTORM-tiny-seed_0"):
        (tmp_path / "outputs" / name / "videos").mkdir()
    for step, shade in ((900, 10), (3_000, 200), (2_000, 90)):
        path = (
            tmp_path / "outputs" / "Boxing-STORM-tiny-seed_0" / "videos" / f"Imagine_predict_video_{step}.gif"
        )
        path.write_bytes(gif(shade))
    (tmp_path / "outputs" / "Boxing-GITSTORM-tiny-seed_0" / "videos" / "Imagine_5.gif").write_bytes(b"no GIF")
    return tmp_path


def test_page_holds_everything_and_asks_the_network_for_nothing(two_by_two: Path) -> None:
    folder = make_report(two_by_two, draw=True)
    page = (folder / "index.html").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(
        r"https?://(?!www\.w3\.org)", re.sub(r'src="data:[^"]*"', "", page).split("<main>")[0]
    )
    assert re.findall('data:image/gif;base64,([^"]*)', page) == [base64.b64encode(gif(200)).decode()]
    assert page.count("data:image/svg+xml;base64,") == 1, "one game's curves"
    assert "3,000" in page and "none may be compared with published scores" in page
    assert 'name="viewport" content="width=device-width' in page and "Highlighted rows" not in page
    for ending in ("svg", "png"):
        assert (folder / "figures" / "curves" / f"Boxing.{ending}").stat().st_size > 1_000
    assert "figures/curves/Boxing.svg" in (folder / "report.md").read_text(encoding="utf-8")


def test_what_runs_say_cannot_inject_markup(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(label="<script>alert(1)<script>"))
    write_run(tmp_path, FakeRun(label="<b>", env_name="<b>x", evaluated=()))
    page = (make_report(tmp_path) / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<b>" not in page and "&lt;b&gt;x" in page


def test_rows_of_ours_are_highlighted_among_published_ones_and_freeway_has_its_note(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, FakeRun("Freeway", seed=seed, score=20.0))
    page = (make_report(tmp_path) / "index.html").read_text(encoding="utf-8")
    assert "Highlighted rows are runs made here" in page
    assert re.findall(r'<tr class="ours">\s*<td>(\w+)</td>\s*<td>(\w+)</td>', page) == [("STORM", "here")] * 2
    assert page.count("33.5 with a demonstration") >= 2


def test_environments_without_human_scores_are_reported_in_plain_returns(tmp_path: Path) -> None:
    for seed in range(2):
        run = FakeRun("Dot", seed=seed, score=-150.5, env_name="Pendulum-v1", evaluated=(1_000, 2_000))
        write_run(tmp_path, run)
    page = (make_report(tmp_path) / "index.html").read_text(encoding="utf-8")
    assert "-150.5" in page and "Training report" in page
    for word in ("Atari", "ormalised", "100,000", "Random player", "ublished", "person"):
        assert word not in re.sub("<style>.*</style>", "", page, flags=re.DOTALL), word


@pytest.mark.parametrize("last", [3, 50, 3_000, 100_000])
def test_axes_of_steps_have_whole_steps(last: int) -> None:
    curve = DataFrame({"x": [1, last], "value": [0, 1], "value_low": [0, 1], "value_high": [0, 1]})
    axis = draw_game("Pong", {"STORM": curve}, [], None, {"STORM": "red"}).axes[0]
    ticks = axis.get_xticks()
    assert 2 <= len(ticks) <= 7 and all(tick == round(tick) for tick in ticks)
    labels = [label.replace(",", "") for label in axis.xaxis.get_major_formatter().format_ticks(ticks)]
    assert list(map(int, labels)) == list(ticks)


def test_a_new_report_replaces_the_old_one(tmp_path: Path) -> None:
    run = FakeRun()
    write_run(tmp_path, run)
    folder = make_report(tmp_path)
    assert (folder / "tables" / "aggregates_partial_1.csv").exists()
    run.evaluated = (50_000,)
    write_evaluations(tmp_path, run)
    make_report(tmp_path)
    assert not (folder / "tables" / "aggregates_partial_1.csv").exists()
    assert (folder / "index.html").exists()


PROBE = """<script>
const complaints = [];
addEventListener("error", event => complaints.push(String(event.message)), true);
addEventListener("securitypolicyviolation", event => complaints.push(event.violatedDirective));
console.error = (...texts) => complaints.push(texts.join(" "));
addEventListener("load", () => {
  const table = document.querySelector("#wall_clock");
  const column = () => Array.from(table.tBodies[0].rows, row => row.cells[2].textContent);
  const heading = table.querySelectorAll("th button")[2];
  const orders = [];
  for (let click = 0; click < 2; click++) { heading.click(); orders.push(column()); }
  const images = Array.from(document.images, image => image.complete && image.naturalWidth);
  const result = document.createElement("pre");
  result.id = "probe";
  const wide = document.body.scrollWidth > innerWidth;
  result.textContent = JSON.stringify({complaints, orders, images, wide});
  document.body.append(result);
});
</script>"""


def browse(page: Path, profile: Path) -> tuple[dict, str]:
    """What PROBE found in a page opened in headless Chromium as on a phone, and what the browser logged."""
    probed = page.with_name("probed.html")
    probed.write_text(
        page.read_text(encoding="utf-8").replace("<title>", PROBE + "<title>"), encoding="utf-8"
    )
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={profile}", "--window-size=500,900", "--enable-logging=stderr", "--dump-dom"]
    command = [browser, *flags, probed.absolute().as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found, result.stderr[-2_000:]
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")), result.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), reason="needs Chromium"
)
def test_page_works_in_a_browser(two_by_two: Path) -> None:
    page = make_report(two_by_two, draw=True) / "index.html"
    found, log = browse(page, two_by_two / "profile")
    assert found["complaints"] == [] and "CONSOLE" not in log
    assert found["orders"] == [["0", "0", "1", "1"], ["1", "1", "0", "0"]]
    assert len(found["images"]) == 2 and all(found["images"])  # learning curves, performance profiles
    assert not found["wide"], "the page itself does not scroll sideways on a phone"
