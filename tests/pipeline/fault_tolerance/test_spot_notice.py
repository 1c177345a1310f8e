"""What a cloud's metadata server says: a notice, none, or nothing that makes sense."""

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline import variables
from pipeline.errors import ConfigError
from pipeline.fault_tolerance import spot_notice
from pipeline.fault_tolerance.spot_notice import SpotWatch


class Metadata(BaseHTTPRequestHandler):
    """The three clouds' servers in one, as strict as they are about headers."""

    gone, garbage = False, ""
    events: list[dict[str, Any]] = []  # noqa: RUF012

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if known else 400, "the-token")

    def do_GET(self) -> None:
        google, azure = self.headers["Metadata-Flavor"] == "Google", self.headers["Metadata"] == "true"
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "the-token":
                self._answer(401)
            else:
                self._answer(200, '{"action": "terminate"}') if self.gone else self._answer(404)
        elif self.path == "/computeMetadata/v1/instance/preempted" and google:
            self._answer(200, "TRUE" if self.gone else "FALSE")
        elif self.path.startswith("/metadata/scheduledevents?api-version=") and azure:
            self._answer(200, self.garbage or json.dumps({"DocumentIncarnation": 1, "Events": self.events}))
        elif self.path.startswith("/metadata/instance/compute/name?api-version=") and azure:
            self._answer(200, "set_3")
        else:
            self._answer(403)

    def _answer(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Metadata]]:
    class Ours(Metadata):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ours) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv(variables.METADATA_URL, f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setattr(spot_notice, "_POLL_SECONDS", 0.02)
        yield Ours
        server.shutdown()


def event(kind: str, *machines: str) -> dict[str, Any]:
    return {"EventType": kind, "ResourceType": "VirtualMachine", "Resources": list(machines), "EventStatus": "Scheduled"}


@pytest.mark.long
@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_notice_of_a_cloud(cloud: Any, metadata: type[Metadata]) -> None:
    metadata.events = [event("Preempt", "set_4"), event("Freeze", "set_3")]  # another machine; a pause
    watch, notice = SpotWatch(cloud), threading.Event()
    watch.check()
    assert not watch._ask()
    thread = threading.Thread(target=watch.run, args=(notice,))
    thread.start()
    assert not notice.wait(0.2)
    metadata.gone, metadata.events = True, [event("Preempt", "set_2", "set_3")]
    assert notice.wait(30)
    thread.join(30)


@pytest.mark.long
def test_a_server_that_is_another_or_none(metadata: type[Metadata], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv(variables.METADATA_URL, os.environ[variables.METADATA_URL] + "elsewhere")
    with pytest.raises(ConfigError, match=r"stop.spot_notice=gcp: .*/elsewhere does not answer .* name another cloud, or none"):
        SpotWatch("gcp").check()
    monkeypatch.setenv(variables.METADATA_URL, "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"stop.spot_notice=aws"):
        SpotWatch("aws").check()


@pytest.mark.long
@pytest.mark.parametrize("answer", ["[]", '{"Events": [1]}', "[" * 100_000, '{"Events": [{"EventType": "Preempt"}]}'])
def test_an_answer_that_makes_no_sense_is_no_notice_and_no_end(answer: str, metadata: type[Metadata]) -> None:
    metadata.garbage = answer
    watch, notice = SpotWatch("azure"), threading.Event()
    thread = threading.Thread(target=watch.run, args=(notice,))
    thread.start()
    assert not notice.wait(0.1) and thread.is_alive()
    metadata.garbage, metadata.events = "", [event("Preempt", "set_3")]
    assert notice.wait(30)
    thread.join(30)
