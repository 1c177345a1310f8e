import errno
import io
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.index import load_index, load_manifest
from pipeline.packing import PackConfig, pack, packed
from pipeline.sources import Source, open_source
from tests.conftest import PATTERNS, write_tree

CONFIG = PackConfig(32, shard_bytes=100_000)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(str(write_tree(tmp_path / "tree", 20, grey=False)))[0]


def quiet(_: int) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples(folder: Path) -> list[dict[str, bytes]]:
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(tars, shardshuffle=False))


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


def test_equal_input_gives_equal_bytes_whatever_the_threads(source: Source, tmp_path: Path) -> None:
    for threads in (1, 3):
        pack(source, str(tmp_path / f"{threads}"), PackConfig(32, shard_bytes=100_000, threads=threads), quiet)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_a_finished_pack_is_recognised_and_anything_else_is_refused(source: Source, tmp_path: Path) -> None:
    uri = str(tmp_path / "dst")
    assert packed(source, uri, CONFIG) is None
    manifest = pack(source, uri, CONFIG, quiet)
    assert packed(source, uri, CONFIG) == manifest == load_manifest(uri)
    with pytest.raises(ConfigError, match="--overwrite"):
        packed(source, uri, PackConfig(64))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("")
    with pytest.raises(ConfigError, match=r"holds me\.jpg"):
        packed(source, str(tmp_path / "photos"), CONFIG)


def test_packing_again_leaves_nothing_of_the_old(source: Source, tmp_path: Path) -> None:
    pack(source, str(tmp_path / "small"), PackConfig(32, shard_bytes=20_000), quiet)
    pack(source, str(tmp_path / "small"), CONFIG, quiet)
    pack(source, str(tmp_path / "fresh"), CONFIG, quiet)
    assert contents(tmp_path / "small") == contents(tmp_path / "fresh")


def test_leftovers_of_a_killed_pack_are_packed_over(source: Source, tmp_path: Path) -> None:
    pack(source, str(tmp_path / "dst"), CONFIG, quiet)
    whole = contents(tmp_path / "dst")
    (tmp_path / "dst" / "manifest.json").unlink()
    (tmp_path / "dst" / "000099.tar").write_bytes(b"stale")
    (tmp_path / "dst" / ".000001.tar.0123abcd.tmp").write_bytes(b"half")
    assert packed(source, str(tmp_path / "dst"), CONFIG) is None
    pack(source, str(tmp_path / "dst"), CONFIG, quiet)
    assert contents(tmp_path / "dst") == whole


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_corrupt_image_is_named_and_nothing_is_left(source: Source, tmp_path: Path, damage: str) -> None:
    victim = tmp_path / "tree" / "stripes" / "0007.png"
    data = victim.read_bytes()
    victim.write_bytes({"cut": data[: len(data) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"stripes/0007\.png.*replace or remove it") as caught:
        pack(source, str(tmp_path / "dst"), PackConfig(32, shard_bytes=20_000), quiet)
    assert len(str(caught.value).splitlines()) == 1
    assert os.listdir(tmp_path / "dst") == []


def test_a_vanished_image_is_named(source: Source, tmp_path: Path) -> None:
    (tmp_path / "tree" / "stripes" / "0007.png").unlink()
    with pytest.raises(DataError, match=r"stripes/0007\.png"):
        pack(source, str(tmp_path / "dst"), CONFIG, quiet)


def test_a_full_disk_leaves_nothing(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def full(_: int) -> None:
        if next(calls) == 8:  # in the midst of a later shard
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        pack(source, str(tmp_path / "dst"), PackConfig(32, shard_bytes=20_000), quiet)
    assert next(calls) == 9  # it gave up at once
    assert os.listdir(tmp_path / "dst") == []


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def pack_one(folder: Path, config: PackConfig) -> tuple[np.ndarray, int]:
    """The only image of a folder as stored, [H, W] or [H, W, 3], and the manifest's channels."""
    shutil.rmtree(folder / "dst", ignore_errors=True)
    manifest = pack(open_source(str(folder / "src"))[0], str(folder / "dst"), config, quiet)
    (sample,) = samples(folder / "dst")
    return np.asarray(Image.open(io.BytesIO(sample["png"]))), manifest.channels


def test_crop_takes_the_centred_square(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = 200  # the centre
    save(tmp_path / "src" / "a" / "x.png", Image.fromarray(pixels))
    stored, channels = pack_one(tmp_path, PackConfig(32))
    assert (stored.shape, channels) == ((32, 32, 3), 3)
    assert stored.min() > 180  # at its edge the filter sees a little of what lies outside


def test_pad_keeps_the_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (28, 20), np.uint8)
    save(tmp_path / "src" / "a" / "x.png", Image.fromarray(pixels))
    stored, channels = pack_one(tmp_path, PackConfig(32, fit="pad"))
    assert (stored.shape, channels) == ((32, 32), 1)
    np.testing.assert_array_equal(stored[2:30, 6:26], pixels)
    assert (stored == 0).sum() == 32 * 32 - 28 * 20
    with pytest.raises(ConfigError, match=r"a/x\.png is 20 x 28: too large for --resolution 16"):
        pack_one(tmp_path, PackConfig(16, fit="pad"))


def test_turned_photos_stand_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 250  # bright above, and the camera says: turn by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    save(tmp_path / "src" / "a" / "x.jpg", Image.fromarray(pixels), exif=exif, quality=95)
    stored, _ = pack_one(tmp_path, PackConfig(32))
    assert stored[:15].mean() < 10
    assert stored[17:].mean() > 240


def test_transparency_becomes_white_and_palettes_become_colours(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (32, 32), (10, 20, 30, 0))
    save(tmp_path / "src" / "a" / "x.png", clear)
    assert (pack_one(tmp_path, PackConfig(32))[0] == 255).all()
    save(
        tmp_path / "src" / "a" / "x.png",
        Image.new("RGB", (32, 32), (200, 100, 0)).convert("P", palette=Image.Palette.ADAPTIVE),
    )
    assert pack_one(tmp_path, PackConfig(32))[0][0, 0].tolist() == [200, 100, 0]


def test_pixels_of_16_bits_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "src" / "a" / "x.png", Image.fromarray(np.full((32, 32), 40_000, np.uint16)))
    with pytest.raises(DataError, match=r"a/x\.png has pixels of type I;16"):
        pack_one(tmp_path, PackConfig(32))


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
