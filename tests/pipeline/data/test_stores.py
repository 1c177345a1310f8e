"""The data path over real servers: what is read, indexed or replaced there is as on disk."""

import base64
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline import storage
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError
from pipeline.storage import RefusedError
from tests.support.loading import images, open_reader

Put = Callable[[Path], None]


@pytest.fixture(params=["http", "s3", "gs", "az"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Put]:
    """(a fresh folder on a server, how to put a file there)."""
    if request.param == "http":  # which nobody can write to but the machine that serves
        address, root = request.getfixturevalue("nginx")
        (root / tmp_path.name).mkdir()
        return f"{address}/{tmp_path.name}", lambda path: shutil.copy2(path, root / tmp_path.name)
    fixture = {"s3": "s3", "gs": "google", "az": "azure"}[request.param]
    server = request.getfixturevalue(fixture)
    uri = f"{server if isinstance(server, str) else server.uri}/{tmp_path.name}"
    return uri, lambda path: storage.write_bytes(storage.join(uri, path.name), path.read_bytes())


@pytest.mark.long
def test_images_are_those_on_disk_until_a_shard_is_replaced(shards: Path, store: tuple[str, Put], tmp_path: Path) -> None:
    uri, put = store
    for path in shards.iterdir():
        put(path)
    assert images(uri) == images(shards)
    found = open_reader(uri, capacity=1)
    found.image(0)
    other = Path(shutil.copy(shards / found.manifest.shards[0].name, tmp_path))
    data = bytearray(other.read_bytes())
    data[-1] ^= 1  # in the padding: every image is still right, the shard is not the one that was indexed
    other.write_bytes(data)
    os.utime(other, (0, 0))  # nginx's version is the time, in seconds, and the size
    put(other)
    with pytest.raises(DataError, match=r"000000\.tar is another file than when this process first read it"):
        for sample in range(found.manifest.samples):
            found.image(sample)
    found.close()


def test_tars_of_others_are_indexed_where_they_are(shards: Path, store: tuple[str, Put], tmp_path: Path) -> None:
    uri, put = store
    tars = sorted(shards.glob("*.tar"))
    for path in tars:
        put(path)
    names = tmp_path / "names.txt"
    names.write_text("bars\nblob\nchecks\nstripes\n")
    spec = f"{uri}/{{000000..{len(tars) - 1:06d}}}.tar"
    assert main(["index", spec, "--out", str(tmp_path / "out"), "--classes", str(names)]) == 0
    assert load_manifest(str(tmp_path / "out")).fingerprint == load_manifest(str(shards)).fingerprint
    assert main(["index", str(tmp_path / "out"), "--verify"]) == 0
    assert images(tmp_path / "out") == images(shards)


def test_wrong_credentials_are_named(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{azure}/there", b"data")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"of another account").decode())
    for act in (storage.read_bytes, storage.size, storage.names, storage.remove, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(RefusedError, match=r"refused the credentials \(403 .*\); check AZURE_STORAGE_ACCOUNT_NAME and"):
            act(f"{azure}/there")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "no base64")
    with pytest.raises(RefusedError, match="AZURE_STORAGE_ACCOUNT_KEY"):
        storage.read_bytes(f"{azure}/there")
