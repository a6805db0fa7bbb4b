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

from run_files.event_file import EventFile


@pytest.fixture
def two_by_two(tmp_path: Path) -> Path:
    """A sweep of two methods and two seeds, with videos in one place or the other."""
    for label in ("STORM-tiny", "GITSTORM-tiny"):
        for seed in range(2):
            run = FakeRun("Boxing", label, seed, 10.0 + seed, 3_000, evaluated=(1_000, 2_000, 3_000))
            write_run(tmp_path, run)
    videos = tmp_path / "outputs" / "Boxing-STORM-tiny-seed_0" / "videos"
    videos.mkdir()
    for step, shade in ((900, 10), (3_000, 200), (2_000, 90)):
        (videos / f"Imagine_predict_video_{step}.gif").write_bytes(gif(shade))
    for first_step, step, shade in ((0, 1_000, 30), (1_000, 2_000, 60)):
        events = EventFile(tmp_path / "runs" / "Boxing-GITSTORM-tiny-seed_0", first_step)
        events.write_scalars(step, {"WorldModel/total_loss": 1.0})
        events.write_gif(step, "Imagine/predict_video", gif(shade), 24, 48)
        events.close()
    return tmp_path


def test_page_holds_everything_and_asks_the_network_for_nothing(two_by_two: Path) -> None:
    folder = make_report(two_by_two)
    page = (folder / "index.html").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(
        r"https?://(?!www\.w3\.org)", re.sub(r'src="data:[^"]*"', "", page).split("<main>")[0]
    )
    for shade in (200, 60):
        assert base64.b64encode(gif(shade)).decode() in page, "the newest video of each method"
    assert base64.b64encode(gif(30)).decode() not in page
    assert page.count("data:image/svg+xml;base64,") == 2, "one game's curves and the efficiency"
    assert "3,000" in page and "none may be compared with published scores" in page
    for figure in ("curves/Boxing", "efficiency"):
        for ending in ("svg", "png"):
            assert (folder / "figures" / f"{figure}.{ending}").stat().st_size > 1_000
    assert "figures/efficiency.svg" in (folder / "report.md").read_text(encoding="utf-8")


def test_run_names_cannot_inject_markup(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(label="<script>alert(1)<script>"))
    assert "<script>alert" not in (make_report(tmp_path) / "index.html").read_text(encoding="utf-8")


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
    page = make_report(two_by_two) / "index.html"
    found, log = browse(page, two_by_two / "profile")
    assert found["complaints"] == [] and "CONSOLE" not in log
    assert found["orders"] == [["0", "0", "1", "1"], ["1", "1", "0", "0"]]
    assert len(found["images"]) == 4 and all(found["images"])
    assert not found["wide"], "the page itself does not scroll sideways on a phone"
