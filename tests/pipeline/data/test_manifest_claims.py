"""A manifest and an index of any content, with checksums and fingerprint that fit: one line, before memory is asked for."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import main
from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import MANIFEST, Shard, load_manifest
from pipeline.data.manifest_claims import wrong_rows
from pipeline.data.order import Order
from pipeline.data.page_cache import PageCache
from pipeline.data.quarantine import BadSampleError
from pipeline.data.reader import Reader
from pipeline.data.shard_index import ROW, Index
from pipeline.errors import DataError, UserError
from pipeline.packing.sources.detect import open_source
from tests.support.shards_by_hand import write_shards
from tests.support.tars import picture_of

IMAGES = [(f"{i}.png", picture_of(i)) for i in range(3)]


def changed(**values: int) -> Callable[[Index], Index]:
    """Return a function that sets fields of the second row."""

    def change(rows: Index) -> Index:
        for name, value in values.items():
            rows[name][1] = value
        return rows

    return change


ROWS = {
    "a label of no class": (changed(label=4_000_000_000), r"label 4000000000, and there are 1 class"),
    "a length of 512 MiB": (changed(length=512 << 20), r"an image up to byte 536,87\d,\d{3} of a tar that has 10,240"),
    "a block far behind the end": (changed(block=0xFFFFFFFF), r"up to byte 2,199,02\d,\d{3},\d{3} of a tar"),
    "another order": (lambda rows: rows[[1, 0, 2]], "overlap"),
    "two images in one place": (lambda rows: rows[[0, 0, 2]], "overlap, or are not in the order"),
    "the first block": (lambda rows: np.array([(0, *row[1:]) for row in rows.tolist()], ROW), "overlap"),
    "fewer rows": (lambda rows: rows[:2], "damaged or of another pack"),
    "more rows": (lambda rows: rows[[0, 1, 2, 2]], "damaged or of another pack"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_the_tar_cannot_hold_are_refused_by_every_reader(tmp_path: Path, name: str) -> None:
    change, says = ROWS[name]
    folder = str(write_shards(tmp_path, IMAGES, rows=change))
    manifest = load_manifest(folder)
    order = Order(manifest.shards, 0)
    reader = Reader(folder, manifest, order, capacity=2)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=says):
            reader.image(1)
        with pytest.raises(DataError, match=says):
            load_all(DataConfig(uri=folder), manifest)
        with pytest.raises(DataError, match=says):
            open_source(folder)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
        reader.close()
    assert main(["index", folder, "--verify"]) == 65


def test_what_is_not_in_the_file_is_no_reason_for_a_buffer(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    tracemalloc.start()
    assert PageCache().read(str(tmp_path / "a"), 500, 512 << 20) is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def deep(levels: int) -> Any:
    nested: Any = 1
    for _ in range(levels):
        nested = [nested]
    return nested


DOCUMENTS = {
    "resolution": {"resolution": 1_000_000},
    "resolution of a boolean": {"resolution": True},
    "resolution of none": {"resolution": 0},
    "channels": {"channels": 2},
    "classes": {"classes": "abc"},
    "a class of no text": {"classes": [7]},
    "class counts": {"class_counts": [-1]},
    "shards of nothing": {"shards": []},
    "shards of null": {"shards": None},
    "shards of numbers": {"shards": [1]},
    "tars": {"tars": 3},
    "tars_from_here": {"tars_from_here": None},
    "source": {"source": []},
    "fingerprint": {"fingerprint": 1},
    "deep": {"classes": deep(500)},
    "deep beside it": {"later": deep(500)},
    "version": {"version": "2"},
}
SHARDS = {
    "samples": {"samples": 1 << 70},
    "fewer than none": {"samples": -3},
    "samples of a boolean": {"samples": True},
    "samples of a number with a point": {"samples": 3.5},
    "a number of 5,000 digits": {"samples": 10**5000},
    "bytes": {"bytes": 1 << 60},
    "bytes of text": {"bytes": "10240"},
    "name": {"name": ""},
    "name of a number": {"name": 3},
    "crc": {"crc32c": 1 << 32},
}


@pytest.mark.parametrize("name", [*DOCUMENTS, *SHARDS])
def test_a_manifest_that_cannot_be_is_one_line(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shards(tmp_path, IMAGES)
    document = json.loads((folder / MANIFEST).read_text())
    if name in DOCUMENTS:
        document |= DOCUMENTS[name]
    else:
        document["shards"][0] |= SHARDS[name]
    text = json.dumps(document) if name != "a number of 5,000 digits" else json.dumps(document | {"shards": []})
    (folder / MANIFEST).write_text(text)
    assert main(["doctor", "--data", str(folder), "--seconds", "0.1"]) == 65
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is damaged" in said and f"biggan shard SRC {folder} --overwrite" in said


@pytest.mark.parametrize("text", [r'"\udce9"', r'"\ud800"', '"\udce9"'])
def test_a_class_name_that_is_not_utf_8_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_shards(tmp_path, IMAGES)
    data = (folder / MANIFEST).read_bytes().replace(b'"a"', text.encode(errors="surrogateescape"))
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        load_manifest(str(folder))


def test_a_manifest_of_a_later_version_of_this_form_may_say_more(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, IMAGES)
    document = json.loads((folder / MANIFEST).read_text()) | {"later": {"a": [1]}}
    (folder / MANIFEST).write_text(json.dumps(document))
    assert load_manifest(str(folder)).samples == 3


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": "biggan shards", "x": ' + "[" * 100_000])
def test_deep_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=r"not a manifest of biggan|is damaged") as refused:
        load_manifest(str(tmp_path))
    assert "\n" not in str(refused.value)


@settings(max_examples=200)
@given(st.lists(st.tuples(*[st.integers(0, 2**32 - 1) | st.integers(0, 9)] * 4), max_size=4), st.integers(0, 9_000))
def test_rows_that_pass_lie_in_the_tar_one_after_the_other(rows: list[tuple[int, ...]], tar_bytes: int) -> None:
    found = np.array(rows, ROW)
    ends = [0, *(512 * block + length for block, length, _, _ in rows)]
    right = all(end <= tar_bytes for end in ends) and all(label < 5 for *_, label in rows)
    right &= all(512 * row[0] >= max(512, end) for row, end in zip(rows, ends, strict=False))
    assert (wrong_rows(found, tar_bytes, 5) == "") == right


def test_a_shard_that_is_shorter_than_it_was_gives_what_is_left(tmp_path: Path) -> None:
    """The bound is the size that the manifest says; a cut is told as before, image by image."""
    folder = str(write_shards(tmp_path, IMAGES))
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[:1024])
    manifest = load_manifest(folder)
    reader = Reader(folder, manifest, Order(manifest.shards, 0), capacity=2)
    assert reader.image(0).data == IMAGES[0][1]
    with pytest.raises(BadSampleError, match=r"the shard has 1,024 bytes instead of 10,240"):
        reader.image(2)
    reader.close()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"resolution": 9_999}, "3 images of 9999 x 9999 pixels do not fit into 10,240 bytes"),
        ({"class_counts": (5,)}, "its counts of 1 class do not fit 3 samples"),
        ({"class_counts": (3, 0)}, "its counts of 1 class do not fit"),
        (
            {"shards": (Shard("0.tar", 11, 10_240, 0, 0),), "class_counts": (11,)},
            "0.tar cannot hold 11 samples in 10,240 bytes",
        ),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_each_other_is_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    """With a fingerprint that fits all of it."""
    with pytest.raises(DataError, match=says):
        load_manifest(str(write_shards(tmp_path, IMAGES, **fields)))
    assert load_manifest(str(write_shards(tmp_path, IMAGES, resolution=2_048))).resolution == 2_048
