"""Data that cannot be used, as a user meets them: one line that says what to do, its exit code, nothing half written."""

import http.server
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from jobs.cli import main
from pipeline.data.manifest import load_manifest
from pipeline.data.shard_index import ROW
from pipeline.storage import object_stores
from tests.support.loading import joined, take
from tests.support.mistakes import refusal
from tests.support.patterns import write_tree
from tests.support.tars import GOOD, picture_of, write_tar
from tests.support.tiny_runs import TINY, assert_one_line, disk


@pytest.fixture
def tiny(tmp_path: Path, shards: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": {"uri": str(shards)}}))
    return str(tmp_path / "tiny.yaml")


TWO = [("b.cls", b"0"), ("b.png", picture_of(0))]


@pytest.mark.parametrize(
    ("files", "flags", "code", "says"),
    [
        ([("a.cls", b"\xff\xfe"), GOOD[1]], [], 65, "sample a has a label in .cls that cannot be read"),
        ([("a.cls", b""), GOOD[1]], [], 78, "sample a has no label among cls, png: add --label"),
        ([("a.json", b"{"), GOOD[1]], ["--label", "json:x"], 65, "sample a has a label in .json that cannot be read"),
        ([*GOOD, ("b.cls", b"cat"), TWO[1]], [], 78, "sample b has the label 'cat', and others have numbers"),
        ([*GOOD, ("b.cls", b"2"), TWO[1]], ["--classes", "NAMES"], 78, "the label '2', but --classes has 2 names"),
        ([*GOOD, ("b.cls", b"-1"), TWO[1]], ["--classes", "NAMES"], 78, "the label '-1', which is below 0"),
        ([("a.cls", b"99999999"), GOOD[1]], [], 78, "2 numbers from 1 to 99999999"),
        ([*GOOD, *TWO, *GOOD], [], 65, "sample a is a second one with this key: write the shard again"),
        ([*GOOD, ("../../b.cls", b"0"), ("../../b.png", b"")], [], 65, "'../../b.cls', which points outside"),
        ([*GOOD, ("/etc/b.png", b"")], [], 65, "'/etc/b.png', which points outside"),
        ([("a.cls", b"1"), ("a.png", picture_of(1, 12_000, 9_000, mode="1"))], [], 65, "12000 x 9000 pixels are more than"),
    ],
)
@pytest.mark.filterwarnings("ignore:Image size")
def test_tars_that_cannot_be_indexed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[tuple[str, bytes]], flags: list[str], code: int, says: str
) -> None:
    """One good shard does not make up for a bad one: neither gets an index."""
    (tmp_path / "names.txt").write_text("x\ny\n")
    write_tar(tmp_path / "tars/000.tar", [("z.json", b'{"x": 1}'), *((name.replace("a.", "z."), data) for name, data in GOOD)])
    write_tar(tmp_path / "tars/001.tar", files)
    flags = [str(tmp_path / "names.txt") if flag == "NAMES" else flag for flag in flags]
    found, line = refusal(capsys, "index", str(tmp_path / "tars"), *flags)
    assert found == code and line.startswith("biggan: error: ") and says in line
    assert sorted(os.listdir(tmp_path / "tars")) == ["000.tar", "001.tar"]


def test_a_bomb_and_a_path_out_of_a_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_tree(tmp_path / "tree", 1, grey=False)
    for name, path, content, code, says in (
        ("bomb", "blob/zero.png", bytes(80 << 20), 65, "zip bomb"),
        ("path", "../blob/x.png", b"", 78, "has a member '../blob/x.png'"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(tree / "bars/0000.png", "bars/0000.png")
            archive.writestr(path, content)
        dst = tmp_path / f"dst-{name}"
        found, line = refusal(capsys, "shard", str(tmp_path / f"{name}.zip"), str(dst), "--resolution", "32")
        assert found == code and says in line
        assert not (dst / "manifest.json").exists() and not list(dst.glob("*.tar*"))


def test_shards_of_others_with_a_path_that_leads_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "src/000.tar", [("../x.cls", b"1"), ("../x.png", picture_of(1))])
    for command in (["index", "SRC"], ["shard", "SRC", "DST", "--resolution", "16"]):
        places = {"SRC": str(tmp_path / "src"), "DST": str(tmp_path / "dst")}
        code, line = refusal(capsys, *(places.get(part, part) for part in command))
        assert code in (65, 78) and line.startswith("biggan: error: ")
    assert os.listdir(tmp_path / "src") == ["000.tar"] and not (tmp_path / "dst").exists()


def test_fewer_images_than_a_batch(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", tiny, f"run={tmp_path / 'run'}", "batch.global_batch=512"])
    assert_one_line(capsys.readouterr().err, code, 78, "batch.global_batch=512", "256 images", "set batch.global_batch=256")
    assert not (tmp_path / "run").exists()


CLOUDS = ("AWS_", "AZURE_", "GOOGLE_")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, as on a machine that no cloud gives some."""
    for name in [name for name in os.environ if name.startswith(CLOUDS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(object_stores, "REQUEST_SECONDS", 1.0)


@pytest.mark.long
@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("uri", "variable"),
    [("s3://b/set", "AWS_ACCESS_KEY_ID"), ("gs://b/set", "GOOGLE_APPLICATION_CREDENTIALS"), ("az://b/set", "AZURE_STORAGE")],
)
def test_no_credentials(
    tiny: str,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    uri: str,
    variable: str,
) -> None:
    run = tmp_path / "run"
    for command in (["index", uri], ["train", tiny, f"run={run}", f"data.uri={uri}"], ["shard", str(shards), uri]):
        code = main([*command, "--keep"] if command[0] == "shard" else command)
        assert_one_line(
            capsys.readouterr().err, code, 78, f"cannot {'list' if command[0] != 'train' else 'read'} {uri}", variable
        )
    assert not run.exists()


class _ElsewhereS3(http.server.BaseHTTPRequestHandler):
    """A bucket in another region, as S3 answers: 301 without an address to unsigned and HEAD requests, else 400."""

    def __init__(self, form: str, *args: object) -> None:
        self._form = form
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        moved = self._form == "PermanentRedirect" or self.command == "HEAD"
        message = f"<?xml version='1.0'?><Error><Code>{self._form}</Code><Region>eu-west-1</Region></Error>".encode()
        body = b"" if self.command == "HEAD" else message
        self.send_response(301 if moved else 400)
        self.send_header("x-amz-bucket-region", "eu-west-1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_PUT = do_GET

    def log_message(self, *message: object) -> None:
        """Nothing."""


@pytest.fixture(params=["PermanentRedirect", "AuthorizationHeaderMalformed"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_ElsewhereS3, request.param))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.long
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("command", [["index", "s3://b/set"], ["index", "s3://b/{0..3}.tar"], ["train"], ["shard"]])
def test_a_bucket_in_another_region(
    tiny: str,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    more = {"train": [tiny, f"run={tmp_path / 'run'}", "data.uri=s3://b/set"], "shard": [str(shards), "s3://b/set", "--keep"]}
    code = main([*command, *more.get(command[0], [])])
    assert_one_line(capsys.readouterr().err, code, 78, "s3://b/", "its bucket is in another region; set AWS_REGION")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_cache_on_a_full_disk_is_done_without(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It fills up while images are read: they are all right, and it is said once."""
    with disk(tmp_path / "disk", "256k") as folder:
        for cache in (None, str(folder), str(folder)):  # the last one finds what fitted
            batches = take(6, shards, cache=cache)
            if cache is None:
                wanted = joined(batches, "images")
            assert torch.equal(joined(batches, "images"), wanted) and joined(batches, "valid").all()
            said = capsys.readouterr().err
            assert said.count("the disk is full; going on without keeping more") == said.count("\n") == (cache is not None)
        kept = folder / "biggan-cache"
        assert not list(kept.glob("*.tmp")) and len(list(kept.iterdir())) > 1


def test_an_index_of_another_shard(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of as many images and bytes, the images in another order: found where it is read, before a label is used."""
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    first = copy / f"{load_manifest(str(copy)).shards[0].name}.idx"
    data = first.read_bytes()
    rows = np.frombuffer(data, ROW, offset=32)[::-1]
    first.write_bytes(data[: len(data) - rows.nbytes] + rows.tobytes())
    assert main(["index", str(copy), "--verify"]) == 65
    assert f"{first.name} is damaged or of another pack" in capsys.readouterr().err
    code, line = refusal(capsys, "doctor", "--data", str(copy), "--seconds", "1")
    assert code == 65 and f"{first.name} is damaged or of another pack: restore it, or pack again" in line
