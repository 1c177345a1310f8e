"""`biggan report`: one HTML file that says what the folder says, and loads nothing."""

import base64
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.tracking.tracker import Tracker, TrackingConfig
from tests.support.saved_run import save_run
from tests.support.tiny_runs import assert_one_line

_VOID = {"meta", "img", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that what is opened is closed; keeps texts, images, lines and addresses."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.images: list[bytes] = []
        self.lines: list[list[tuple[float, float]]] = []
        self.addresses: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in _VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        if tag == "img":
            self.images.append(base64.b64decode((given["src"] or "").removeprefix("data:image/png;base64,")))
        if tag == "polyline":
            pairs = [pair.split(",") for pair in (given["points"] or "").split()]
            self.lines.append([(float(x), float(y)) for x, y in pairs])

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards_grey: Path) -> Path:
    """A run that was started twice, with all that a page can show."""
    run = tmp_path_factory.mktemp("report") / "a<b"
    config = save_run(run, shards_grey, mode="off")
    data = [{"name": "train", "uri": "s3://key:secret@bucket/train", "fingerprint": "f00d", "profile": "{}"}]
    tags = {"biggan.git_commit": "c0ffee", "biggan.git_dirty": "true", "biggan.resumed_from": "4096", "biggan.world_size": "8"}
    tracker = Tracker(TrackingConfig(mode="off", uri="http://me:secret@host"), run, "uid", {}, tags, data)
    for step in range(5000, 6000):
        values = {"loss/g": step - 5000.0, "loss/d": 1.0 if step < 5500 else float("nan"), "images_per_second": 7.0}
        tracker.metrics(values | {"time/data": 1.0, "time/d_step": 3.0, "singular/g/first": 2.0, "new/one": 1.0}, step)
    for step in range(30):
        tracker.image(np.full((8, 8, 3), step, np.uint8), "samples/ema", step)
    tracker.close("KILLED")
    event = {"time": 1.7e9, "kind": "alarm", "images": 5555, "rollbacks": 1, "text": "<script>D is sure</script>"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    (run / "evaluation").mkdir()
    for truncation, fid, score in ((None, 20.0, 8.0), (0.5, 40.0, 3.0), (1.0, 30.0, 6.0)):
        document = {"metrics": {"FID[x]": fid, "IS[x]": score, "note": None}, "images": 4096, "samples": 100}
        document["truncation"] = truncation
        (run / "evaluation" / f"{truncation}.json").write_text(json.dumps(document))
    assert config.run
    return run


@pytest.fixture(scope="module")
def source(run: Path) -> str:
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text()


def test_the_page_is_whole_and_loads_nothing(source: str) -> None:
    page = Page(source)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?://(?!host)|@import|url\(|<script|<link|<iframe", source)
    assert "secret" not in source


def test_the_page_says_what_the_folder_says(source: str) -> None:
    texts = Page(source).texts
    said = "\n".join(texts)
    assert "a<b" in texts and "c0ffee, changed since" in texts and "<script>D is sure</script>" in texts and "5,555" in texts
    assert "s3://bucket/train, fingerprint f00d" in texts and "global_batch: 8" in said
    starts = [texts[i : i + 4] for i, text in enumerate(texts) if text == "4096"]
    assert [start[1] for start in starts] == ["8"]
    assert texts.count("FINISHED") == texts.count("KILLED") == 1
    assert texts[(at := texts.index("1,000.0 s")) - 1 : at + 2] == ["data", "1,000.0 s", "25.0%"]
    assert texts[(at := texts.index("none")) - 1 : at + 4] == ["4,096", "none", "100", "20", "8"]


def test_curves_have_the_shape_of_what_was_recorded(source: str) -> None:
    lines = Page(source).lines
    rising = [line for line in lines if len(line) > 100 and all(a[1] > b[1] for a, b in itertools.pairwise(line))]
    assert len(rising) == 1  # loss/g; y points down
    assert all(0 <= x <= 460 and 0 <= y <= 240 for line in lines for x, y in line)
    falling = [line for line in lines if len(line) == 2 and line[0][1] < line[1][1]]
    assert len(falling) == 1  # FID over the truncation, 40 to 30
    (sweep,) = [line for line in lines if len(line) == 3]  # FID over IS, from truncation 0.5 to none
    assert [x for x, _ in sweep] == sorted(x for x, _ in sweep) and [y for _, y in sweep] == sorted(y for _, y in sweep)
    assert max(len(line) for line in lines) <= 400


def test_twelve_samples_from_the_first_to_the_last(source: str) -> None:
    shades = [int(np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0]) for data in Page(source).images]
    assert len(shades) == 12 and shades == sorted(set(shades)) and shades[0] == 0 and shades[-1] == 29


def test_a_young_run_and_no_run(tmp_path: Path, shards_grey: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "young"
    save_run(run, shards_grey, mode="off")
    for name in ("journal.jsonl", "status.json"):
        (run / name).unlink(missing_ok=True)
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert "not started" in "".join(Page((tmp_path / "page.html").read_text()).texts)
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 78
    assert_one_line(capsys.readouterr().err, 78, 78, str(tmp_path), "config.yaml")
