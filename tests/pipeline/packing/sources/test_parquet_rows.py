"""Where parquet files lie, what lies beside them, how their columns are stored, and row groups of any size."""

import re
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.packing.sources import parquet_rows
from pipeline.packing.sources.detect import open_source
from tests.support.datasets.folders import put
from tests.support.datasets.idx import write_idx
from tests.support.datasets.parquet import FEATURES, png, write_parquet
from tests.support.packing import quiet


def rows(root: Path, *paths: str, labels: Any = (0, 1, 2)) -> Path:
    for path in paths:
        write_parquet(root / path, [f"{path} {i}".encode() for i in range(len(labels))], list(labels))
    return root


def metadata(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"file_name": ["a/1.jpg"], "text": ["x"]}), file)


def splits(place: Path, **given: Any) -> dict[str, int]:
    return {source.split: len(source.labels) for source in open_source(str(place), quiet, **given)}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"], {"train": 3, "test": 3}),
        (["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"], {"train": 6, "test": 3}),
        (["Training/0.parquet", "Testing/0.PARQUET"], {"train": 3, "test": 3}),
        (["default/partial-train/0000.parquet"], {"train": 3}),
        (["data/train-00000-of-00001.parquet", "data/unsupervised-00000-of-00001.parquet"], {"train": 3, "unsupervised": 3}),
        (["cifar-train.parquet", "cifar-test.parquet"], {"train": 3, "test": 3}),
        (["part-0.parquet", "part-1.parquet"], {"": 6}),
    ],
)
def test_splits_are_named_by_folders_or_files(tmp_path: Path, paths: list[str], expected: dict[str, int]) -> None:
    rows(tmp_path, *paths)
    put(tmp_path, ["README.md", ".gitattributes"])
    metadata(tmp_path / "metadata.parquet")
    sources = open_source(str(tmp_path), quiet)
    assert {source.split: len(source.labels) for source in sources} == expected
    assert Counter(kind for _, kind in sources[0].passed) == {".md file": 1, "hidden file": 1, ".parquet file": 1}
    read = {source.read(i) for source in sources for i in range(len(source.labels))}
    assert read == {f"{path} {i}".encode() for path in paths for i in range(3)}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a/train-0.parquet", "b/train-0.parquet"], r"in several folders \(a, b\), .*`biggan shard \S*/b DST`"),
        (["train-0.parquet", "more.parquet"], "train-0.parquet is the split train, more.parquet is in none: add --split train"),
        (["train/test-0.parquet"], "test-0.parquet in train is the split test or train"),
    ],
)
def test_files_of_several_data_sets_are_refused(tmp_path: Path, paths: list[str], message: str) -> None:
    rows(tmp_path, *paths)
    with pytest.raises(ConfigError, match=message):
        open_source(str(tmp_path), quiet)
    if "more.parquet" in paths:
        assert splits(tmp_path, split="train") == {"train": 3}


def test_only_the_chosen_split_is_looked_at(tmp_path: Path) -> None:
    rows(tmp_path, "c/train-0.parquet")
    write_parquet(tmp_path / "c/test-0.parquet", [b"x"], ["dog"], features=None)
    with pytest.raises(ConfigError, match=r"class bird is in only one of train .* add --split train"):
        open_source(str(tmp_path), quiet)
    (source,) = open_source(str(tmp_path), quiet, split="Training")
    assert source.passed == (("c/test-0.parquet", "file outside the split"),)
    with pytest.raises(ConfigError, match=r"--split val: .* has train, test"):
        open_source(str(tmp_path), quiet, split="val")


def test_tables_do_not_win_over_images_or_tars(tmp_path: Path) -> None:
    """What lies beside class folders or shards is about them."""
    metadata(put(tmp_path / "set", ["a/1.jpg", "b/1.jpg"]) / "metadata.parquet")
    (source,) = open_source(str(tmp_path / "set"), quiet)
    assert (source.classes, source.passed) == (("a", "b"), (("metadata.parquet", ".parquet file"),))
    for number in range(2):
        metadata(put(tmp_path / "crawl", [f"{number}.tar", f"{number}_stats.json"]) / f"{number}.parquet")
    with pytest.raises(ConfigError, match=r"shards, which stay as they are: `biggan index \S*crawl --out DST`"):
        open_source(str(tmp_path / "crawl"), quiet)
    metadata(tmp_path / "alone" / "metadata.parquet")
    with pytest.raises(ConfigError, match=r"metadata\.parquet has the columns file_name, text: rename that of the image files"):
        open_source(str(tmp_path / "alone"), quiet)


@pytest.mark.parametrize("other", ["class folders", "one folder", "tars", "IDX files", "CIFAR's files"])
def test_a_folder_with_two_data_sets_is_refused(tmp_path: Path, other: str) -> None:
    """A command is advised only where it packs all of one of them."""
    place = tmp_path / "a place"
    beside = {"class folders": ["a/1.jpg", "b/1.jpg"], "tars": ["0.tar"]}
    put(place, beside.get(other, ["png/a/1.jpg"]))
    advised = {"a place/data", "a place/png"}
    if other in ("class folders", "one folder", "tars"):
        rows(place, "data/train-0.parquet")
    elif other == "IDX files":
        write_idx(place, "train", 5, zipped=False)
    else:
        (place / "data_batch_1.bin").write_bytes(bytes(3073))
        (place / "batches.meta.txt").write_text("cat\n")
    advised -= {"class folders": {"a place/png"}, "tars": {"a place/png"}, "one folder": set()}.get(other, {"a place/data"})
    with pytest.raises(ConfigError, match=r"two data sets: .*move one of them to another folder") as caught:
        open_source(str(place), quiet)
    found = re.findall(r"`biggan shard '(\S* \S*)' DST`", str(caught.value))
    assert {Path(name).relative_to(tmp_path).as_posix() for name in found} == advised
    for name in found:
        assert open_source(name, quiet)


@pytest.mark.parametrize("stored", ["categories", "text view", "large text", "small integers"])
@pytest.mark.parametrize(
    "image", [pa.binary(), pa.binary_view(), pa.struct([("bytes", pa.binary_view()), ("path", pa.string())])]
)
def test_columns_in_any_form(tmp_path: Path, stored: str, image: Any) -> None:
    """pandas writes categories; polars and newer tools write views."""
    names = pa.array(["dog", "ant", "dog"])
    labels = {
        "categories": names.dictionary_encode,
        "text view": lambda: names.cast(pa.string_view()),
        "large text": lambda: names.cast(pa.large_string()),
        "small integers": lambda: pa.array([1, 0, 1], pa.uint8()),
    }[stored]()
    images = [{"bytes": bytes([i]), "path": None} if pa.types.is_struct(image) else bytes([i]) for i in range(3)]
    for part in range(2):  # the second file has other categories
        table = pa.table({"image": pa.array(images[part:], image), "label": labels[part:]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    (source,) = open_source(str(tmp_path), quiet)
    assert source.classes == (("0", "1") if stored == "small integers" else ("ant", "dog"))
    assert source.labels.tolist() == [1, 0, 1, 0, 1]
    assert [source.read(i) for i in range(5)] == [b"\0", b"\1", b"\2", b"\1", b"\2"]


def test_classes_are_told_apart_or_refused(tmp_path: Path) -> None:
    names = ["tench", "crane", "", "crane"]
    features = FEATURES | {"label": {"names": names, "_type": "ClassLabel"}}
    write_parquet(tmp_path / "a.parquet", [b"x"] * 4, [0, 1, 2, 3], features=features)
    assert open_source(str(tmp_path / "a.parquet"), quiet)[0].classes == ("tench", "crane", "class 2", "crane (2)")
    for labels, message in (
        (["a", " "], r"rows have an empty label \(' '\)"),
        ([0, 203_092], "has the label 203092 for 2 images: number the classes from 0"),
    ):
        write_parquet(tmp_path / "b.parquet", [b"x"] * len(labels), labels, features=None)
        with pytest.raises(ConfigError, match=message):
            open_source(str(tmp_path / "b.parquet"), quiet)
    pq.write_table(pq.read_table(tmp_path / "a.parquet").slice(0, 0), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match="has no rows"):
        open_source(str(tmp_path / "b.parquet"), quiet)


def test_label_none_needs_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x", b"y"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="rename that of the labels to label, or add --label none"):
        open_source(str(tmp_path), quiet)
    (source,) = open_source(str(tmp_path), quiet, label="none")
    assert (source.classes, source.labels.tolist(), source.read(1)) == (("all",), [0, 0], b"y")
    with pytest.raises(ConfigError, match=r"--label name: .* has no class folders; leave it out"):
        open_source(str(rows(tmp_path / "x", "a.parquet")), quiet, label="name")


def test_a_large_row_group_lies_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [png(i) for i in range(30)]
    table = pa.table({"image": [*images, None], "label": [i % 3 for i in range(31)]})
    pq.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setattr(parquet_rows, "BLOCK_BYTES", 1_000)
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 2_000)
    (source,) = open_source(str(tmp_path), quiet)
    order = np.random.default_rng(0).permutation(30).tolist()
    assert [source.read(i) for i in order] == [images[i] for i in order]
    with pytest.raises(DataError, match="row 30 has no bytes, at most a path"):
        source.read(30)
    (again,) = open_source(str(tmp_path), quiet)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))  # as if the disk were full
    try:
        with pytest.raises(StorageError, match="cannot write to the folder for temporary files"):
            again.read(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
