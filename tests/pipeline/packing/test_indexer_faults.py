"""What a pass over somebody's tars leaves out, lists and counts: each member that was there is in one of the counts."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.manifest import load_manifest
from pipeline.data.shard_index import load_index
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.packing import indexer
from tests.support.tars import index_tars, labels_of, picture_of, write_tar

PNG, JPEG = picture_of(1), picture_of(2, form="JPEG")


def sample(key: str, image: bytes = PNG, label: bytes = b"0") -> list[tuple[str, bytes]]:
    return [(f"{key}.png", image), (f"{key}.cls", label)]


def refused(uri: Path | str, **rules: Any) -> tuple[UserError, str]:
    """The error and its notes."""
    with pytest.raises(UserError) as caught:
        index_tars(uri, **rules)
    return caught.value, "\n".join(getattr(caught.value, "__notes__", []))


def counted(report: dict[str, Any]) -> int:
    members = report["members"]
    indexed, passed = sum(members["of_indexed_samples"].values()), sum(members["passed_over"].values())
    return indexed + passed + members["of_samples_left_out"]


def damaged(folder: Path) -> None:
    """Four shards: two broken images and a sample without label, one cut, one empty, and a number that is left out."""
    write_tar(folder / "0.tar", [*sample("a"), *sample("b", b"<html>"), *sample("c", b""), ("d.png", PNG)])
    cut = write_tar(folder / "1.tar", sample("a")).read_bytes()
    (folder / "1.tar").write_bytes(cut[:700])
    (folder / "2.tar").write_bytes(b"")
    write_tar(folder / "4.tar", [*sample("a", label=b"1"), *sample("b", JPEG, b"-1"), *sample("a")])


def test_all_faults_of_a_pass_are_listed_before_it_stops(tmp_path: Path) -> None:
    damaged(tmp_path)
    error, notes = refused(f"{tmp_path}/{{0..4}}.tar")
    assert isinstance(error, DataError)
    for line in (
        "0.tar, sample b has no image that can be decoded (it is in no format that is read here: JPEG, PNG, WEBP, AVIF, GIF)",
        "0.tar, sample c has no image that can be decoded",
        "0.tar, sample d has no label among png",
        "1.tar is damaged (it ends in the middle of a.png, at byte 700)",
        "2.tar has 0 bytes",
        "3.tar is not there",
        "4.tar, sample b has the label '-1', which is below 0",
        "4.tar, sample a is a second one with this key",
    ):
        assert line in notes
    assert "2 samples with a broken image" in str(error) and "0x" not in notes
    assert "add --on-error skip to leave out 5 of 7 samples and 3 of 5 shards" in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "1.tar", "2.tar", "4.tar"]


def test_faults_are_left_out_and_reported(tmp_path: Path) -> None:
    damaged(tmp_path)
    manifest, report = index_tars(f"{tmp_path}/{{0..4}}.tar", skip_faults=True)
    assert [(shard.name, shard.samples) for shard in manifest.shards] == [("0.tar", 1), ("4.tar", 1)]
    assert labels_of(tmp_path) == [0, 1]
    assert json.loads((tmp_path / "index-report.json").read_text()) == report
    assert (report["left_out"]["samples"], report["left_out"]["shards"]) == (5, 3)
    assert {(fault["shard"], fault["key"]) for fault in report["faults"]} == {
        *(("0.tar", key) for key in "bcd"),
        *((f"{shard}.tar", "") for shard in (1, 2, 3)),
        *(("4.tar", key) for key in "ab"),
    }
    assert counted(report) == report["members"]["all"] == 7 + 6
    assert load_manifest(str(tmp_path)).fingerprint == manifest.fingerprint


@pytest.mark.parametrize("skip", ["skip_faults", "skip_incomplete"])
def test_nothing_is_written_where_nothing_is_left(tmp_path: Path, skip: str) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", PNG), ("b.cls", b"0")])
    error, notes = refused(tmp_path, **{skip: True})
    assert "1 sample without label" in str(error) and "--on-error" not in str(error) and "no label among png" in notes
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_flags_that_fit_no_sample_end_the_pass_early(tmp_path: Path) -> None:
    """Millions of samples are not read to say that --label is wrong; but faults of a few, or of the data, are all listed."""
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", [(f"{i}.png", PNG) for i in range(indexer._HOPELESS + 50)])
    error, notes = refused(tmp_path)
    assert "and so it is with the first 100 samples: add --label" in str(error) and not notes and error.exit_code == 78
    manifest, _ = index_tars(tmp_path, label="none")
    assert manifest.samples == 450


@pytest.mark.parametrize(
    ("files", "rules", "says"),
    [
        (
            [("img.01.png", PNG), ("img.01.cls", b"0"), ("img.02.png", PNG), ("img.02.cls", b"1")],
            {},
            "sample img has no image among 01.png, 01.cls, 02.png, 02.cls; its file names have several dots",
        ),
        (
            [("a.png", PNG), ("b.png", PNG), ("a.cls", b"0"), ("b.cls", b"1")],
            {"skip_incomplete": True},
            "sample a is not in one piece: png at first, and after other samples cls",
        ),
        (
            [("a.cls", b"0"), *sample("b"), ("a.jpg", JPEG)],
            {},
            "sample a is not in one piece: cls at first, and after other samples jpg",
        ),
        ([("a.png", PNG), ("a.cls", b"[0, 1, 0]")], {}, "has the label '[0, 1, 0]', which is a list"),
        ([("a.png", PNG), ("a.cls", b"0,1")], {}, "has the label '0,1', which is a list"),
        ([("a.png", PNG), ("a.cls", b"3.5")], {}, "has the label '3.5', which is no whole number"),
        ([("a.png", PNG), ("a.json", b'{"x": "\\ud800"}')], {"label": "json:x"}, "has a label that is not UTF-8 (\\ud800)"),
        ([*sample("a"), *sample("b", label=b"203092")], {}, "2 numbers from 0 to 203092, which would be 203,093 classes"),
    ],
)
def test_the_cause_is_named(tmp_path: Path, files: list[tuple[str, bytes]], rules: dict[str, Any], says: str) -> None:
    write_tar(tmp_path / "a.tar", files)
    error, notes = refused(tmp_path, **rules)
    assert says in f"{error}\n{notes}"
    if "not in one piece" in says:  # and no consequence of it is counted as well
        assert "without" not in f"{error}{notes}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_what_other_tools_leave_in_a_tar_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    files = [("./x/a.PNG", PNG), ("./x/a.CLS", b"0"), ("./x/a.txt", b"t"), ("./x/a.small.png", PNG)]
    stray = ["./x/._a.png", "__MACOSX/x/._a.png", "PaxHeaders.7/a.png", "x/.DS_Store", "@eaDir/a.png", "README", "__meta__"]
    write_tar(path, [*files, *((name, b"junk") for name in stray), ("x/b.jfif", JPEG), ("x/b.cls", b"1"), ("x/a.md", b"late")])
    with tarfile.open(path, "a") as tar:
        for name, kind in (("x", tarfile.DIRTYPE), ("y/README", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x/a.png"
            tar.addfile(info)
    manifest, report = index_tars(tmp_path)
    assert (manifest.samples, labels_of(tmp_path)) == (2, [0, 1])
    assert report["members"]["passed_over"] == {
        "files of other tools (hidden, __MACOSX, ...)": 5,
        "files without an extension": 2,
        "files apart from their sample": 1,
        "folders": 1,
        "links": 1,
        "devices": 1,
    }
    assert report["images_beside_that_of_their_sample"] == 1
    assert counted(report) == report["members"]["all"] == 17
    assert index_tars(tmp_path, label="name")[0].classes == ("x",)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_to_images_are_no_loss_in_silence(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", sample("a"))
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = kind, "a.png"
        tar.addfile(info)
    error, _ = refused(tmp_path, label="none")
    assert "sample b has a link .png to a.png" in str(error) and "leave out 1 of 2 samples" in str(error)
    _, report = index_tars(tmp_path, label="none", skip_faults=True)
    assert report["left_out"]["by_reason"] == ["1 sample with a link"]


def test_what_lies_beside_the_tars_is_counted(tmp_path: Path) -> None:
    for i in (0, 1, 3):
        write_tar(tmp_path / f"0000{i}.tar", sample(f"s{i}") if i else [])
        (tmp_path / f"0000{i}.parquet").touch()
        (tmp_path / f"0000{i}_stats.json").touch()
    (tmp_path / "logs").mkdir()
    for _ in range(2):  # our own files are none of them
        _, report = index_tars(tmp_path)
        assert report["files_beside_the_tars"] == {".json": 3, ".parquet": 3, "folders": 1}
    assert (report["shards_without_samples"], report["numbers_without_a_tar"]) == (["00000.tar"], ["00002.tar"])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train-0.tar", "train-1.tar", "val-0.tar"], "has tars of several splits, train (train-0.tar), val (val-0.tar)"),
        (["x-Training-0.tar", "extra.tar"], "no split (extra.tar), train (x-Training-0.tar): index each"),
        (["a-00000-of-00003.tar", "a-00002-of-00003.tar"], "a-00001-of-00003.tar is not there"),
        (["a.tar", "b.tar.gz"], "b.tar.gz is compressed: unpack it first"),
    ],
)
def test_tars_that_are_no_whole_set(tmp_path: Path, names: list[str], says: str) -> None:
    for name in names:
        write_tar(tmp_path / name, sample("a"))
    with pytest.raises(ConfigError) as caught:
        index_tars(tmp_path)
    assert says in str(caught.value) and sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


KEYS = st.sampled_from(["a", "b", "d/a", "d.v/c", "./e", "x.y"])
ENDS = st.sampled_from([".png", ".PNG", ".cls", ".cls", ".txt", ".small.png", ".jpg", ""])
STRAY = st.sampled_from(["._a.png", "d/.hidden", "__MACOSX/a.png", "__x__", "PaxHeaders/a.cls"])
NAMES = st.one_of(st.builds(str.__add__, KEYS, ENDS), STRAY)
DATA = st.sampled_from([PNG, JPEG, b"junk", b"", b"0", b"1", b"1.0", b"cat", b"[0]", b"-1"])  # no numbers far apart
KINDS = st.sampled_from([tarfile.REGTYPE] * 9 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@pytest.mark.long
@settings(max_examples=60)
@given(st.lists(st.tuples(NAMES, DATA, KINDS), max_size=14), st.sampled_from([None, "none", "name"]))
def test_indexed_and_left_out_are_all_that_was_there(
    place: Path, files: list[tuple[str, bytes, bytes]], label: str | None
) -> None:
    with tarfile.open(place / "a.tar", "w") as tar:
        for name, data, kind in [("good.png", PNG, tarfile.REGTYPE), ("good.cls", b"0", tarfile.REGTYPE), *files]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "good.png"
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(place / "a.tar") as tar:
        members = tar.getmembers()
        content = {m.offset_data // 512: (m.name, tar.extractfile(m).read()) for m in members if m.isreg()}  # type: ignore[union-attr]
    try:
        manifest, report = index_tars(place, label=label, skip_faults=True)
    except UserError:
        assert label == "name"  # and no key has a folder
        return
    assert report["members"]["all"] == len(members) == counted(report)
    rows = load_index(str(place), manifest.shards[0])
    assert len(set(rows["block"].tolist())) == len(rows) == manifest.samples  # no image has two labels
    for row in rows:
        name, data = content[int(row["block"])]
        assert data in (PNG, JPEG) and len(data) == row["length"]
        if label is None:  # the label is in the run of members around the image
            key = name.removeprefix("./").rpartition(".")[0]
            texts = {data for other, data in content.values() if other.removeprefix("./") == f"{key}.cls"}
            assert manifest.classes[row["label"]].encode() in {text.removesuffix(b".0") for text in texts}
    lost = Counter(fault["key"] for fault in report["faults"])
    assert report["left_out"]["samples"] == sum(lost.values())
