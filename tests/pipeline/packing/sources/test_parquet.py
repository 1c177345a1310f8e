import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.packing.pack import PackConfig, pack
from pipeline.packing.sources.detect import open_source
from tests.support.datasets.parquet import CLASSES, png, write_parquet


@pytest.mark.parametrize("below", ["", "data"])
@pytest.mark.parametrize("struct", [True, False])
def test_splits_row_groups_and_class_names(tmp_path: Path, below: str, struct: bool) -> None:
    expected: dict[str, list[tuple[bytes, int]]] = {"train": [], "test": []}
    seed = 0
    for split, files in (("train", 2), ("test", 1)):
        for part in range(files):
            images, labels = [png(seed + i) for i in range(10)], [(seed + i) % 3 for i in range(10)]
            write_parquet(tmp_path / below / f"{split}-{part:05d}-of-{files:05d}.parquet", images, labels, struct=struct)
            expected[split] += zip(images, labels, strict=True)
            seed += 10
    sources = open_source(str(tmp_path))
    assert [source.split for source in sources] == ["train", "test"]
    for source in sources:
        assert source.classes == tuple(CLASSES)
        assert [(source.read(i), label) for i, label in enumerate(source.labels)] == expected[source.split]
        assert source.blocks is not None
        assert np.diff(source.blocks.starts).tolist() == [4, 4, 2] * (2 if source.split == "train" else 1)
    assert sources[0].names[11].endswith("train-00001-of-00002.parquet, row group 0, row 1")
    manifest = pack(sources[0], str(tmp_path / "dst"), PackConfig(resolution=None, workers=3), lambda _: None)
    assert manifest.class_counts == tuple(Counter(label for _, label in expected["train"])[i] for i in range(3))


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_labels_without_names(tmp_path: Path, kind: str) -> None:
    labels = ["dog", "cat", "dog", "ant"] if kind == "text" else [2, 1, 2, 0]
    write_parquet(tmp_path / "any name.parquet", [png(i) for i in range(4)], labels, features=None)
    (source,) = open_source(str(tmp_path / "any name.parquet"))
    assert source.split == ""
    assert source.classes == (("ant", "cat", "dog") if kind == "text" else ("0", "1", "2"))
    assert source.labels.tolist() == [2, 1, 2, 0]


def test_columns_are_found_by_type_and_by_usual_names(tmp_path: Path) -> None:
    features = {"kind": {"names": CLASSES, "_type": "ClassLabel"}}
    write_parquet(tmp_path / "a.parquet", [png(0)], [2], features=features, columns=("picture", "kind"))
    (source,) = open_source(str(tmp_path / "a.parquet"))
    assert (source.read(0), source.classes[source.labels[0]]) == (png(0), "dog")
    write_parquet(tmp_path / "b.parquet", [png(0)], [2], features=None, columns=("picture", "kind"))
    with pytest.raises(ConfigError, match=r"b\.parquet has the columns picture, kind: rename that of the labels to label"):
        open_source(str(tmp_path / "b.parquet"))
    write_parquet(tmp_path / "c.parquet", [1], [2], features=None, struct=False)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="rename that of the image files to image"):
        open_source(str(tmp_path / "c.parquet"))


def test_bad_rows_and_files_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "null.parquet", [png(0)], [None])
    write_parquet(tmp_path / "float.parquet", [png(0)], [0.5])
    write_parquet(tmp_path / "path.parquet", [png(0), None], [0, 1])  # type: ignore[list-item]
    (tmp_path / "text.parquet").write_text("hello")
    for name, error, message in (
        ("null", ConfigError, "rows without a label"),
        ("float", ConfigError, "label has the type double"),
        ("text", DataError, r"text\.parquet is damaged or no parquet"),
    ):
        with pytest.raises(error, match=message):
            open_source(str(tmp_path / f"{name}.parquet"))
    (source,) = open_source(str(tmp_path / "path.parquet"))
    with pytest.raises(DataError, match=r"path\.parquet, row group 0, row 1 has no bytes, at most a path"):
        source.read(1)


def test_a_row_group_that_was_damaged_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(file, [png(i) for i in range(4)], [0, 1, 2, 0])
    (source,) = open_source(str(file))
    data = bytearray(file.read_bytes())
    data[4:200] = bytes(196)
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet, row group 0, cannot be read"):
        source.read(0)


def test_splits_of_other_classes_are_refused_and_numbers_take_the_longest_list(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [png(0), png(1)], [0, 2], features=None)
    write_parquet(tmp_path / "test-0.parquet", [png(0)], [1], features=None)
    assert {source.classes for source in open_source(str(tmp_path))} == {("0", "1", "2")}
    write_parquet(tmp_path / "test-0.parquet", [png(0)], ["dog"], features=None)
    with pytest.raises(ConfigError, match=r"class 0 is in only one of train \(3 classes\) and test"):
        open_source(str(tmp_path))


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", [png(0)], [0])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'biggan-pipeline\[parquet\]'"):
        open_source(str(tmp_path / "a.parquet"))
