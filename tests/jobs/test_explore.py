"""`biggan explore`: what the page asks for over HTTP, and every mistake as one line. The page itself: test_browser.py."""

import base64
import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import explore
from jobs.cli import main
from tests.support.explore_page import Page, arguments, served
from tests.support.mistakes import refusal

pytestmark = pytest.mark.usefixtures("quick")


@contextmanager
def page_of(*argv: str) -> Iterator[Page]:
    args = arguments(*argv)
    with served(explore.subject(args), *args.allow_host) as page:
        yield page


@pytest.fixture
def page(registered_run: Path) -> Iterator[Page]:
    with page_of(str(registered_run)) as server:
        yield server


def written(command: str, folder: Path) -> list[bytes]:
    """The files that the command makes in `folder`, by number."""
    program, *argv = shlex.split(command)
    assert program == "biggan" and "set/" in argv
    assert main([f"{folder}/" if part == "set/" else part for part in argv]) == 0
    return [path.read_bytes() for path in sorted(folder.rglob("*.png"), key=lambda path: path.name)]


@pytest.mark.long
@pytest.mark.parametrize(
    "query",
    [
        {"seed": 5, "count": 6},
        {"class": "blob", "seed": 5, "truncation": "0.5", "count": 3},
        {"class": "2", "truncation": "none"},
    ],
)
def test_samples_are_the_files_of_the_command_that_the_page_shows(page: Page, tmp_path: Path, query: dict[str, object]) -> None:
    status, found = page.get("samples", **query)
    assert status == 200
    assert [base64.b64decode(image["png"]) for image in found["images"]] == written(found["command"], tmp_path / "set")
    assert len(found["images"]) == query.get("count", 20)
    names = ["bars", "blob", "checks", "stripes"]
    wanted = [{"blob": "blob", "2": "checks"}.get(str(query.get("class")), names[i % 4]) for i in range(len(found["images"]))]
    assert [image["class"] for image in found["images"]] == wanted


@pytest.mark.long
def test_a_registered_model_draws_by_its_own_code(registered_run: Path, shards_grey: Path, tmp_path: Path) -> None:
    with page_of("models:/tiny@first", "--tracking-uri", str(registered_run)) as page:
        _, about = page.get("model")
        assert about["name"] == "models:/tiny@first" and about["images"] == 4096 and len(about["weights_sha256"]) == 64
        assert about["neighbours"] is None and "--data URI" in about["data"]
        status, found = page.get("samples", seed=3, truncation=0.8, count=5)
        assert status == 200
        assert [base64.b64decode(image["png"]) for image in found["images"]] == written(found["command"], tmp_path / "set")
        status, walk = page.get("walk", from_class="bars", to_class="blob", steps=4)
        assert status == 200 and len({image["png"] for image in walk["images"]}) == 4
        status, answer = page.get("nearest", **{"class": "bars"})
        assert status == 400 and answer["error"] == about["data"]


def test_what_the_page_says_of_a_run(page: Page, registered_run: Path, shards_grey: Path) -> None:
    status, about = page.get("model")
    assert status == 200 and about["name"] == str(registered_run) and about["images"] == 4096
    assert (about["network"], about["resolution"], about["classes"]) == ("biggan", 32, ["bars", "blob", "checks", "stripes"])
    assert about["data"] == str(shards_grey) and about["neighbours"] == {"samples": 256, "total": 256}


def test_nearest_images_after_the_index_is_there(registered_run: Path) -> None:
    with page_of(str(registered_run), "--neighbours", "50") as page:
        deadline = time.monotonic() + 60
        status, found = page.get("nearest", **{"class": "bars", "seed": 1, "sample": 2, "count": 4})
        while status == 202:
            assert found["total"] == 50 and time.monotonic() < deadline
            status, found = page.get("nearest", **{"class": "bars", "seed": 1, "sample": 2, "count": 4})
    assert status == 200 and found["how"].startswith("Nearest of 50 of the 256 training images, by pixel distance at 32 × 32")
    distances = [image["distance"] for image in found["nearest"]]
    assert len(distances) == 4 and distances == sorted(distances) and distances[0] > 0


@pytest.mark.long
def test_shards_that_are_gone_leave_the_rest_of_the_page(registered_run: Path, tmp_path: Path, shards_grey: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(registered_run, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(shards_grey), str(tmp_path / "gone")))
    with page_of(str(run)) as page:
        assert page.get("samples", count=1)[0] == 200
        status, answer = page.get("nearest", **{"class": "bars"})
        assert status == 400 and str(tmp_path / "gone") in answer["error"] and "--data URI" in answer["error"]
    with page_of(str(run), "--data", str(shards_grey)) as page:
        assert page.get("model")[1]["data"] == str(shards_grey)
        assert page.get("nearest", **{"class": "bars"})[0] in (200, 202)


def test_bad_input_is_one_line_with_status_400(page: Page) -> None:
    for path, query, says in (
        ("samples", {"class": "hat"}, "class 'hat': no such class; the model has 0 to 3: bars, blob, checks, stripes"),
        ("samples", {"class": "4"}, "class '4'"),
        ("samples", {"truncation": "-1"}, "truncation '-1': must be a number from 0.01 to 100, or none"),
        ("samples", {"truncation": "nan"}, "truncation 'nan'"),
        ("samples", {"truncation": "inf"}, "truncation 'inf'"),
        ("samples", {"truncation": "x"}, "truncation 'x'"),
        ("samples", {"truncation": "1e-300"}, "truncation '1e-300'"),
        ("samples", {"truncation": "0." + "5" * 5000}, "truncation '0.5555"),
        ("samples", {"seed": "-1"}, "seed '-1': must be a whole number from 0 to 9,223,372,036,854,775,807"),
        ("samples", {"seed": "9223372036854775808"}, "seed '9223372036854775808'"),
        ("samples", {"seed": "²"}, "seed '²'"),
        ("samples", {"count": "0"}, "count '0': must be a whole number from 1 to 64"),
        ("samples", {"count": "65"}, "count '65'"),
        *(("samples", {name: "9" * 5000}, f"{name} '9999") for name in ("seed", "count", "class")),
        ("samples", {"class": "\udce9\0<b>"}, "class '"),
        ("samples", {"\u202eabc\n": "1"}, "\\u202eabc\\n: no such parameter"),
        ("samples", [("seed", "1"), ("seed", "2")], "seed is given twice"),
        ("samples", {"trunction": "1"}, "trunction: no such parameter"),
        ("walk", {"from_class": "bars"}, "to_class is missing"),
        ("walk", {"from_class": "bars", "to_class": "blob", "steps": "1"}, "steps '1'"),
        ("walk", {"from_class": "bars", "to_class": "blob", "to_sample": "64"}, "to_sample '64'"),
        ("nearest", {}, "class is missing"),
        ("nearest", {"class": "bars", "count": "33"}, "count '33'"),
        ("model", {"x": "1"}, "x: no such parameter"),
    ):
        status, answer = page.ask(path, query)
        assert status == 400 and answer["error"].startswith(says) and answer["error"].isprintable(), (query, answer)
        assert len(answer["error"]) < 300
        if "\\" not in says:
            assert answer["parameter"] == re.split("[ :]", says)[0]  # the page marks its field
    assert page.get("model")[1]["most"] == {"count": 64, "steps": 32}  # and says the range before


def test_other_addresses_are_not_found(page: Page) -> None:
    assert page.get("nothing") == (404, {"error": "GET /api/nothing: Not Found"})


def test_bad_arguments_are_one_line(
    registered_run: Path, tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(registered_run)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refusal(capsys, "explore", run, "--port", str(port))
        assert code == 78 and f"--port {port} is in use by another program: type --port {port + 1}" in line
    for argv, says in (
        (["models:/tiny@first"], "--tracking-uri"),  # MLflow keeps the one of a later case in the environment
        ([str(tmp_path / "none")], "no model "),
        ([run, "--port", "65536"], "--port 65536: must be from 0 to 65535"),
        ([run, "--neighbours", "0"], "--neighbours 0: must be at least 1"),
        ([run, "--standing", "1"], "--standing 1"),
        ([run, "--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        ([run, "--allow-host", "https://hub/"], "--allow-host https://hub/: name a host without scheme, port and path"),
        ([run, "--host", "192.0.2.1"], "--host 192.0.2.1 is not an address of this machine"),
        ([run, "--checkpoint", "5"], "no checkpoint at 5 images; it has: 4096"),
        ([run, "--data", str(tmp_path / "none")], str(tmp_path / "none")),
        ([run, "--data", str(shards)], "has images of 3 channels, and the model draws 1"),
        (["models:/tiny@nobody", "--tracking-uri", run], "tiny has @first"),
        (["models:/tiny@first", "--standing", "64"], "--standing 64 goes only with"),
    ):
        code, line = refusal(capsys, "explore", *argv, *([] if "--port" in argv else ["--port", "0"]))
        assert code == 78 and says in line, (argv, line)
