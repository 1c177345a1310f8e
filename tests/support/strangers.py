"""What tests of folders that somebody else has made share: a server that must not be asked, and harm to what was sent."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cli
from pipeline.data.manifest import MANIFEST, dump_manifest, load_manifest
from pipeline.tracking.journal import append_line, journal_path
from pipeline.tracking.records import Record
from tests.support.tiny_runs import assert_one_line

CANARY = "canary-7f1d20c9"


class Stranger:
    """A web server that notes what it is asked; every store that is reached over HTTP leads to it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                stranger.asked.append(f"{self.command} {self.path} {self.headers}")
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


def set_key(run: Path, key: str, value: str) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    section, _, name = key.partition(".")
    config[section][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def set_manifest(shards: Path, **changes: Any) -> None:
    """With a fingerprint that fits."""
    manifest = load_manifest(str(shards))
    if name := changes.pop("name", None):
        changes["shards"] = (replace(manifest.shards[0], name=name), *manifest.shards[1:])
    (shards / MANIFEST).write_bytes(dump_manifest(replace(manifest, **changes)))


def run(*argv: object) -> int:
    return cli.main([str(word) for word in argv])


def files_with_canary(folder: Path) -> list[str]:
    """Whole files below `folder`, not links, that hold the private text."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in paths if CANARY.encode() in path.read_bytes()]


def journal_record(record: Record) -> Callable[[Path], None]:
    return lambda place: append_line(journal_path(place / "run"), record)


def link(name: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        file = place / "run" / name
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        file.symlink_to(place.parent / "private")

    return make


def assert_one_line_after(act: Callable[[], int], capsys: pytest.CaptureFixture[str], code: int, *parts: str) -> None:
    capsys.readouterr()
    found = act()
    assert_one_line(capsys.readouterr().err, found, code, *parts)


def open_at(uri: str) -> Callable[[Path], None]:
    """The journal says that the run is tracked at `uri`."""

    def change(place: Path) -> None:
        path = journal_path(place / "run")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if "open" in line:
                line["open"]["uri"] = uri
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return change
