import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline import storage
from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.packing.sample_rules import Rules
from pipeline.packing.tar_listing import find_shards
from pipeline.packing.tar_samples import key_of
from pipeline.packing.verify import verify
from tests.support.packing import quiet
from tests.support.servers import S3Server
from tests.support.tars import GOOD, index_tars, labels_of, picture_of, write_tar


def test_packed_shards_are_indexed_as_they_were_packed(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    before = load_manifest(str(copy))
    found, report = index_tars(copy, classes=before.classes)
    assert report["faults"] == [] and found.fingerprint == before.fingerprint
    assert found == replace(before, source=found.source)
    for path in shards.glob("*.idx"):
        assert (copy / path.name).read_bytes() == path.read_bytes()
    assert verify(str(copy), 2, quiet) == []


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_images_and_labels_are_those_that_webdataset_reads(tmp_path: Path, form: int) -> None:
    rng = np.random.default_rng(0)
    for shard in range(3):
        files = []
        for i in range(9):
            key = f"{'deep/' * (shard * 8)}s{i}"
            kind, extension = [("JPEG", "jpg"), ("PNG", "PNG"), ("WEBP", "webp")][i % 3]
            sample = [
                (f"{key}.cls", f"{i % 4}\n".encode()),
                (f"{key}.{extension}", picture_of(i % 4, 20 + i, 30, kind)),
                (f"{key}.txt", b"t"),
            ]
            files += [sample[j] for j in rng.permutation(3)]
        write_tar(tmp_path / f"{shard}.tar", files, form)
    manifest, _ = index_tars(tmp_path)
    assert (manifest.samples, manifest.resolution, manifest.channels) == (27, None, 3)
    assert manifest.classes == ("0", "1", "2", "3") and sum(manifest.class_counts) == 27
    theirs = list(webdataset.WebDataset([str(tmp_path / f"{i}.tar") for i in range(3)], shardshuffle=False))
    assert labels_of(tmp_path) == [int(sample["cls"]) for sample in theirs]
    images, labels = load_all(DataConfig(uri=str(tmp_path), resolution=16), manifest)
    assert labels.tolist() == labels_of(tmp_path) and images.shape == (27, 3, 16, 16)
    wanted = np.array([[40 * label, 100, 255 - 40 * label] for label in labels.tolist()])
    assert np.abs(images.float().mean((2, 3)).numpy() - wanted).max() < 6


@given(st.text(st.sampled_from("ab./_ü\\"), min_size=1, max_size=12))
@settings(max_examples=300)
def test_keys_are_webdatasets(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        with pytest.raises(DataError, match="points outside"):
            key_of(path, "x.tar")
        return
    theirs = base_plus_ext(path)
    ours = key_of(path, "x.tar")
    if path.startswith("__") and path.endswith("__") and "/" not in path:
        assert ours is None
    else:
        assert ours == (None if theirs[0] is None else (theirs[0], theirs[1].lower()))


@pytest.mark.parametrize(
    ("rules", "labels", "classes"),
    [
        ({"label": "json:meta.label"}, [1, 0, 1], ("0", "1")),
        ({"label": "json:names.0"}, [1, 0, 1], ("cat", "dog")),
        ({"label": "name"}, [1, 0, 1], ("n1", "n2")),
        ({"label": r"name:_([a-z]+)\d"}, [1, 0, 1], ("cat", "dog")),
        ({"label": "none"}, [0, 0, 0], ("all",)),
        ({"label": "json:names.0", "classes": ("dog", "bird", "cat")}, [0, 2, 0], ("dog", "bird", "cat")),
    ],
)
def test_labels_from_json_and_names(tmp_path: Path, rules: Any, labels: list[int], classes: tuple[str, ...]) -> None:
    files = []
    for key, label, name in (("n2/a_dog1", 1, "dog"), ("n1/b_cat2", 0, "cat"), ("n2/c_dog3", 1, "dog")):
        meta = {"meta": {"label": label}, "names": [name]}
        files += [(f"{key}.json", json.dumps(meta).encode()), (f"{key}.png", picture_of(label))]
    write_tar(tmp_path / "a.tar", files)
    manifest, _ = index_tars(tmp_path, **rules)
    assert labels_of(tmp_path) == labels and manifest.classes == classes and manifest.resolution == 16


def test_indexes_elsewhere_and_braces(tmp_path: Path, s3: S3Server) -> None:
    for i in range(4):
        data = write_tar(tmp_path / "x.tar", [(f"{i}.cls", b"%d" % i), (f"{i}.jpg", picture_of(i, form="JPEG"))]).read_bytes()
        storage.write_bytes(f"{s3.uri}/foreign/set-{i:03d}.tar", data)
    manifest, _ = index_tars(f"{s3.uri}/foreign/set-{{001..003}}.tar", tmp_path / "out")
    assert [shard.name for shard in manifest.shards] == ["set-001.tar", "set-002.tar", "set-003.tar"]
    assert manifest.tars == f"{s3.uri}/foreign" and manifest.class_counts == (0, 1, 1, 1)
    images, labels = load_all(DataConfig(uri=str(tmp_path / "out")), load_manifest(str(tmp_path / "out")))
    assert labels.tolist() == [1, 2, 3] and images.shape == (3, 3, 16, 16)
    assert verify(str(tmp_path / "out"), 2, quiet) == []
    assert storage.names(f"{s3.uri}/foreign") == [f"set-{i:03d}.tar" for i in range(4)]


@pytest.mark.parametrize(
    ("files", "rules", "says"),
    [
        ([("a.cls", b"1")], {}, "sample a has no image among cls: add --image"),
        ([("a.txt", b"1"), ("a.png", picture_of(1))], {}, "sample a has no label among txt, png: add --label cls"),
        ([*GOOD, ("a.jpg", picture_of(1, form="JPEG"))], {}, "several images (png, jpg): add --image png, or --image jpg"),
        ([*GOOD, ("b.png", picture_of(1)), ("b.cls", b"1"), *GOOD], {}, "sample a is a second one with this key"),
        ([*GOOD, ("a.png", picture_of(1))], {}, "has two members .png"),
        ([("../a.png", picture_of(1))], {}, "points outside"),
        ([("a.cls", b"\xff\xfe"), ("a.png", picture_of(1))], {}, "has a label in .cls that cannot be read"),
        (
            [("a.cls", b"-1"), ("a.png", picture_of(1)), ("b.cls", b"0"), ("b.png", picture_of(1))],
            {"classes": ("x", "y")},
            "label '-1', which is below 0",
        ),
        ([("a.cls", b"7"), ("a.png", picture_of(1))], {"classes": ("x", "y")}, "label '7', but --classes has 2 names"),
        ([*GOOD, ("b.cls", b"x1"), ("b.png", picture_of(1))], {}, "the label 'x1', and others have numbers"),
        (
            [("a.cls", b"5000000"), ("a.png", picture_of(1))],
            {},
            "1 number from 5000000 to 5000000, which would be 5,000,001 classes",
        ),
        ([("a.json", b"{"), ("a.png", picture_of(1))], {"label": "json:x"}, "has a label in .json that cannot be read"),
        ([("a.json", b'{"x": [1]}'), ("a.png", picture_of(1))], {"label": "json:x"}, "no number and no text"),
        ([("a.cls", b"1"), ("a.png", b"junk")], {}, "sample a has no image that can be decoded"),
        ([("a.cls", b"1"), ("a.png", picture_of(1, 12_000, 9_000, mode="1"))], {}, "12000 x 9000 pixels"),
        ([], {}, "hold no sample"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bad_samples_are_named_and_nothing_is_written(tmp_path: Path, files: Any, rules: Any, says: str) -> None:
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(UserError) as caught:
        index_tars(tmp_path, **rules)
    assert says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_incomplete_samples_can_be_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*GOOD, ("b.cls", b"1"), ("c.png", picture_of(0)), ("d.cls", b"0"), ("d.png", picture_of(0))])
    manifest, report = index_tars(tmp_path, skip_incomplete=True)
    assert (manifest.samples, report["left_out"]["samples"], labels_of(tmp_path)) == (2, 2, [1, 0])


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("pipe:cat x.tar", "a command's output cannot be read from the middle"),
        ("x/{000..003}.tar.gz", "unpack it first"),
        ("x/{000..003}.tar", "none of the 4 shards is there"),
        ("nowhere", "no shards at nowhere"),
    ],
)
def test_what_cannot_be_indexed(uri: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_shards(uri)
    assert says in str(caught.value)


def test_tars_of_the_folders_below_are_named(tmp_path: Path) -> None:
    for name in ("train", "test", "notes"):
        (tmp_path / name).mkdir()
    for name in ("train", "test"):
        write_tar(tmp_path / name / "a.tar", GOOD)
    with pytest.raises(ConfigError, match=rf"in 2 folders below it: index each, as in `biggan index {tmp_path}/test`"):
        index_tars(tmp_path)


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(ConfigError, match=r"a\.tar\.gz is compressed: unpack it first"):
        index_tars(tmp_path)
    (tmp_path / "a.tar.gz").rename(tmp_path / "b.tar")
    with pytest.raises(ConfigError, match=r"b\.tar is compressed.*gunzip"):
        index_tars(tmp_path)


@pytest.mark.parametrize("label", ["json", "cls:x", "folder", "name:[", "name:abc"])
def test_wrong_rules(label: str) -> None:
    with pytest.raises(ConfigError, match="--label"):
        Rules(label=label)


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_byte_of_a_shard_is_found(tmp_path: Path, step: int) -> None:
    write_tar(tmp_path / "a.tar", [*GOOD, ("b.cls", b"0"), ("b.png", picture_of(0))], tarfile.USTAR_FORMAT)
    index_tars(tmp_path)
    data = (tmp_path / "a.tar").read_bytes()
    assert verify(str(tmp_path), 1, quiet) == []
    for place in range(0, len(data), step):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "a.tar").write_bytes(damaged)
        assert verify(str(tmp_path), 1, quiet), place
    for size in range(0, len(data), 10 * step):
        (tmp_path / "a.tar").write_bytes(data[:size])
        assert verify(str(tmp_path), 1, quiet), size


def test_verify_names_every_fault(tmp_path: Path) -> None:
    for name in "abcd":
        write_tar(tmp_path / f"{name}.tar", GOOD)
    index_tars(tmp_path)
    (tmp_path / "a.tar").unlink()
    (tmp_path / "b.tar.idx").write_bytes(b"junk")
    write_tar(tmp_path / "c.tar", [("a.cls", b"1"), ("a.png", picture_of(2))])
    faults = verify(str(tmp_path), 2, quiet)
    assert any("a.tar" in fault for fault in faults) and any("b.tar.idx is damaged" in fault for fault in faults)
    assert any("a.png is not the image" in fault for fault in faults) and not any("d.tar" in fault for fault in faults)
