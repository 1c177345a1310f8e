"""What is said of an MLflow that does not take records: the cause, and whether trying again can help."""

import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.errors import UserError
from pipeline.tracking.delivered import undelivered
from pipeline.tracking.mlflow_errors import as_line, is_from_store
from pipeline.tracking.mlflow_store import connect
from pipeline.wording import hide_secrets
from tests.support.tiny_runs import assert_one_line
from tests.support.tracked_run import track

Serve = Callable[..., str]


class _Answer(BaseHTTPRequestHandler):
    """Answers every request alike, and `/version` with a version."""

    def __init__(self, status: int, version: str, *args: object) -> None:
        self._status, self._version = status, version
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = self.path.endswith("/version") and self._version
        body = (self._version if asked else "<html>what a proxy says</html>").encode()
        self.send_response(200 if asked else self._status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers with a status, and with a version if one is given; returns its address."""
    started = []

    def start(status: int, version: str = "", certificate: Path | None = None) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Answer, status, version))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and the certificate that it signed for 127.0.0.1, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl on this machine")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    options = "-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(["openssl", "req", *options.split(), "-keyout", file, "-out", file], check=True, capture_output=True)
    return file


def asked(uri: str) -> UserError:
    """How a first question to `uri` fails."""
    try:
        connect(uri).get_experiment_by_name("biggan")
    except UserError as error:
        return error
    except Exception as error:
        assert is_from_store(error)
        return as_line(error, uri)
    raise AssertionError(f"{uri} answers")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (200, 78, "not the address of an MLflow server"),
        (302, 78, "not the address of an MLflow server"),
        (404, 78, "not the address of an MLflow server"),
        (401, 78, "MLFLOW_TRACKING_USERNAME"),
        (403, 78, "MLFLOW_TRACKING_TOKEN"),
        (413, 78, "client_max_body_size"),
        (429, 74, "too many 429"),
        (500, 74, "too many 500"),
        (503, 74, "too many 503"),
    ],
)
def test_a_no_is_told_from_not_now(serve: Serve, status: int, code: int, said: str) -> None:
    uri = serve(status)
    error = asked(uri)
    assert error.exit_code == code and said in str(error) and uri in str(error)


@pytest.mark.parametrize(
    ("uri", "code", "said"),
    [
        ("http://user:pass@word@127.0.0.1:9", 74, "MLflow at http://127.0.0.1:9: Failed to establish a new connection: [Errno"),
        ("http://nowhere.invalid", 74, "Failed to resolve 'nowhere.invalid'"),
        ("http://127.0.0.1:99999", 78, "not the address"),
        ("file:///tmp/mlruns", 78, "set `MLFLOW_ALLOW_FILE_STORE=true`"),
        ("ftp://host/store", 78, "unsupported URI"),
        ("postgresql://me:secret@127.0.0.1:1/x", 78, "`pip install psycopg2-binary`, and write the address as postgresql+"),
        ("mysql://me:secret@127.0.0.1:1/x", 78, "`pip install pymysql`"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:1/x", 74, "Connection refused"),
        ("sqlite:////nowhere/at/all.db", 78, "create its folder"),
        (f"sqlite:///{Path(__file__)}", 78, "not an MLflow store"),
    ],
)  # fmt: skip
def test_the_cause_is_not_cut_off(uri: str, code: int, said: str) -> None:
    error = asked(uri)
    line = str(error)
    assert error.exit_code == code and said in line and "\n" not in line and len(line) < 500
    assert "secret" not in line and "word" not in hide_secrets(line).partition("127.0.0.1")[0]


def test_what_is_wrong_with_a_certificate(
    serve: Serve, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = serve(200, certificate=certificate)
    for where, trusted, said in (
        (serve(200).replace("http", "https"), None, "write http://"),
        (uri, None, "not trusted ([SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"),
        (uri, tmp_path / "nothing.pem", "to a file that exists"),
        (uri.replace("127.0.0.1", "localhost"), certificate, "for another name"),
    ):
        if trusted:
            monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(trusted))
        error = asked(where)
        assert error.exit_code == 78 and said in str(error), error
    assert "not the address of an MLflow server" in str(asked(uri))  # the advice was right: now it is asked


def test_an_old_server_is_named_at_once_in_training_and_status(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that says only its version stands in for MLflow 2.22.5, which lacks logged models."""
    uri, run = serve(503, "2.22.5"), tmp_path / "a run"
    tracker = track(run, uri=uri, flush_seconds=0.05)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    (line,) = capsys.readouterr().out.splitlines()  # once, though it was tried again and again
    assert line.startswith("biggan: warning: ") and "is version 2.22.5, and a run needs MLflow 3.0 or newer" in line
    assert f"`biggan sync '{run}'` delivers them" in line
    assert "2.22.5" in undelivered(run)["why"]
    assert main(["sync", str(run)]) == 78
    assert_one_line(capsys.readouterr().err, 78, 78, "is version 2.22.5", "upgrade the server")

    hidden = serve(503)  # a proxy that hides it: then the answer to the first call counts
    assert main(["sync", str(run), "--tracking", hidden, "--wait", "0"]) == 74
    assert "2.22.5" in undelivered(run)["why"]  # another MLflow's trouble is not the run's
