"""Registries behind real servers: copies between them, webhooks, and a user who may only read."""

import json
import re
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers.mlflow_server import MlflowServer
from jobs.cli import main
from pipeline.tracking.mlflow_store import connect, store_uri
from tests.support.registered_models import evaluation

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.slow]

SECRET = "a shared secret"
DOCUMENT = Path(__file__).parents[2] / "docs" / "registry.md"


def is_genuine() -> Callable[..., bool]:
    """The function in the document."""
    (code,) = [part for part in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL) if "def is_genuine" in part]
    found: dict[str, Any] = {}
    exec(code, found)
    return found["is_genuine"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def received() -> Iterator[tuple[str, list[tuple[Message, bytes]]]]:
    """Address of a receiver, and what it was sent."""
    sent: list[tuple[Message, bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", sent
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    webhooks = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    # Fernet's format: 32 bytes in base64.
    webhooks |= {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": b64encode(bytes(32)).decode(), "MLFLOW_WEBHOOK_CACHE_TTL": "0"}
    server = MlflowServer(tmp_path_factory.mktemp("server"), environment=webhooks)
    server.start()
    yield server
    server.kill()


def test_a_copy_is_the_same_model_and_the_server_tells_of_it(
    registered_run: Path, server: MlflowServer, received: tuple[str, list[tuple[Message, bytes]]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    address, sent = received
    client = connect(server.uri)
    events: Any = ["model_version.created", "model_version_alias.created", "model_version_tag.set"]
    client.create_webhook("all", address, events, secret=SECRET)
    source = connect(store_uri(registered_run, None)).get_model_version("tiny", "1")

    copy = ["copy", "models:/tiny@first", "--to", server.uri, "--tracking-uri", str(registered_run), "--name", "small"]
    assert main(copy) == 0
    assert f"copied: models:/tiny@first is small version 1, alias challenger, in {server.uri}" in capsys.readouterr().out
    version = client.get_model_version_by_alias("small", "challenger")
    for key in ("weights_sha256", "images", "git_commit", "dataset_fingerprint", "config_sha256"):
        assert version.tags[key] == source.tags[key]
    origin = {key: version.tags[f"src_{key}"] for key in ("name", "version", "run_id")}
    assert origin == {"name": "tiny", "version": "1", "run_id": source.run_id}
    assert client.get_run(version.run_id or "").info.status == "FINISHED"
    # The command has compared the hash of what it read back; and it is the same generator.
    for uri, store in (("models:/small@challenger", server.uri), ("models:/tiny@first", str(registered_run))):
        assert main(["sample", uri, str(tmp_path / f"{uri[8:12]}.png"), "--tracking-uri", store]) == 0
    assert (tmp_path / "smal.png").read_bytes() == (tmp_path / "tiny.png").read_bytes()

    capsys.readouterr()
    assert main(copy) == 0 and "copied before: models:/tiny@first is small version 1" in capsys.readouterr().out
    assert len(client.search_model_versions("name = 'small'")) == 1

    client.set_model_version_tag("small", "1", "evaluation", json.dumps(evaluation(3.0)))
    assert main(["promote", "small", "--first", "--tracking-uri", server.uri]) == 0
    promoted = wait_for(sent, lambda event: event["data"].get("alias") == "champion")
    headers, body = promoted
    event = json.loads(body)
    assert (event["entity"], event["action"]) == ("model_version_alias", "created") and event["data"]["name"] == "small"
    entities = {json.loads(part)["entity"] for _, part in list(sent)}
    assert entities == {"model_version", "model_version_tag", "model_version_alias"}

    genuine = is_genuine()
    assert genuine(SECRET, headers, body)
    assert not genuine(SECRET, headers, body.replace(b"champion", b"champioN"))
    assert not genuine("another secret", headers, body)
    assert not genuine(SECRET, headers, body, seconds=-1)  # too old
    late = dict(headers) | {"X-MLflow-Timestamp": str(int(time.time()) + 1)}
    assert not genuine(SECRET, late, body) and not genuine(SECRET, {}, body)


def wait_for(sent: list[tuple[Message, bytes]], wanted: Callable[[dict[str, Any]], bool]) -> tuple[Message, bytes]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for headers, body in list(sent):
            if wanted(json.loads(body)):
                return headers, body
        time.sleep(0.05)
    raise AssertionError(f"not among {len(sent)} events")


def test_what_cannot_be_copied_is_named(registered_run: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(registered_run)
    for argv, code, reason in (
        (["models:/tiny/7", "--to", server.uri, "--tracking-uri", run], 78, "models:/tiny/7 is not in the registry"),
        (["models:/tiny/1", "--to", server.uri, "--tracking-uri", run, "--alias", "champion"], 78, "only `biggan promote`"),
        (["models:/tiny/1", "--to", "http://127.0.0.1:9", "--tracking-uri", run], 74, "MLflow at http://127.0.0.1:9"),
        (["models:/tiny/1", "--to", server.uri, "--tracking-uri", "http://127.0.0.1:9"], 74, "MLflow at http://127.0.0.1:9"),
    ):
        capsys.readouterr()
        assert main(["copy", *argv]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line


def test_who_may_only_read_promotes_nothing(
    registered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "a long password"
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        f"admin_password = {password}\nauth_cache_ttl_seconds = 60\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 32}
    server = MlflowServer(tmp_path, "--app-name", "basic-auth", environment=secrets)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        assert main(["copy", "models:/tiny@first", "--to", server.uri, "--tracking-uri", str(registered_run)]) == 0
        body = json.dumps({"username": "reader", "password": password}).encode()
        token = b64encode(f"admin:{password}".encode()).decode()
        sent = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        urllib.request.urlopen(urllib.request.Request(f"{server.uri}/api/2.0/mlflow/users/create", body, sent), timeout=30)

        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
        for argv in (["promote", "tiny", "--first"], ["copy", "models:/tiny@challenger", "--to", server.uri, "--name", "tiny"]):
            capsys.readouterr()
            assert main([*argv, "--tracking-uri", server.uri]) == 78
            (line,) = capsys.readouterr().err.splitlines()
            assert "does not let you in" in line and "ermission" in line, line
        assert dict(connect(server.uri).get_registered_model("tiny").aliases) == {"challenger": "1"}
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        capsys.readouterr()
        assert main(["promote", "tiny", "--first", "--tracking-uri", server.uri]) == 78
        assert "MLFLOW_TRACKING_PASSWORD" in capsys.readouterr().err
    finally:
        server.kill()
