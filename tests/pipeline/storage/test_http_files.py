"""Web servers: whatever sends parts of files is read from, and what it refuses ends at once."""

import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import main
from pipeline import storage
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError, StorageError
from pipeline.storage import object_stores
from tests.support.loading import images, open_reader
from tests.support.tiny_runs import TINY, assert_one_line
from tests.support.web_store import SIGNATURE, serve


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    (tmp_path / "names.txt").write_text("bars\nblob\nchecks\nstripes\n")
    return ["--classes", str(tmp_path / "names.txt")]


@pytest.mark.parametrize("mode", ["ranges", "whole200", "signed", "redirect", "no-length"])
def test_tars_are_indexed_and_read_from_any_server_with_ranges(
    shards: Path, tmp_path: Path, names: list[str], capfd: pytest.CaptureFixture[str], mode: str
) -> None:
    out, tars = tmp_path / "out", len(list(shards.glob("*.tar")))
    with serve(shards, mode) as server:
        spec = f"{server.address}/{{000000..{tars - 1:06d}}}.tar" + (f"?{SIGNATURE}" if mode == "signed" else "")
        assert main(["index", spec, "--out", str(out), *names]) == 0
        assert load_manifest(str(out)).fingerprint == load_manifest(str(shards)).fingerprint
        assert main(["index", str(out), "--verify"]) == 0
        assert images(out) == images(shards)
        assert not any(request.startswith(("HEAD", "PROPFIND")) for request in server.asked)
    written = {"manifest.json", "index-report.json", *(path.name for path in shards.glob("*.tar.idx"))}
    assert {path.name for path in out.iterdir()} == written
    assert SIGNATURE not in "".join(capfd.readouterr())


def test_a_set_is_trained_from_behind_one_signature(shards: Path) -> None:
    """A signature for a folder, as Azure's: manifest, indexes and tars are all there, and all need it."""
    with serve(shards, "signed") as server:
        assert images(f"{server.address}/?{SIGNATURE}") == images(shards)


def test_a_wrong_signature_ends_at_once_and_is_not_shown(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(shards, "signed") as server:
        code = main(["index", f"{server.address}/000000.tar?sig=old-secret", "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert_one_line(
            said, code, 78, f"cannot read {server.address}/000000.tar?...: the server refused it (403", "get a new one"
        )
        assert len(server.asked) == 1
    assert "old-secret" not in said and "<html" not in said


def test_a_damaged_tar_behind_a_signature_is_named_without_it(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    tar = copy / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with serve(copy, "signed") as server:
        assert main(["index", f"{server.address}?{SIGNATURE}", "--verify"]) == 65
        said = capsys.readouterr().err
    assert f"{server.address}/000000.tar?..." in said and SIGNATURE not in said


def test_images_are_not_packed_to_a_web_server(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["shard", str(shards), "http://127.0.0.1:9/x?sig=secret", "--resolution", "8"])
    said = capsys.readouterr().err
    assert_one_line(said, code, 78, "DST http://127.0.0.1:9/x?... cannot be written", "name another DST")


def test_a_server_without_ranges_is_named_before_a_shard_is_read(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    with serve(shards, "plain") as server:
        code = main(["index", f"{server.address}/000000.tar", "--out", str(tmp_path / "out"), *names])
        assert_one_line(capsys.readouterr().err, code, 78, f"{server.address}/000000.tar", "no HTTP ranges")
        code = main(["index", server.address, "--verify"])  # 65 would mean that the tars are damaged
        assert_one_line(capsys.readouterr().err, code, 78, f"{server.address}/000000.tar", "no HTTP ranges")
        found = open_reader(server.address)  # manifest and indexes are read whole, and need none
        asked = len(server.asked)
        with pytest.raises(storage.RefusedError, match="no HTTP ranges"):
            found.image(100)
        assert len(server.asked) <= asked + 4
        found.close()
    assert not (tmp_path / "out").exists()
    with open(tmp_path / "large", "wb") as file:
        file.truncate(32 << 20)
    with serve(tmp_path, "plain") as server:
        for start in (0, 1000):
            with pytest.raises(storage.RefusedError, match="no HTTP ranges"):
                storage.read_range(f"{server.address}/large", start, 2000)
    assert server.sent < 32 << 20  # it is not downloaded: only what the connections' buffers take


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["index", "URL/", "--out", "OUT"], "HTTP has no listing; name the files, as URL/{000..127}.tar"),
        (["index", "URL/000000.tar"], "add --out DIR"),
        (["index", "URL/none.tar", "--out", "OUT"], "none.tar"),
        (["shard", "SRC", "URL/new", "--keep"], "HTTP"),
        (["doctor", "--data", "URL/none"], "no shards at URL/none"),
        (["train", "tiny", "run=OUT", "checkpoint.uri=URL/new"], "checkpoint.uri=URL/new: HTTP is read only"),
    ],
)
def test_what_a_web_server_cannot_do_is_said_at_once(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": {"uri": str(shards)}}))
    with serve(shards) as server:
        places = {"SRC": str(shards), "OUT": str(tmp_path / "out"), "URL": server.address, "tiny": str(tmp_path / "tiny.yaml")}

        def filled(text: str) -> str:
            for word, place in places.items():
                text = text.replace(word, place)
            return text

        code = main([argv[0], *map(filled, argv[1:])])
        assert_one_line(capsys.readouterr().err, code, 78, filled(says))
        assert len(server.asked) <= 2 and not any(request.startswith(("PUT", "PROPFIND")) for request in server.asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 407, 410, 413, 414, 451, 501, 505])
def test_a_refusal_is_asked_for_once(tmp_path: Path, status: int) -> None:
    page = "<!DOCTYPE HTML>\n<html><title>Error</title></html>"
    with serve(tmp_path, answers=[(status, page)], forever=True) as server:
        for act in (storage.read_bytes, storage.size, lambda uri: storage.read_range(uri, 0, 9)):
            with pytest.raises(ConfigError, match=r"^cannot read http://127.*/x: [^<]*$"):
                act(f"{server.address}/x")
        assert len(server.asked) == 3


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_asked_again(tmp_path: Path, status: int) -> None:
    (tmp_path / "x").write_bytes(b"data")
    with serve(tmp_path, answers=[(status, "later")] * 2) as server:
        assert storage.read_range(f"{server.address}/x", 1, 3) == b"at"
        assert len(server.asked) == 3


def test_a_dead_server_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 0.1)
    with serve(tmp_path) as server:
        uri = f"http://me:a-secret@127.0.0.1:{server.server_port}/x?sig=another"
    with pytest.raises(StorageError, match=r"^cannot read http://127.*/x\?\.\.\.: Connection refused \(asked again for"):
        storage.read_bytes(uri)


def test_addresses_that_lead_nowhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tmp_path, "circle") as server:
        with pytest.raises(ConfigError, match="redirects in a circle"):
            storage.read_bytes(f"{server.address}/x")
        with pytest.raises(ConfigError, match="does not speak TLS; use an http:// address"):
            storage.read_bytes(f"https://127.0.0.1:{server.server_port}/x")
    for uri in ("http:///x", "http://[1/x"):
        with pytest.raises(ConfigError, match="address"):
            storage.read_bytes(uri)

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"no host is named nosuch\.invalid; check the address"):
        storage.read_bytes("http://nosuch.invalid/x")


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    """Its length without a HEAD, an empty one, one with letters that addresses must encode, and one that becomes another."""
    data = {"empty": b"", "one": b"1", "what? 100%#a b+c.bin": bytes(range(256))}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    for mode in ("ranges", "whole200", "no-length"):
        with serve(tmp_path, mode) as server:
            for name, content in data.items():
                uri = storage.join(server.address, name)
                assert storage.exists(uri) and not storage.exists(uri + "x")
                assert storage.size(uri) == len(content)
                assert storage.read_bytes(uri) == content
                if content:
                    assert storage.read_range(uri, 0, 1000) == content
                    assert storage.read_range(uri, len(content) - 1, len(content)) == content[-1:]
    with serve(tmp_path) as server:
        uri = f"{server.address}/one"
        size, version = storage.head(uri)
        assert size == 1 and version
        shutil.copy(tmp_path / "what? 100%#a b+c.bin", tmp_path / "one")
        with pytest.raises(storage.ChangedError):
            storage.read_range(uri, 0, 1, version)


@pytest.mark.long
def test_a_redirect_takes_no_credentials_along_and_leads_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("private")
    asked: list[tuple[str, str | None]] = []

    def server(location: str) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers.get("Authorization")))
                self.send_response(302 if location else 404)
                if location:
                    self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        return found

    last = server("")
    first = server(f"http://localhost:{last.server_port}/elsewhere")
    local = server(f"file://{tmp_path}/secret")
    try:
        with pytest.raises(ConfigError):
            storage.read_bytes(f"http://user:password@127.0.0.1:{first.server_port}/x")
        assert asked[0][1] and asked[-1] == ("/elsewhere", None)
        with pytest.raises(ConfigError, match="not a valid address"):
            storage.read_bytes(f"http://127.0.0.1:{local.server_port}/x")
    finally:
        for one in (last, first, local):
            one.shutdown()
            one.server_close()
