"""Random trees and zips: what is packed and what is reported as passed over is everything that was there, or it is refused."""

import io
import os
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.packing.sources.detect import open_source
from pipeline.packing.sources.layout import clutter

FOLDERS = ("train", "Testing", "val", "a", "b", "seg_train", "images", "00000", "@eaDir", ".git")
FILES = ("1.jpg", "2.PNG", "3.jpg", "x.txt", "Thumbs.db", "t.heic", "bare", "train-0.parquet", "metadata.parquet")

CLASSES = [f"{name}/{file}" for name in ("a", "b", "c") for file in ("1.jpg", "2.PNG")]
LAYOUTS = {
    "class folders": CLASSES,
    "splits": [f"{split}/{path}" for split in ("train", "Testing") for path in CLASSES],
    "one split flat": [f"train/{path}" for path in CLASSES] + ["val/1.jpg"],
    "flat": ["1.jpg", "2.PNG"],
    "tables": ["default/train/0000.parquet", "default/test/0000.parquet"],
}

folders = st.lists(st.sampled_from(FOLDERS), max_size=3).map("/".join)
places = st.tuples(folders, st.sampled_from(FILES)).map(lambda both: "/".join(filter(None, both)))
flags = st.tuples(st.sampled_from([None, None, None, "train", "test"]), st.sampled_from([None, None, None, "none", "name"]))

quiet = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(FILES[3:7])).map("/".join)
layouts = st.tuples(st.sampled_from([*LAYOUTS.values(), []]), st.sets(quiet | quiet | quiet | places, max_size=4)).map(
    lambda both: {*both[0], *both[1]}
)
trees = layouts.filter(bool)


def table(*, images: bool) -> bytes:
    out = io.BytesIO()
    columns = {"image": [b"1", b"2"], "label": [0, 1]} if images else {"file_name": ["a/1.jpg"], "text": ["x"]}
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


IMAGES, METADATA = table(images=True), table(images=False)


def above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def accounted(root: Path, split: str | None, label: str | None) -> bool:
    """Open the folder and check all; False where it was refused."""
    try:
        sources = open_source(str(root), lambda _: None, split, label)
    except ConfigError as error:
        assert "\n" not in str(error)
        return False
    packed: set[str] = set()
    passed: set[str] = set()
    for source in sources:
        assert len(source.labels) == len(source.names) and set(source.labels.tolist()) == set(range(len(source.classes)))
        passed |= {path for path, _ in source.passed}
        if "parquet file" in source.layout:
            packed |= {Path(name.split(", row group")[0]).relative_to(root).as_posix() for name in source.names}
            continue
        real = Counter(os.path.realpath(root / name) for name in source.names)
        assert max(real.values()) == 1  # links show none twice, so that none has two labels
        packed |= set(source.names)
        mine = {path for path, _ in source.passed}
        assert not mine & set(source.names)
    known = packed | {os.path.relpath(os.path.realpath(root / name), root) for name in packed}
    for folder, below, names in os.walk(root):
        at = Path(folder).relative_to(root)
        links = [name for name in below if (root / at / name).is_symlink()]
        for name in names + [name for name in links if not (root / at / name).exists()]:
            path = (at / name).as_posix()
            assert path in known or passed.intersection(above(path)), path
    return True


@settings(max_examples=60)
@given(
    files=trees,
    links=st.lists(st.tuples(folders.filter(bool), st.sampled_from(("l1", "l2", "9.jpg")), folders | places), max_size=3),
    flags=flags,
)
@example(files={"a/1.jpg", "b/2.PNG"}, links=[("a", "l1", "b")], flags=(None, None))  # one image in two classes
@example(files={"a/1.jpg", "b/2.PNG"}, links=[("a", "l1", "a"), ("b", "l1", "none")], flags=(None, None))  # loop, broken
@example(files={"a/images/1.jpg", "b/2.PNG"}, links=[("a", "l1", "a/images")], flags=(None, None))  # twice in one class
@example(files={"a/1.jpg", "metadata.parquet", "@eaDir/1.jpg"}, links=[], flags=(None, None))
@example(files={"train/a/1.jpg", "val/a/1.jpg", "b/1.jpg", "train/x.txt"}, links=[], flags=("train", None))
def test_folders(files: set[str], links: list[tuple[str, str, str]], flags: tuple[str | None, str | None]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        for number, path in enumerate(sorted(files)):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            tables = METADATA if path.endswith("metadata.parquet") else IMAGES
            (root / path).write_bytes(tables if path.endswith(".parquet") else str(number).encode())
        for folder, link, target in links:
            (root / folder).mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(root / folder / link):
                (root / folder / link).symlink_to(root / target)
        accounted(root, *flags)


how = st.tuples(st.sampled_from(["/", "/", "\\"]), st.sampled_from([False, False, False, True]))
extra = st.lists(st.tuples(places, how), max_size=4)
members = st.tuples(trees.map(sorted), extra).map(
    lambda both: [(path, "/", False) for path in both[0]] + [(path, *way) for path, way in both[1]]
)


@settings(max_examples=60)
@given(members=members, top=st.sampled_from(["", "data/"]), flags=flags)
@example(members=[("a/1.jpg", "/", False), ("a/1.jpg", "\\", False), ("b/1.jpg", "\\", False)], top="data/", flags=(None, None))
def test_zips(members: list[tuple[str, str, bool]], top: str, flags: tuple[str | None, str | None]) -> None:
    content: dict[bytes, tuple[str, bool]] = {}
    with tempfile.TemporaryDirectory() as name:
        with zipfile.ZipFile(f"{name}/a.zip", "w") as archive:
            for number, (path, slash, link) in enumerate(members):
                info = zipfile.ZipInfo((top + path).replace("/", slash))
                info.external_attr = 0o120777 << 16 if link else 0o100644 << 16
                content[str(number).encode()] = top + path, link
                archive.NameToInfo.pop(info.filename, None)  # the same name twice is meant
                archive.writestr(info, str(number))
        try:
            sources = open_source(f"{name}/a.zip", lambda _: None, *flags)
        except ConfigError:
            return
        read: dict[bytes, set[int]] = {}
        for source in sources:
            for i, label in enumerate(source.labels.tolist()):
                data = source.read(i)
                assert isinstance(data, bytes)
                read.setdefault(data, set()).add(label)
        assert all(len(labels) == 1 for labels in read.values())  # each image was packed once
        last = {path: data for data, (path, link) in content.items() if not link}
        assert set(read) <= set(last.values())
        packed = sum(len(source.labels) for source in sources)
        told: Counter[tuple[str, str]] = Counter()
        for source in sources:  # what belongs to no split is told with each of them
            told |= Counter(one for one in source.passed if "folder" not in one[1])
        hidden = [path for path, _ in content.values() if any(clutter(part, True) for part in path.split("/")[:-1])]
        assert packed + told.total() == len(content) - len(hidden)
