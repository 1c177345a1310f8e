"""A model server as it is met: below a path, with a token, not there; what is final ends at once."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.errors import ConfigError, StorageError, UserError
from pipeline.generation import model_address
from pipeline.generation.client import Client, NoServerError, is_server
from pipeline.images.pillow import png

ABOUT = {"classes": ["cat", "dog"], "resolution": 8, "params": ["seed", "start", "max_batch", "format"]}
PICTURE = base64.b64encode(png(np.zeros((8, 8, 3), np.uint8))).decode()
ANSWERS: dict[str, tuple[int, str]] = {
    "/gone": (404, "<!doctype html>"),
    "/tracking": (405, "<!doctype html>\n<title>405 Method Not Allowed</title>"),
    "/files": (501, "Unsupported method"),
    "/site": (200, "<html>"),
    "/other": (200, json.dumps({"predictions": [0.5]})),
    "/large": (413, "too large"),
    "/busy": (429, "later"),
    "/down": (503, "starting"),
    "/moved": (302, ""),
    "/bad": (400, json.dumps({"error_code": "BAD_REQUEST", "message": "in the request ...\nclass_id 9: must be from 0 to 1"})),
    "/odd": (400, "no JSON"),
    "/silent": (400, ""),
}


class _Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(self.path)
        code, text = ANSWERS.get(self.path.removesuffix("/invocations"), (404, ""))
        if self.path in ("/invocations", "/my%20birds/invocations", "/birds/invocations?key=1"):
            rows = [{"png": PICTURE}] * len(body["dataframe_split"]["data"])
            described = body["params"].get("format") == "description"
            code, text = 200, json.dumps({"predictions": [{"description": json.dumps(ABOUT)}] if described else rows})
            if "birds" in self.path and self.headers["Authorization"] != "Bearer secret":
                code, text = 401, "who?"
        self.send_response(code)
        self.send_header("Location", "http://elsewhere/")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *message: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("BIGGAN_SERVER_TOKEN", raising=False)
    _Handler.asked.clear()
    model_address.serves.cache_clear()
    found = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.mark.parametrize(
    "path", ["/my birds", "/my birds/", "/my%20birds/invocations", "/birds?key=1", "/birds/invocations?key=1"]
)
def test_a_server_may_lie_below_a_path_and_need_a_token(
    server: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", server + path, str(tmp_path / "x.png"), "--per-class", "2"]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"{server}{path.replace('key=1', '...')} answers 401" in line
        and "set the environment variable BIGGAN_SERVER_TOKEN" in line
    )
    monkeypatch.setenv("BIGGAN_SERVER_TOKEN", "guessed")
    with pytest.raises(ConfigError, match="the token in BIGGAN_SERVER_TOKEN is refused"):
        Client(server + path)
    monkeypatch.setenv("BIGGAN_SERVER_TOKEN", "secret")
    assert main(["sample", server + path, str(tmp_path / "x.png"), "--per-class", "2"]) == 0
    assert np.asarray(Image.open(tmp_path / "x.png")).shape[2] == 3


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        (
            "/gone",
            NoServerError,
            "/gone is no model server: it answers 404 Not Found at /gone/invocations; name the address of",
        ),
        ("/tracking", NoServerError, r"it answers 405 .*\(that of a tracking server goes into --tracking-uri\)$"),
        ("/files/invocations", NoServerError, "it answers 501"),
        ("/site", NoServerError, "it answers without predictions at /site/invocations"),
        ("/other", ConfigError, "a model that does not describe itself"),
        ("/large", ConfigError, "answers 413"),
        ("/busy", StorageError, "answers 429"),
        ("/down", StorageError, "answers 503"),
        ("/moved", ConfigError, "is redirected to http://elsewhere/: name that address"),
        ("/bad", ConfigError, "/bad: class_id 9: must be from 0 to 1$"),
        ("/odd", ConfigError, "/odd: no JSON$"),
        ("/silent", ConfigError, "/silent: Bad Request$"),
    ],
)
def test_a_no_is_told_from_not_now(
    server: str, path: str, kind: type[UserError], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=says) as caught:
        Client(server + path)
    assert "<" not in str(caught.value)
    asked = len(_Handler.asked)
    assert main(["sample", server + path, str(tmp_path / "x.png")]) == kind.exit_code
    assert capsys.readouterr().err == f"biggan: error: {caught.value}\n"
    assert len(_Handler.asked) - asked <= 2  # once to see what it is


def test_what_is_no_address_is_said(server: str) -> None:
    with pytest.raises(ConfigError, match=r"does not speak TLS .*: name its http:// address"):
        Client(server.replace("http", "https"))
    with pytest.raises(ConfigError, match="is no address"):
        Client("http://127.0.0.1:port")
    assert is_server("http://127.0.0.1:port")


def test_a_server_is_no_model_to_explore(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", server, "--port", "0"]) == 78
    assert f"{server} is a model server, which draws no walks: name the model that it serves" in capsys.readouterr().err
    assert _Handler.asked == []


def test_files_on_a_web_server_are_no_model_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def do_head(handler: Any) -> None:
        handler.send_response(200 if handler.path.endswith("/COMMIT.json") else 404)
        handler.end_headers()

    monkeypatch.setattr(_Handler, "do_HEAD", do_head, raising=False)
    assert not model_address.serves(f"{server}/gone")
    assert model_address.serves(f"{server}/down")
