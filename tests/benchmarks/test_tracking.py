"""The proxy of the tracking benchmark; and (slow) that a small run of it loses nothing."""

import http.client
import json
import subprocess
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from benchmarks.servers.mlflow_proxy import Proxy


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        pass


@pytest.mark.long
def test_the_proxy_passes_on_refuses_and_loses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("there")
    behind = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=behind.serve_forever, args=(0.01,), daemon=True).start()
    proxy = Proxy(behind.server_port)

    def get() -> tuple[int, bytes] | None:
        connection = http.client.HTTPConnection(proxy.uri.removeprefix("http://"), timeout=10)
        connection.request("GET", "/file")
        try:
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.RemoteDisconnected:
            return None
        finally:
            connection.close()

    try:
        assert [get() for _ in range(4)] == [(200, b"there")] * 4
        proxy.mode = "lossy"
        assert [get() for _ in range(4)] == [(200, b"there"), None, (200, b"there"), None]
        proxy.mode = "403"
        assert (said := get()) and said[0] == 403
        proxy.mode = "pass"
        behind.shutdown()
        behind.server_close()
        assert (said := get()) and said[0] == 502
    finally:
        proxy.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_is_restarted_or_loses_requests_has_every_row_once() -> None:
    """Times against a run without a tracker are left out of it: machines of tests are shared."""
    command = [sys.executable, "-m", "benchmarks.tracking", "--steps", "300", "--cases", "gone at the end,lossy", "--no-times"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["checks"]) == 4 and all(result["checks"].values()), done.stdout + done.stderr
    assert [case["rows"] for case in result["cases"]] == [300 * 12] * 2
