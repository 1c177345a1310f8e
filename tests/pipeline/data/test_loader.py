import contextlib
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from pipeline import storage
from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import load_manifest
from pipeline.data.order import Order, flips
from pipeline.data.quarantine import Quarantine
from pipeline.data.shard_index import load_index
from pipeline.errors import ConfigError, DataError
from pipeline.packing.pack import PackConfig, pack
from pipeline.packing.sources.detect import open_source
from tests.support.loading import joined, stream, take
from tests.support.patterns import write_tree
from tests.support.servers import S3Server

FIELDS = ("images", "labels", "samples", "epochs", "positions", "flips", "valid")


@pytest.mark.parametrize("kind", ["shards", "shards_grey"])
def test_webdataset_reads_the_same_images_and_labels(kind: str, request: pytest.FixtureRequest) -> None:
    uri = request.getfixturevalue(kind)
    manifest = load_manifest(str(uri))
    images, labels = load_all(DataConfig(uri=str(uri)), manifest)
    files = [str(uri / shard.name) for shard in manifest.shards]
    theirs = list(webdataset.WebDataset(files, shardshuffle=False))
    assert [int(sample["__key__"]) for sample in theirs] == list(range(256))
    assert [int(sample["cls"]) for sample in theirs] == labels.tolist()
    for ours, sample in zip(images.numpy(), theirs, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))
        np.testing.assert_array_equal(ours, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("rollbacks", [0, 3])
def test_batches_follow_the_order_and_hold_the_samples_they_name(shards: Path, rollbacks: int) -> None:
    manifest = load_manifest(str(shards))
    images, labels = load_all(DataConfig(uri=str(shards)), manifest)
    order = Order(manifest.shards, seed=1, rollbacks=rollbacks)
    for t, batch in enumerate(take(6, shards, flip=True, rollbacks=rollbacks)):  # more than two epochs
        epochs, samples = order.batch(t * 96, 96)
        step = batch.positions - t * 96
        assert sorted(step.tolist()) == list(range(96))
        assert batch.samples.tolist() == samples[step].tolist()
        assert batch.epochs.tolist() == epochs[step].tolist()
        assert torch.equal(batch.images, images[batch.samples])
        assert torch.equal(batch.labels, labels[batch.samples])
        assert batch.flips.tolist() == flips(1, batch.epochs.numpy(), batch.samples.numpy()).tolist()
        lanes = order.lanes(t * 96, 96)[step]
        assert (np.diff(lanes) >= 0).all()


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 96), (1, 8), (2, 12), (3, 32), (4, 8), (6, 4), (8, 4)])
def test_ranks_and_micro_batches_never_change_a_global_batch(shards: Path, world_size: int, micro_batch: int) -> None:
    options = {"world_size": world_size, "micro_batch": micro_batch, "position": 200, "flip": True}
    micro_steps = 3 * 96 // (world_size * micro_batch)
    ranks = [take(micro_steps, shards, rank=rank, **options) for rank in range(world_size)]
    whole = take(3, shards, position=200, flip=True)
    in_order = [ranks[rank][step] for step in range(micro_steps) for rank in range(world_size)]
    for field in FIELDS:
        assert torch.equal(joined(in_order, field), joined(whole, field)), field


def test_a_stream_goes_on_where_another_stopped(shards: Path) -> None:
    whole, rest = take(7, shards), take(3, shards, position=4 * 96)
    for field in FIELDS:
        assert torch.equal(joined(whole[4:], field), joined(rest, field)), field


def test_nothing_is_flipped_unless_asked(shards: Path) -> None:
    assert not joined(take(2, shards), "flips").any()


def test_a_batch_that_ranks_cannot_share_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match="must be a multiple of 64"):
        stream(shards, world_size=2, micro_batch=32)


def test_grey_shards_have_one_channel(shards_grey: Path) -> None:
    assert take(1, shards_grey)[0].images.shape == (96, 1, 32, 32)


def test_jpegs_of_the_right_size_are_kept_and_decoded(tmp_path: Path) -> None:
    write_tree(tmp_path / "png", 3, grey=False)
    for kind, (mode, quality) in {"RGB": ("RGB", 95), "grey": ("L", 95)}.items():
        for source in (tmp_path / "png").rglob("*.png"):
            target = tmp_path / "src" / kind / f"{source.parent.name}-{source.stem}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(source).convert(mode).save(target, quality=quality)
    (source_,) = open_source(str(tmp_path / "src"))
    manifest = pack(source_, str(tmp_path / "dst"), PackConfig(resolution=32), lambda _: None)
    images, labels = load_all(DataConfig(uri=str(tmp_path / "dst")), manifest)
    assert manifest.channels == 3
    stored = list(webdataset.WebDataset(str(tmp_path / "dst" / "000000.tar"), shardshuffle=False))
    originals = {path.read_bytes(): path for path in (tmp_path / "src").rglob("*.jpg")}
    assert {sample["jpg"] for sample in stored} == set(originals)  # byte for byte
    for image, label, sample in zip(images, labels, stored, strict=True):
        assert originals[sample["jpg"]].parent.name == manifest.classes[label]
        pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB")).transpose(2, 0, 1)
        assert np.abs(image.numpy().astype(int) - pixels).max() <= 4  # two decoders' rounding


def damaged(shards: Path, target: Path, damage: str) -> tuple[Path, str]:
    copy = Path(shutil.copytree(shards, target))
    name = load_manifest(str(copy)).shards[0].name
    data = bytearray((copy / name).read_bytes())
    if damage == "missing":
        (copy / name).unlink()
    elif damage == "cut in half":
        (copy / name).write_bytes(data[: len(data) // 2])
    elif damage == "zeroed":
        (copy / name).write_bytes(bytes(len(data)))
    else:
        position = data.index(b"IDAT") + 20
        data[position] ^= 1
        (copy / name).write_bytes(data)
    return copy, name


@pytest.mark.parametrize("damage", ["missing", "cut in half", "zeroed", "one bit"])
def test_a_damaged_shard_is_an_error_that_names_it(shards: Path, tmp_path: Path, damage: str) -> None:
    copy, name = damaged(shards, tmp_path / "copy", damage)
    with stream(copy) as batches:  # 256 samples allow no bad one
        with pytest.raises(DataError, match=f"{name}.*restore (the file, or pack again|the shard from a copy)"):
            list(islice(batches, 3))  # one epoch, less than which could miss it
        with pytest.raises(DataError, match=name):
            next(batches)


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut in half", "one bit"])
def test_a_bad_sample_keeps_its_slot(shards: Path, tmp_path: Path, damage: str) -> None:
    """Only what is damaged is replaced, by the same neighbour for every division into ranks, and recorded once."""
    copy, name = damaged(shards, tmp_path / "copy", damage)
    record = tmp_path / "quarantine.jsonl"
    options = {"bad_fraction": 0.6, "global_batch": 64}
    whole = take(8, shards, global_batch=64, micro_batch=64)
    with stream(copy, micro_batch=64, **options, quarantine=Quarantine(150, record)) as batches:
        mended = list(islice(batches, 8))
    for field in ("samples", "epochs", "positions"):
        assert torch.equal(joined(mended, field), joined(whole, field)), field
    valid, samples = joined(mended, "valid"), joined(mended, "samples")
    for field in ("images", "labels"):
        assert torch.equal(joined(mended, field)[valid], joined(whole, field)[valid]), field
    manifest = load_manifest(str(copy))
    lost = sorted(set(samples[~valid].tolist()))
    if damage == "one bit":
        assert len(lost) == 1
    else:  # all behind the cut, nothing in front of it
        index = load_index(str(copy), manifest.shards[0])
        ends = index["block"].astype(int) * 512 + index["length"]
        assert lost == np.flatnonzero(ends > manifest.shards[0].bytes // 2).tolist()
    recorded = [json.loads(line) for line in record.read_text().splitlines()]
    assert sorted(line["sample"] for line in recorded) == lost
    assert {line["shard"] for line in recorded} == {name}
    assert {int(line["key"]) for line in recorded} == set(lost) or damage == "cut in half"
    # What stands in is an image of the set, with the label of that image.
    images, labels = load_all(DataConfig(uri=str(shards)), load_manifest(str(shards)))
    known = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    found = zip(joined(mended, "images")[~valid], joined(mended, "labels")[~valid], strict=True)
    assert all(known[image.contiguous().numpy().tobytes()] == int(label) for image, label in found)
    halves = [take(8, copy, micro_batch=32, world_size=2, rank=rank, **options) for rank in (0, 1)]
    in_order = [halves[rank][step] for step in range(8) for rank in (0, 1)]
    for field in ("images", "labels", "valid"):
        assert torch.equal(joined(in_order, field), joined(mended, field)), field


def test_images_can_be_resampled_while_they_are_read(shards: Path) -> None:
    small, whole = take(1, shards, resolution=16)[0], take(1, shards)[0]
    assert small.images.shape == (96, 3, 16, 16)
    for ours, image in zip(small.images, whole.images, strict=True):
        wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(wanted))


def test_memory_is_used_again_only_when_nobody_holds_it(shards: Path) -> None:
    with stream(shards, micro_batch=32) as batches:
        held = [next(batches).images[:1] for _ in range(20)]
        copies = [image.clone() for image in held]
        places = {next(batches).images.data_ptr() for _ in range(40)}
        assert len(places) < 20
        assert places.isdisjoint(image.data_ptr() for image in held)
        assert all(torch.equal(image, copy) for image, copy in zip(held, copies, strict=True))


def reader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("read-ahead", "decode", "fetch"))]


def test_close_leaves_no_thread(shards: Path) -> None:
    with stream(shards) as batches:
        next(batches)
        assert reader_threads()
    assert not reader_threads()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


@pytest.mark.long
def test_a_process_that_forgets_to_close_still_ends(shards: Path) -> None:
    code = (
        "import sys; from pipeline.data.loader import *; from pipeline.data.manifest import load_manifest; u = sys.argv[1];"
        "s = DataLoader(DataConfig(uri=u), load_manifest(u), seed=0, global_batch=8, micro_batch=8, rank=0, world_size=1);"
        "print(next(s).labels.shape)"
    )
    command = [sys.executable, "-c", code, str(shards)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "torch.Size([8])\n", "")


def test_reading_ahead_is_bounded_and_waiting_is_counted(shards: Path) -> None:
    with stream(shards, read_ahead=2) as batches:
        next(batches)
        assert batches.waited > 0
        time.sleep(0.3)
        waited = batches.waited
        next(batches)
        assert batches.waited - waited < 0.1
        assert batches.bytes_read <= 2 * sum(shard.bytes for shard in load_manifest(str(shards)).shards)


@pytest.mark.long
def test_an_epoch_reads_each_byte_about_once(tmp_path: Path) -> None:
    """More runs than are kept: what is read twice is what the ends of lanes cut."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "src" / name).mkdir(parents=True)
        for i in range(400):
            noise = rng.integers(0, 256, (128, 128), np.uint8)  # 16 kB each
            Image.fromarray(noise).save(tmp_path / "src" / name / f"{i}.png", compress_level=0)
    (source,) = open_source(str(tmp_path / "src"))
    manifest = pack(source, str(tmp_path / "dst"), PackConfig(resolution=128, shard_bytes=4 << 20), lambda _: None)
    with stream(tmp_path / "dst", global_batch=80, micro_batch=80, read_ahead=1) as batches:
        samples = joined(list(islice(batches, 10)), "samples")
        assert sorted(samples.tolist()) == list(range(800))
        assert batches.bytes_read <= 1.5 * sum(shard.bytes for shard in manifest.shards)


def test_from_s3_as_from_disk(shards: Path, s3: S3Server) -> None:
    uri = f"{s3.uri}/stream"
    for path in shards.iterdir():
        storage.write_bytes(f"{uri}/{path.name}", path.read_bytes())
    theirs, ours = take(4, uri, flip=True), take(4, shards, flip=True)
    for field in FIELDS:
        assert torch.equal(joined(theirs, field), joined(ours, field)), field
    name = load_manifest(uri).shards[0].name
    storage.remove(f"{uri}/{name}")
    with contextlib.closing(stream(uri)) as batches, pytest.raises(DataError, match=f"{uri}/{name} is missing"):
        list(islice(batches, 3))
