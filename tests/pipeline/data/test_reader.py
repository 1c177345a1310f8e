import os
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.servers.faults import Plan, serve_with_faults
from benchmarks.servers.latency import Handler, Server
from pipeline import storage
from pipeline.data import hedge, shard_files
from pipeline.data.disk_cache import Cache
from pipeline.data.manifest import load_manifest
from pipeline.data.quarantine import BadSampleError
from pipeline.data.shard_index import index_name, load_index
from pipeline.errors import DataError, StorageError
from pipeline.storage import object_stores
from tests.support.loading import images, open_reader


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.mark.parametrize("capacity", [1, 3, 1000])
def test_nothing_but_speed_depends_on_the_capacity(shards: Path, capacity: int) -> None:
    manifest = load_manifest(str(shards))
    wanted = []
    for shard in manifest.shards:
        tar = (shards / shard.name).read_bytes()
        wanted += [tar[512 * row["block"] :][: row["length"]] for row in load_index(str(shards), shard)]
    assert images(shards, capacity=capacity) == wanted


@pytest.mark.long
def test_what_is_read_once_stays(served: str) -> None:
    found = open_reader(served)
    for _ in range(3):
        for i in range(256):
            found.image(i)
    found.close()
    assert found.bytes_read <= sum(shard.bytes for shard in found.manifest.shards)


def test_keys_are_read_from_the_shard(shards: Path) -> None:
    found = open_reader(shards)
    assert [found.files.key(i) for i in (0, 17, 255)] == ["000000000", "000000017", "000000255"]
    found.close()


def test_a_key_is_read_from_a_header_of_a_tar_alone(copy: Path) -> None:
    """What else an index may point to is not shown: a private file that took the shard's name."""
    found = open_reader(copy)
    path = copy / found.manifest.shards[0].name
    block = int(load_index(str(copy), found.manifest.shards[0])[5]["block"])
    data = bytearray(path.read_bytes())
    data[512 * (block - 1) : 512 * block] = b"-----BEGIN PRIVATE KEY-----\n".ljust(512, b"x")
    path.write_bytes(bytes(data))
    assert found.files.key(5) == "5"
    found.close()
    header = tarfile.TarInfo("\x1b[31mred\n" + "\x1b" * 80 + ".png").tobuf(tarfile.USTAR_FORMAT)
    data[512 * (block - 1) : 512 * block] = header
    path.write_bytes(bytes(data))
    found = open_reader(copy)
    assert found.files.key(5).startswith(r"\x1b[31mred\n\x1b\x1b") and len(found.files.key(5)) == 100
    found.close()


def test_a_flipped_bit_is_read_again_and_then_bad(copy: Path) -> None:
    shard = load_manifest(str(copy)).shards[0]
    row = load_index(str(copy), shard)[5]
    data = bytearray((copy / shard.name).read_bytes())
    data[512 * row["block"] + 20] ^= 1
    (copy / shard.name).write_bytes(data)
    found = open_reader(copy)
    with pytest.raises(BadSampleError, match=r"sample 5 \(000000005\): it does not have its checksum"):
        found.image(5)
    read = found.bytes_read
    with pytest.raises(BadSampleError):
        found.image(5)
    assert found.bytes_read == read  # not once more
    assert found.image(4).label == 0 or found.image(4).data
    found.close()


def test_every_cut_costs_only_what_is_behind_it(copy: Path) -> None:
    """At every 997th byte: images in front of the cut are right, those behind it are bad, and say why."""
    shard = load_manifest(str(copy)).shards[0]
    rows = load_index(str(copy), shard)
    whole = (copy / shard.name).read_bytes()
    ends = rows["block"].astype(int) * 512 + rows["length"]
    for size in range(0, len(whole), len(whole) // 40):
        (copy / shard.name).write_bytes(whole[:size])
        found = open_reader(copy)
        for i in (0, int(np.searchsorted(ends, size)) - 1, int(np.searchsorted(ends, size)), len(rows) - 1):
            if not 0 <= i < len(rows):
                continue
            if ends[i] <= size:
                assert found.image(i).data == whole[512 * rows[i]["block"] : ends[i]]
            else:
                with pytest.raises(BadSampleError, match=f"has {size:,} bytes instead of {len(whole):,}"):
                    found.image(i)
        found.close()


@pytest.mark.long
def test_a_shard_that_changes_is_an_error(copy: Path) -> None:
    found = open_reader(copy, capacity=1)
    found.image(0)
    path = copy / found.manifest.shards[0].name
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(DataError, match="another file than when this process first read it"):
        for i in range(256):
            found.image(i)
    found.close()


def test_a_shard_that_was_replaced_is_read_as_it_was_while_it_is_open(copy: Path) -> None:
    wanted = images(copy)
    found = open_reader(copy)
    found.image(0)
    for shard in found.manifest.shards:
        storage.write_bytes(str(copy / shard.name), bytes(shard.bytes))  # another file in its place
    assert [found.image(i).data for i in range(4)] == wanted[:4]
    found.close()


def test_what_is_missing_is_named(copy: Path) -> None:
    manifest = load_manifest(str(copy))
    (copy / index_name(manifest.shards[0].name)).unlink()
    found = open_reader(copy)
    with pytest.raises(DataError, match=r"000000.tar.idx is missing"):
        found.image(0)
    found.close()


@pytest.fixture
def served(shards: Path) -> Iterator[str]:
    """The shards over HTTP."""
    server = Server(("127.0.0.1", 0), partial(Handler, shards.resolve(), 0.0))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_a_cache_saves_reading_and_a_damaged_entry_is_read_again(served: str, tmp_path: Path, shards: Path) -> None:
    wanted = images(shards)
    cache = Cache(str(tmp_path / "cache"), 1 << 30)
    assert images(served, cache=cache) == wanted
    found = open_reader(served, cache=cache)
    assert found.image(3).data == wanted[3] and found.bytes_read == 0
    found.close()
    for path in cache.folder.iterdir():
        if path.stat().st_size:
            path.write_bytes(b"junk" + path.read_bytes()[4:])
    assert images(served, cache=cache) == wanted


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 2.0)
    monkeypatch.setattr(shard_files, "PATIENCE", 2.0)


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
def test_a_dead_store_is_an_error_after_a_bounded_time(shards: Path) -> None:
    dead = threading.Event()

    class Dying(Handler):
        def do_GET(self) -> None:
            if dead.is_set():
                self.close_connection = True
            else:
                super().do_GET()

    server = Server(("127.0.0.1", 0), partial(Dying, shards.resolve(), 0.0))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    found = open_reader(f"http://127.0.0.1:{server.server_port}", capacity=1)
    found.image(0)
    dead.set()
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot read http://127.*\(asked again for \d+ s\)"):
        found.image(255)
    assert time.monotonic() - began < 60
    found.close()
    server.shutdown()
    server.server_close()


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_store_that_fails_now_and_then_changes_nothing(shards: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(shard_files, "PATIENCE", 60.0)
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 60.0)  # the manifest is read before there is a reader
    plan = Plan(seed, share=0.3, stall=1.5)
    server = serve_with_faults(shards, plan)
    assert images(f"http://127.0.0.1:{server.server_port}", capacity=10) == images(shards)
    assert sum(plan.faults.values()) >= 5
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_a_late_answer_is_asked_for_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: of all requests, the 20th hangs until the end of the test; a second one brings the bytes."""
    monkeypatch.setattr(hedge, "_LEAST", 0.2)
    over = threading.Event()
    requests = iter(range(10**6))

    class Hanging(Handler):
        def do_GET(self) -> None:
            if self.path.endswith(".tar") and "Range" in self.headers and next(requests) == 20:
                over.wait(60)
            super().do_GET()

    server = Server(("127.0.0.1", 0), partial(Hanging, shards.resolve(), 0.0))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    found = open_reader(f"http://127.0.0.1:{server.server_port}", capacity=1)
    runs = np.tile(found.order.starts[:-1], 8)[:40]
    for sample in runs.tolist():
        found.image(int(sample))
    assert found.hedged >= 1
    over.set()
    found.close()
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_a_store_that_refuses_is_not_asked_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Handler):
        def do_GET(self) -> None:
            if "Range" in self.headers:
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                super().do_GET()

    server = Server(("127.0.0.1", 0), partial(Refusing, shards.resolve(), 0.0))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    found = open_reader(f"http://127.0.0.1:{server.server_port}")
    began = time.monotonic()
    with pytest.raises(storage.RefusedError, match=r"the server refused it \(403 Forbidden\)"):
        found.image(0)
    assert time.monotonic() - began < 10
    found.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("uri", ["s3://bucket/x", "az://container/x", "abfs://c@account.dfs.core.windows.net/x"])
def test_no_credentials(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """Without any, on a machine that no cloud gives some: at once, by the names of the variables."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(object_stores, "REQUEST_SECONDS", 1.0)
    with pytest.raises(storage.RefusedError, match=r"no credentials; set A.*, or A.*_SKIP_SIGNATURE=true for public data"):
        storage.read_bytes(uri)
