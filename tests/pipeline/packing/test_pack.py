import errno
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.manifest import load_manifest
from pipeline.data.shard_index import load_index
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.packing.pack import PackConfig, _order, pack, packed
from pipeline.packing.sources.base import Blocks
from pipeline.packing.sources.detect import Source, open_source
from tests.support.packing import CONFIG, SMALL, quiet, samples, save, stop_after, without_report
from tests.support.patterns import PATTERNS, write_tree


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(str(write_tree(tmp_path / "tree", 20, grey=False)))[0]


def test_every_image_is_packed_once_byte_for_byte_and_mixed(source: Source, tmp_path: Path) -> None:
    done: list[int] = []
    manifest = pack(source, str(tmp_path / "dst"), CONFIG, done.append)
    assert sum(done) == manifest.samples == 80
    assert len(manifest.shards) > 2
    stored = samples(tmp_path / "dst")
    expected = Counter((source.read(i), int(label)) for i, label in enumerate(source.labels))
    assert Counter((sample["png"], int(sample["cls"])) for sample in stored) == expected
    first = [int(sample["cls"]) for sample in stored[:20]]
    assert len(set(first)) == 4  # the folder came sorted by class


def test_equal_input_gives_equal_bytes_for_any_number_of_workers(source: Source, tmp_path: Path) -> None:
    for threads in (1, 3):
        pack(source, str(tmp_path / f"{threads}"), PackConfig(resolution=32, shard_bytes=100_000, workers=threads), quiet)
    assert without_report(tmp_path / "1") == without_report(tmp_path / "3")


def test_a_finished_pack_is_recognised_and_anything_else_is_refused(source: Source, tmp_path: Path) -> None:
    uri = str(tmp_path / "dst")
    assert packed(source, uri, CONFIG) is None
    manifest = pack(source, uri, CONFIG, quiet)
    assert packed(source, uri, CONFIG) == manifest == load_manifest(uri)
    with pytest.raises(ConfigError, match="--overwrite"):
        packed(source, uri, PackConfig(resolution=64))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("")
    with pytest.raises(ConfigError, match=r"holds me\.jpg"):
        packed(source, str(tmp_path / "photos"), CONFIG)


def test_packing_again_leaves_nothing_of_the_old(source: Source, tmp_path: Path) -> None:
    pack(source, str(tmp_path / "small"), PackConfig(resolution=32, shard_bytes=20_000), quiet)
    pack(source, str(tmp_path / "small"), CONFIG, quiet)
    pack(source, str(tmp_path / "fresh"), CONFIG, quiet)
    assert without_report(tmp_path / "small") == without_report(tmp_path / "fresh")


@pytest.mark.parametrize("images", [0, 1, 32, 64, 80])
@pytest.mark.parametrize("skip", [False, True])
def test_a_stopped_pack_goes_on_to_the_same_bytes(source: Source, tmp_path: Path, images: int, skip: bool) -> None:
    if skip:
        for i in (0, 3, 9, 17):
            (tmp_path / "tree" / "bars" / f"{i:04d}.png").write_bytes(b"no image")
        source = open_source(str(tmp_path / "tree"))[0]
    config = PackConfig(resolution=32, shard_bytes=20_000, skip_bad=skip, workers=2)
    pack(source, str(tmp_path / "whole"), config, quiet)
    stop_after(source, tmp_path / "dst", images, config)
    finished = [shard["name"] for shard in json.loads((tmp_path / "dst" / "pack.json").read_bytes())["shards"]]
    stale = f"{len(finished):06d}.tar"
    (tmp_path / "dst" / stale).write_bytes(b"written, and not yet listed")
    (tmp_path / "dst" / ".000001.tar.0123abcd.tmp").write_bytes(b"half")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "dst").glob("*.tar") if path.name != stale}
    assert packed(source, str(tmp_path / "dst"), config) is None
    done: list[int] = []
    pack(source, str(tmp_path / "dst"), config, done.append)
    assert sum(done) == 80
    assert without_report(tmp_path / "dst") == without_report(tmp_path / "whole")
    for name in finished:
        assert (tmp_path / "dst" / name).stat().st_mtime_ns == kept[name]
    reports = [json.loads((tmp_path / name / "report.json").read_bytes()) for name in ("dst", "whole")]
    for report in reports:
        assert len(report["rejected"]) == (4 if skip else 0)
        del report["seconds"], report["images_per_second"]
    assert reports[0] == reports[1]


def test_the_beginning_of_another_pack_is_refused(source: Source, tmp_path: Path) -> None:
    stop_after(source, tmp_path / "dst", 32)
    with pytest.raises(ConfigError, match=r"beginning of another pack.*--overwrite"):
        packed(source, str(tmp_path / "dst"), PackConfig(resolution=16, shard_bytes=20_000))
    os.utime(tmp_path / "tree" / "bars" / "0000.png", ns=(0, 0))
    with pytest.raises(ConfigError, match="the source has changed"):
        packed(open_source(str(tmp_path / "tree"))[0], str(tmp_path / "dst"), SMALL)


@pytest.mark.parametrize("change", [{"position": -2_000_000_000}, {"position": 65}, {"counts": [-64, 128, 0, 0]}])
def test_a_state_that_does_not_add_up_is_damaged(source: Source, tmp_path: Path, change: dict[str, object]) -> None:
    """With a position below zero packing had no end."""
    stop_after(source, tmp_path / "dst", 64)
    place = tmp_path / "dst" / "pack.json"
    place.write_text(json.dumps(json.loads(place.read_bytes()) | change))
    with pytest.raises(DataError, match=r"pack\.json is damaged: its counts contradict each other; add --overwrite"):
        packed(source, str(tmp_path / "dst"), SMALL)


@pytest.mark.parametrize("victim", ["000000.tar", "000000.tar.idx", "pack.json"])
def test_a_finished_shard_that_was_damaged_since_is_noticed(source: Source, tmp_path: Path, victim: str) -> None:
    stop_after(source, tmp_path / "dst", 64)
    data = (tmp_path / "dst" / victim).read_bytes()
    (tmp_path / "dst" / victim).write_bytes(data[:-1])
    with pytest.raises(DataError, match=rf"{victim}.*--overwrite"):
        packed(source, str(tmp_path / "dst"), SMALL)
    pack(source, str(tmp_path / "dst"), SMALL, quiet, resume=False)
    assert packed(source, str(tmp_path / "dst"), SMALL) is not None


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_corrupt_image_is_named_and_no_shard_is_left_half(source: Source, tmp_path: Path, damage: str) -> None:
    victim = tmp_path / "tree" / "stripes" / "0007.png"
    data = victim.read_bytes()
    victim.write_bytes({"cut": data[: len(data) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"stripes/0007\.png.*replace or remove it") as caught:
        pack(source, str(tmp_path / "dst"), SMALL, quiet)
    assert len(str(caught.value).splitlines()) == 1
    left = os.listdir(tmp_path / "dst")
    finished = json.loads((tmp_path / "dst" / "pack.json").read_bytes())["shards"] if left else []
    assert bool(finished) == ("finished shard" in str(caught.value))
    assert sorted(left) == sorted(
        [*(["pack.json"] if left else []), *(shard["name"] + end for shard in finished for end in ("", ".idx"))]
    )
    # The same command with --on-error skip goes on behind them.
    manifest = pack(source, str(tmp_path / "dst"), PackConfig(resolution=32, shard_bytes=20_000, skip_bad=True), quiet)
    assert manifest.samples == 79
    report = json.loads((tmp_path / "dst" / "report.json").read_bytes())
    assert [rejected["name"] for rejected in report["rejected"]] == ["stripes/0007.png"]
    assert len(report["rejected"][0]["reason"]) > 10


def test_a_failure_in_the_first_shard_leaves_nothing(source: Source, tmp_path: Path) -> None:
    (tmp_path / "tree" / "stripes" / "0007.png").unlink()
    with pytest.raises(DataError, match=r"stripes/0007\.png"):
        pack(source, str(tmp_path / "dst"), PackConfig(resolution=32), quiet)
    assert os.listdir(tmp_path / "dst") == []


def test_nothing_left_to_pack_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "src" / "a" / "x.png", Image.new("RGB", (32, 32))).write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"no image to pack; a/x\.png: it is in no format"):
        pack(open_source(str(tmp_path / "src"))[0], str(tmp_path / "dst"), PackConfig(resolution=32, skip_bad=True), quiet)
    assert os.listdir(tmp_path / "dst") == []


def test_a_full_disk_keeps_finished_shards_for_the_next_try(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal writes
        writes += 1
        if writes >= 18:  # in the midst of a later shard
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"disk is full.*[1-9]\d* finished shards? .* the same command continues"):
            pack(source, str(tmp_path / "dst"), SMALL, quiet)
    assert writes == 18  # it gave up at once
    assert not (tmp_path / "dst" / "manifest.json").exists()
    pack(source, str(tmp_path / "dst"), SMALL, quiet)
    pack(source, str(tmp_path / "fresh"), SMALL, quiet)
    assert without_report(tmp_path / "dst") == without_report(tmp_path / "fresh")


def test_one_colour_image_makes_the_set_rgb(tmp_path: Path) -> None:
    write_tree(tmp_path / "src", 2, grey=True)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "src" / "blob" / "red.png")
    manifest = pack(open_source(str(tmp_path / "src"))[0], str(tmp_path / "dst"), CONFIG, quiet)
    assert (manifest.channels, manifest.class_counts, manifest.classes) == (3, (2, 3, 2, 2), PATTERNS)


def test_packs_into_any_fsspec_uri(source: Source, tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}"
    manifest = pack(source, uri, CONFIG, quiet)
    assert load_manifest(uri) == manifest == packed(source, uri, CONFIG)
    assert sum(len(load_index(uri, shard)) for shard in manifest.shards) == 80


def test_the_report_counts_what_was_packed(tmp_path: Path) -> None:
    for name, size in (("a/x.png", (20, 40)), ("a/y.png", (64, 48)), ("b/z.png", (100, 100))):
        save(tmp_path / "src" / name, Image.new("RGB", size, "red"))
    source = open_source(str(tmp_path / "src"))[0]
    manifest = pack(source, str(tmp_path / "dst"), PackConfig(resolution=32, filter="box"), quiet)
    report = json.loads((tmp_path / "dst" / "report.json").read_bytes())
    assert report["classes"] == {"a": 2, "b": 1}
    assert report["originals"] == {
        "bytes": sum(path.stat().st_size for path in (tmp_path / "src").rglob("*.png")),
        "shorter_side": {"min": 20, "median": 48, "max": 100},
        "smaller_than_resolution": 1,
    }
    assert (report["images"], report["rejected"], report["recipe"]["filter"]) == (3, [], "box")
    assert report["seconds"] > 0
    assert manifest.source.startswith("32 px, cropped, box, png (")


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any),
    window=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_the_order_of_blocks_holds_each_image_once_and_few_blocks_at_a_time(lengths: list[int], window: int, seed: int) -> None:
    starts = np.cumsum([0, *lengths])
    count = int(starts[-1])
    source = Source(
        split="",
        classes=("a",),
        names=[""] * count,
        labels=np.zeros(count, np.int64),
        read=lambda i: b"",
        fingerprint="",
        blocks=Blocks(starts, window),
    )
    order = _order(source, seed)
    assert sorted(order.tolist()) == list(range(count))
    block = np.searchsorted(starts, order, side="right") - 1
    first = {b: int(np.flatnonzero(block == b)[0]) for b in np.unique(block)}
    last = {b: int(np.flatnonzero(block == b)[-1]) for b in first}
    assert all(sum(first[b] <= place <= last[b] for b in first) <= window for place in range(count))


def test_labels_without_a_class_are_refused(source: Source, tmp_path: Path) -> None:
    for label in (-1, 4):
        odd = replace(source, labels=np.where(np.arange(80) == 7, label, 0))
        with pytest.raises(ConfigError, match=rf"bars/0007\.png has the label {label}, and there are 4 classes"):
            packed(odd, str(tmp_path / "dst"), CONFIG)
