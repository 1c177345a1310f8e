import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.packing.pack import PackConfig, pack
from pipeline.packing.sources import shards
from pipeline.packing.sources.detect import open_source
from tests.support.patterns import PATTERNS, write_tree
from tests.support.servers import S3Server


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three or more shards of several stretches each."""
    monkeypatch.setattr(shards, "_STRETCH", 8 << 10)
    source = open_source(str(write_tree(tmp_path / "tree", 20, grey=False)))[0]
    assert len(pack(source, str(tmp_path / "shards"), PackConfig(resolution=32, shard_bytes=60_000), lambda _: None).shards) > 2
    return tmp_path / "shards"


def pixels(folder: Path) -> Counter[tuple[int, bytes]]:
    (source,) = open_source(str(folder))
    images = [Image.open(io.BytesIO(source.read(i))) for i in range(len(source.labels))]  # type: ignore[arg-type]
    return Counter((int(label), image.tobytes()) for label, image in zip(source.labels, images, strict=True))


def test_shards_have_the_images_that_went_in(packed: Path, tmp_path: Path) -> None:
    (tree,), (source,) = open_source(str(tmp_path / "tree")), open_source(str(packed))
    assert source.classes == tree.classes == PATTERNS
    expected = Counter((int(label), tree.read(i)) for i, label in enumerate(tree.labels))
    assert Counter((int(label), source.read(i)) for i, label in enumerate(source.labels)) == expected
    assert source.blocks is not None
    assert len(source.blocks.starts) > 2 * len(load_manifest(str(packed)).shards)


def test_shards_are_packed_again_at_another_resolution(packed: Path, tmp_path: Path) -> None:
    (source,) = open_source(str(packed))
    manifest = pack(source, str(tmp_path / "small"), PackConfig(resolution=16, filter="box"), lambda _: None)
    assert (manifest.resolution, manifest.samples, manifest.class_counts) == (16, 80, (20,) * 4)
    (tree,) = open_source(str(tmp_path / "tree"))
    pack(tree, str(tmp_path / "direct"), PackConfig(resolution=16, filter="box"), lambda _: None)
    assert pixels(tmp_path / "small") == pixels(tmp_path / "direct")


def test_splits_and_stores(packed: Path, tmp_path: Path, s3: S3Server) -> None:
    (source,) = open_source(str(packed))
    uri = f"{s3.uri}/again"
    pack(source, f"{uri}/train", PackConfig(resolution=32), lambda _: None)
    pack(source, f"{uri}/val", PackConfig(resolution=32), lambda _: None)
    sources = open_source(uri)
    assert [found.split for found in sources] == ["train", "val"]
    images = Counter(source.read(i) for i in range(80))
    assert all(Counter(found.read(i) for i in range(80)) == images for found in sources)


def test_damaged_bytes_are_never_packed(packed: Path) -> None:
    (source,) = open_source(str(packed))
    tar = packed / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[2000] ^= 1
    tar.write_bytes(data)
    bad = []
    for i in range(80):
        try:
            source.read(i)
        except DataError as error:
            bad.append(str(error))
    assert len(bad) == 1
    assert "000001.tar, sample 0 does not have its checksum" in bad[0]


def test_shards_of_others_are_sent_to_the_indexer(packed: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    shutil.copy(packed / "000000.tar", foreign)
    for place in (str(foreign), str(foreign / "000000.tar"), f"{foreign}/{{000000..000003}}.tar"):
        with pytest.raises(ConfigError, match=r"biggan index .* --out DST"):
            open_source(place)


def test_a_damaged_index_is_named(packed: Path) -> None:
    index = packed / "000001.tar.idx"
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"000001\.tar\.idx is damaged"):
        open_source(str(packed))


def test_stretches_cover_each_image_once(packed: Path) -> None:
    (source,) = open_source(str(packed))
    assert source.blocks is not None
    lengths = np.diff(source.blocks.starts)
    assert (lengths > 0).all()
    assert lengths.sum() == 80


def test_shards_packed_into_their_source_do_not_hide_its_images(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "a tree", 1, grey=False)
    pack(open_source(str(tree))[0], str(tree / "out"), PackConfig(resolution=8), lambda _: None)
    with pytest.raises(ConfigError, match=r"holds shards \(out/manifest.json\) and images in folders") as refused:
        open_source(str(tree))
    assert f"`biggan shard '{tree}/out' DST`" in str(refused.value)
    assert len(open_source(str(tree / "out"))[0].labels) == len(PATTERNS)


def test_a_source_may_be_a_file_uri_or_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_tree(tmp_path / "a tree", 1, grey=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (tree.as_uri(), "~/a tree"):
        assert open_source(place)[0].classes == PATTERNS
