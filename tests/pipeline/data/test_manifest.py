import json
import shutil
import tarfile
from pathlib import Path

import google_crc32c
import pytest

from pipeline.data.manifest import load_manifest
from pipeline.data.shard_index import index_name, load_index
from pipeline.errors import ConfigError, DataError


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def test_manifest_says_what_the_shards_hold(shards: Path) -> None:
    manifest = load_manifest(str(shards))
    assert manifest.samples == 256
    assert manifest.classes == ("bars", "blob", "checks", "stripes")
    assert manifest.class_counts == (64, 64, 64, 64)
    assert (manifest.resolution, manifest.channels) == (32, 3)
    assert len(manifest.fingerprint) == 32


def test_index_points_at_the_members_that_tarfile_finds(shards: Path) -> None:
    manifest = load_manifest(str(shards))
    for shard in manifest.shards:
        index = load_index(str(shards), shard)
        with tarfile.open(shards / shard.name) as tar:
            members = tar.getmembers()
            labels = [int(tar.extractfile(m).read()) for m in members if m.name.endswith(".cls")]  # type: ignore[union-attr]
            images = [m for m in members if not m.name.endswith(".cls")]
            assert index["label"].tolist() == labels
            assert (index["block"] * 512).tolist() == [m.offset_data for m in images]
            assert index["length"].tolist() == [m.size for m in images]
            data = [tar.extractfile(m).read() for m in images]  # type: ignore[union-attr]
            assert index["crc"].tolist() == [google_crc32c.value(d) for d in data]
        assert shard.crc32c == google_crc32c.value((shards / shard.name).read_bytes())


def test_no_shards_names_the_command_or_the_splits(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="biggan shard SRC"):
        load_manifest(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=f"name one of its splits: {copy}"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize("uri", ["s3://bucket/train-{000..127}.tar", "pipe:cat x.tar", "x/000.tar"])
def test_names_of_tars_lead_to_the_index(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"biggan index .* --out DIR"):
        load_manifest(uri)


@pytest.mark.parametrize("damage", ["cut", "edited", "older"])
def test_a_damaged_manifest_is_refused(copy: Path, damage: str) -> None:
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    if damage == "cut":
        path.write_text(path.read_text()[:100])
    elif damage == "edited":
        path.write_text(json.dumps(document | {"resolution": 64}))
    else:
        path.write_text(json.dumps(document | {"version": 0}))
    with pytest.raises(ConfigError if damage == "older" else DataError, match="pack again"):
        load_manifest(str(copy))


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped bit"])
def test_a_damaged_index_is_refused(copy: Path, damage: str) -> None:
    shard = load_manifest(str(copy)).shards[0]
    path = copy / index_name(shard.name)
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-16])
    else:
        data[100] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        load_index(str(copy), shard)
