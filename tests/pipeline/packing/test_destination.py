"""Where an index goes: nobody else's files are replaced, and its tars are found again after `cd` and `mv`."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import MANIFEST, load_manifest
from pipeline.data.shard_index import load_index
from pipeline.errors import ConfigError, DataError
from pipeline.packing import destination
from pipeline.packing.indexer import index_shards
from pipeline.packing.sample_rules import Rules
from pipeline.packing.tar_listing import find_shards
from pipeline.packing.verify import verify
from tests.support.packing import quiet
from tests.support.servers import S3Server
from tests.support.tars import GOOD, index_tars, picture_of, write_tar


def unread(tars: Path | str, out: Path | str | None = None) -> str:
    """The refusal of an index, during which no tar is read."""

    def read(samples: int, size: int) -> None:
        raise AssertionError("a tar was read")

    found = find_shards(str(tars))
    with pytest.raises(ConfigError) as caught:
        index_shards(found, str(out or found.folder), Rules(), 1, read)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar.idx", b"\0" * 72),
        ("a.tar.idx", b""),
        (MANIFEST, b'{"owner": "me", "version": 2}'),
        (MANIFEST, b"[]"),
        (MANIFEST, b"not JSON"),
        ("index-report.json", b"{}"),
    ],
)
def test_files_of_other_programs_stay(tmp_path: Path, name: str, content: bytes) -> None:
    write_tar(tmp_path / "t/a.tar", GOOD)
    (tmp_path / "t" / name).write_bytes(content)
    said = unread(tmp_path / "t")
    assert f"{name} would be replaced, but belongs to another program: add --out DIR" in said
    assert sorted(os.listdir(tmp_path / "t")) == sorted({"a.tar", name}) and (tmp_path / "t" / name).read_bytes() == content
    index_tars(tmp_path / "t", tmp_path / "o o")  # what the message advises
    assert load_manifest(str(tmp_path / "o o")).samples == 1
    if name == MANIFEST:
        with pytest.raises(ConfigError, match=r"is not a manifest of biggan .* `biggan index .*/t --out DIR` and name DIR"):
            load_manifest(str(tmp_path / "t"))


def test_an_earlier_index_is_replaced_but_not_that_of_other_shards(tmp_path: Path) -> None:
    for name in ("train-0.tar", "val-0.tar"):
        write_tar(tmp_path / name, GOOD)
    index_tars(tmp_path / "train-0.tar")
    before = (tmp_path / MANIFEST).read_bytes()
    assert "is that of other shards (train-0.tar, ...): add --out DIR" in unread(tmp_path / "val-0.tar")
    index_tars(tmp_path / "train-0.tar")
    assert (tmp_path / MANIFEST).read_bytes() == before
    (tmp_path / MANIFEST).write_bytes(before[:99])  # a damaged one is ours
    index_tars(tmp_path / "train-0.tar")
    (tmp_path / "train-0.tar").unlink()
    index_tars(tmp_path / "val-0.tar")
    assert load_manifest(str(tmp_path)).shards[0].name == "val-0.tar"


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/biggan/index"])
def test_a_place_that_cannot_be_written_is_noticed_before_reading(tmp_path: Path, out: str) -> None:
    write_tar(tmp_path / "t/a.tar", GOOD)
    (tmp_path / "file").touch()
    said = unread(tmp_path / "t", tmp_path / out)
    assert f"cannot write {tmp_path / out}: " in said and "add --out DIR to write the index elsewhere" in said
    assert sorted(os.listdir(tmp_path)) == ["file", "t"]


def test_http_takes_no_index(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HTTP is read only: add --out DIR"):
        destination.refuse_http("https://host/set")


def test_a_store_is_tried_and_left_as_it_was(tmp_path: Path, s3: S3Server) -> None:
    write_tar(tmp_path / "a.tar", GOOD)
    index_tars(tmp_path, f"{s3.uri}/probed")
    assert storage.names(f"{s3.uri}/probed") == ["a.tar.idx", "index-report.json", MANIFEST]
    assert load_manifest(f"{s3.uri}/probed").tars == str(tmp_path)
    with pytest.raises(ConfigError, match=r"add --out DIR to write the index elsewhere"):
        index_tars(tmp_path, "s3://no-such-bucket/x")


@pytest.mark.parametrize("out", ["tars", "./tars", "tars/", "{cwd}/tars", "link", "tars/../tars"])
def test_side_by_side_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    write_tar(tmp_path / "tars/a.tar", GOOD)
    (tmp_path / "link").symlink_to("tars")
    monkeypatch.chdir(tmp_path)
    index_tars("tars", out.format(cwd=tmp_path))
    (tmp_path / "tars").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    assert json.loads((tmp_path / "moved" / MANIFEST).read_text())["tars"] == ""
    assert len(load_all(DataConfig(uri=str(tmp_path / "moved")), load_manifest(str(tmp_path / "moved")))[1]) == 1


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/tars and data/idx, indexed from data/."""
    for i in (0, 1):
        write_tar(tmp_path / f"data/tars/{i}.tar", [("a.cls", b"%d" % i), ("a.png", picture_of(i))])
    monkeypatch.chdir(tmp_path / "data")
    index_tars("tars", "idx")
    return tmp_path / "data"


def seen(uri: Path | str) -> list[int]:
    return sorted(load_all(DataConfig(uri=str(uri)), load_manifest(str(uri)))[1].tolist())


def test_tars_are_found_after_cd_and_mv(apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = load_manifest("idx").fingerprint
    monkeypatch.chdir(tmp_path)
    assert seen("data/idx") == [0, 1]
    apart.rename(tmp_path / "elsewhere")  # both
    assert seen("elsewhere/idx") == [0, 1]
    shutil.move("elsewhere/tars", "data/tars")  # back, without the index
    assert seen("elsewhere/idx") == [0, 1]
    write_tar(tmp_path / "elsewhere/tars/0.tar", [*GOOD, ("more.txt", b"x" * 9000)])  # others in between
    assert seen("elsewhere/idx") == [0, 1]
    shutil.move("elsewhere/idx", "data/tars/idx")
    assert seen("data/tars/idx") == [0, 1]
    for name in ("0.tar", "1.tar"):
        shutil.move(f"data/tars/{name}", f"data/tars/idx/{name}")  # beside it
    assert seen("data/tars/idx") == [0, 1] and load_manifest("data/tars/idx").fingerprint == fingerprint


def test_tars_that_are_gone_are_named_with_their_manifest(apart: Path, tmp_path: Path) -> None:
    shutil.move(apart / "idx", tmp_path / "idx")
    shutil.rmtree(apart)
    with pytest.raises(DataError) as caught:
        load_manifest(str(tmp_path / "idx"))
    said = str(caught.value)
    assert f"{tmp_path}/idx/manifest.json says that the tars are in {apart}/tars, which is not there" in said
    assert f"`biggan index TARS --out {tmp_path}/idx`" in said


# As an earlier version wrote it for `biggan index tars --out idx` in data/: the fingerprint must stay what runs have noted.
OLD: dict[str, Any] = {
    "format": "biggan shards",
    "version": 2,
    "fingerprint": "6d3fbc2a8e4b4bd8bc2b9c1c37b1c7b5",
    "samples": 2,
    "shards": [
        {"name": "0.tar", "samples": 1, "bytes": 10240, "crc32c": 0, "index_crc32c": 0},
        {"name": "1.tar", "samples": 1, "bytes": 10240, "crc32c": 0, "index_crc32c": 0},
    ],
    "classes": ["0", "1"],
    "class_counts": [1, 1],
    "resolution": 16,
    "channels": 3,
    "tars": "tars",
    "source": "biggan index",
}


@pytest.mark.parametrize("cwd", ["data", "data/idx", "/"])
def test_manifests_of_an_earlier_version(apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cwd: str) -> None:
    manifest = json.loads((apart / "idx" / MANIFEST).read_text())
    old = OLD | {"shards": manifest["shards"], "fingerprint": manifest["fingerprint"]}
    assert manifest == old | {"tars": str(apart / "tars"), "tars_from_here": "../tars"}  # nothing else has changed
    (apart / "idx" / MANIFEST).write_text(json.dumps(old))
    monkeypatch.chdir(tmp_path / cwd)
    assert seen(apart / "idx") == [0, 1] and verify(str(apart / "idx"), 1, quiet) == []
    shutil.move(apart / "tars", apart / "idx/tars")
    assert seen(apart / "idx") == [0, 1]
    shutil.move(apart / "idx/tars", tmp_path / "tars elsewhere")
    with pytest.raises(DataError, match=r"idx/manifest.json says that the tars are in tars, which is not there: move them"):
        load_manifest(str(apart / "idx"))


def test_advice_by_who_wrote_the_shards(apart: Path, shards: Path, tmp_path: Path) -> None:
    manifest = load_manifest(str(apart / "idx"))
    (apart / "idx/0.tar.idx").unlink()
    with pytest.raises(DataError, match=r"restore it, or index the tars again with `biggan index .*/tars --out .*/idx`"):
        load_index(str(apart / "idx"), manifest.shards[0], manifest.source, manifest.tars)
    for folder, advice in ((apart / "idx", "biggan index"), (shards, "biggan shard SRC")):
        document = json.loads((folder / MANIFEST).read_text())
        (tmp_path / MANIFEST).write_text(json.dumps(document | {"samples": 7, "resolution": 99}))
        with pytest.raises(DataError) as caught:
            load_manifest(str(tmp_path))
        assert advice in str(caught.value) and ("--overwrite" in str(caught.value)) == (folder == shards)


def test_a_folder_of_tars_leads_to_the_index(tmp_path: Path) -> None:
    write_tar(tmp_path / "my tars/a.tar", GOOD)
    with pytest.raises(ConfigError) as caught:
        load_manifest(str(tmp_path / "my tars"))
    assert f"index the 1 tar there with `biggan index '{tmp_path}/my tars'`" in str(caught.value)
    with pytest.raises(ConfigError, match=r"index the tars below it with `biggan index '.*/my tars'`"):
        load_manifest(str(tmp_path))
