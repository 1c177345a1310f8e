import errno
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import ConfigError, StorageError
from tests.support.servers import S3Server


@pytest.fixture(params=["path", "file", "memory", "s3", "gs", "az"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh folder on each kind of storage."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return f"{server.uri}/{tmp_path.name}"
    if request.param in ("gs", "az"):
        return f"{request.getfixturevalue({'gs': 'google', 'az': 'azure'}[request.param])}/{tmp_path.name}"
    return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}[request.param]


@pytest.mark.long
def test_what_is_written_is_read(place: str) -> None:
    uri = storage.join(place, "a", "b.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, bytes(range(256)) * 10)
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == bytes(range(256)) * 10
    assert storage.size(uri) == 2560
    assert storage.read_range(uri, 10, 20) == bytes(range(10, 20))
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    storage.write_bytes(storage.join(place, "c"), b"")
    assert storage.names(place) == ["a", "c"]
    assert storage.names(storage.join(place, "a")) == ["b.bin"]
    storage.remove(uri)
    storage.remove(uri)
    assert not storage.exists(uri)


def test_what_is_missing_is_named(place: str) -> None:
    uri = storage.join(place, "none")
    for act in (storage.read_bytes, storage.size, lambda uri: storage.read_range(uri, 0, 1)):
        with pytest.raises(storage.NotFoundError, match="none: there is no such"):
            act(uri)
    assert storage.names(uri) == []


def test_a_missing_bucket_is_named(s3: S3Server) -> None:
    with pytest.raises(storage.NotFoundError, match="s3://no-such-bucket/x"):
        storage.write_bytes("s3://no-such-bucket/x", b"")


def test_a_failed_write_leaves_the_old_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_place_that_refuses_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="cannot write /sys/biggan-test/x"):  # even root cannot make a folder there
        storage.write_bytes("/sys/biggan-test/x", b"")


def test_an_unknown_scheme_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="nosuch://x"):
        storage.read_bytes("nosuch://x")


@pytest.fixture
def refusing_store() -> Iterator[str]:
    """A store that answers every request with 403, as S3 does to unknown keys."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.long
def test_refused_credentials_are_named(refusing_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing_store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(storage.RefusedError, match=r"credentials \(403 Forbidden\); check AWS_ACCESS_KEY_ID"):
        storage.read_bytes("s3://bucket/key")
