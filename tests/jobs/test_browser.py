"""What a person sees: the page of `biggan explore`, and a run's sample grids in MLflow's, in a real browser."""

import base64
import io
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.servers.mlflow_server import MlflowServer
from jobs.cli import main
from tests.support.servers import address
from tests.support.tiny_runs import Resumed, mlflow_runs

pytestmark = pytest.mark.slow

_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window. The machine's own, which gets its security updates; Debian's package is the first name."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(_BROWSERS)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture
def run(resumed: Resumed) -> Path:
    """A trained run with sample grids at 128 and 256 images."""
    return resumed.run


@pytest.fixture
def explorer(run: Path, tmp_path: Path) -> Iterator[str]:
    """Address of `biggan explore RUN`; it ends by Ctrl-C, with code 0 and nothing on stderr."""
    command = [sys.executable, "-m", "jobs.cli", "explore", str(run), "--port", "0"]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        server = subprocess.Popen(command, stdout=out, stderr=err)
    try:
        yield address(tmp_path / "out", server, r"(http://127\.0\.0\.1:\d+/) until")
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0 and (tmp_path / "err").read_text() == ""
    finally:
        server.kill()
        server.wait()


def files(page: Any, images: str) -> list[bytes]:
    """The image files that the page shows, all of them decoded by the browser."""
    found = page.locator(f"{images} img")
    assert found.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 0)")
    return [base64.b64decode(source.partition(",")[2]) for source in found.evaluate_all("images => images.map(i => i.src)")]


def pixels(file: bytes) -> "np.ndarray[Any, np.dtype[np.int64]]":
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image).astype(np.int64)


def test_the_page_of_a_run(explorer: str, browser: Any, run: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    page.goto(explorer)
    drawn = page.locator("#samples:not([hidden], [aria-busy]) li")

    # What it is about, and one image of each class in turn.
    drawn.nth(19).wait_for()
    assert page.title() == f"{run} · biggan explore"
    assert {"256 images seen", "biggan, 32 × 32"} <= set(page.locator("dd").all_inner_texts())
    assert drawn.all_inner_texts()[:5] == ["bars", "blob", "checks", "stripes", "bars"]

    shown = _samples_are_those_of_the_command(page, drawn, run, tmp_path)
    _a_sample_begins_a_walk(page, drawn, shown[2])
    _the_nearest_training_images_are_shown(page)
    _mistakes_are_said_at_their_field(page, drawn)

    # Nothing is cut off, wide or narrow, and small images keep their pixels.
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert drawn.nth(0).locator("img").evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    assert faults == []
    page.close()


def _samples_are_those_of_the_command(page: Any, drawn: Any, run: Path, tmp_path: Path) -> list[bytes]:
    """Another class, truncation, seed and count: other images, and those that the command shown writes. Returns them."""
    from playwright.sync_api import expect

    first = files(page, "#samples")
    page.get_by_label("Class", exact=True).first.fill("blob")
    page.get_by_label("Truncate the latents").check()
    page.get_by_role("slider").fill("0.7")
    page.get_by_label("Seed", exact=True).first.fill("11")
    page.get_by_label("Count").fill("6")
    page.get_by_label("Count").press("Enter")
    expect(page.locator("#samples:not([aria-busy]) li")).to_have_count(6)
    shown, command = files(page, "#samples"), page.locator("#command").inner_text()
    assert set(drawn.all_inner_texts()) == {"blob"} and len(set(shown)) == 6 and not set(shown) & set(first)
    assert command == f"biggan sample {run} set/ --count 6 --seed 11 --classes blob --truncation 0.7"
    assert main([f"{tmp_path}/set/" if part == "set/" else part for part in shlex.split(command)[1:]]) == 0
    assert shown == [path.read_bytes() for path in sorted((tmp_path / "set" / "blob").iterdir())]
    return shown


def _a_sample_begins_a_walk(page: Any, drawn: Any, sample: bytes) -> None:
    """Chosen by keyboard; both ends of the walk are samples, and its truncation stays, whatever the next samples have."""
    from playwright.sync_api import expect

    drawn.nth(2).locator("button").focus()
    page.keyboard.press("Space")
    assert page.locator("#chosen-name").inner_text() == "blob, sample 2 of seed 11, truncation 0.7"
    page.get_by_role("button", name="Walk from here").click()
    expect(page.locator("#walk:not([hidden], [aria-busy]) li")).to_have_count(9)
    walk = [pixels(file) for file in files(page, "#walk")]
    assert abs(walk[0] - pixels(sample)).max() <= 1 < abs(walk[4] - walk[0]).max()

    page.get_by_label("Truncate the latents").uncheck()
    expect(page.locator("#command")).not_to_contain_text("truncation")
    page.get_by_role("button", name="Walk from here").click()
    expect(page.locator("#walk:not([hidden], [aria-busy]) li")).to_have_count(9)
    assert page.locator("#walk-how").inner_text().endswith("truncation 0.7.")
    assert [pixels(file).tolist() for file in files(page, "#walk")] == [image.tolist() for image in walk]


def _the_nearest_training_images_are_shown(page: Any) -> None:
    from playwright.sync_api import expect

    page.get_by_role("button", name="Nearest training images").click()
    expect(page.locator("#nearest:not([hidden], [aria-busy]) li")).to_have_count(8)
    assert "Nearest of 256 of the 256 training images, by pixel distance" in page.locator("#how").inner_text()
    captions = "\n".join(page.locator("#nearest li").all_inner_texts())
    distances = [float(number) for number in re.findall(r"distance ([\d.]+)", captions)]
    assert len(distances) == 8 and distances == sorted(distances)
    assert len(set(files(page, "#nearest"))) == 8


def _mistakes_are_said_at_their_field(page: Any, drawn: Any) -> None:
    """And the images stay; the next good input clears it."""
    from playwright.sync_api import expect

    for label, wrong, good, says in (
        ("Class", "hat", "", "class 'hat': no such class; the model has 0 to 3"),
        ("Count", "1000", "6", "count '1000': must be a whole number from 1 to 64"),
    ):
        field = page.get_by_label(label, exact=True).first
        field.fill(wrong)
        field.press("Enter")
        page.locator("input[aria-invalid=true] + #samples-error").get_by_text(says).wait_for()
        assert field.get_attribute("aria-invalid") == "true" and drawn.count() == 6
        field.fill(good)
        field.press("Enter")
        expect(page.locator("#samples-error")).to_be_hidden()
        assert page.locator("[aria-invalid]").count() == 0
    assert page.get_by_text("From 1 to 64", exact=True).is_visible()
    drawn.nth(5).wait_for()


def test_the_sample_grids_in_mlflow(run: Path, browser: Any, tmp_path: Path) -> None:
    (tracked,) = mlflow_runs(run)
    server = MlflowServer(tmp_path, store=f"sqlite:///{run}/mlflow.db")
    server.start()
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        at = f"{server.uri}/#/experiments/{tracked.info.experiment_id}/runs/{tracked.info.run_id}"
        grids = page.locator("img[src*='get-artifact']")

        # The chart of the run's grids has a step for each, in images.
        page.goto(f"{at}/model-metrics")
        page.get_by_placeholder("Search metric charts").fill("samples/ema")
        slider = page.get_by_role("slider")
        slider.wait_for(timeout=60_000)
        assert (slider.get_attribute("aria-valuemin"), slider.get_attribute("aria-valuemax")) == ("128", "256")
        for step in (128, 256):
            slider.press("ArrowRight")
            page.locator(f"img[src*='step%2B{step}%2B']").wait_for()
            assert slider.get_attribute("aria-valuenow") == str(step)
            deadline = time.monotonic() + 30
            while not grids.first.evaluate("image => image.complete && image.naturalWidth"):
                assert time.monotonic() < deadline
                page.wait_for_timeout(50)

        # The file itself, at full size, among the artifacts.
        page.goto(f"{at}/artifacts")
        page.get_by_text("images", exact=True).click()
        page.get_by_text(re.compile(r"samples~ema\+step\+256\+.*\.png")).click()
        with Image.open(next((run / "samples").glob("*256.png"))) as grid:
            page.wait_for_function("width => [...document.images].some(i => i.naturalWidth === width)", arg=grid.width)
        page.close()
    finally:
        server.kill()
