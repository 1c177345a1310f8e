"""Whose files packing replaces: its own, as its manifest or pack.json lists them, and nobody else's."""

import os
import re
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline import storage
from pipeline.errors import ConfigError, DataError
from pipeline.packing.indexer import index_shards
from pipeline.packing.pack import pack, packed
from pipeline.packing.sample_rules import Rules
from pipeline.packing.sources.detect import Source, open_source
from pipeline.packing.tar_listing import find_shards
from tests.support.packing import CONFIG, SMALL, Stopped, contents, quiet, stop_after, without_report
from tests.support.patterns import write_tree


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(str(write_tree(tmp_path / "tree", 20, grey=False)))[0]


THEIRS = {
    "000000.tar": b"somebody's",
    "000001.tar.idx": b"Energon's",
    "report.json": b"{}",
    "pack.json": b'{"name": "resources"}',
    "manifest.json": b'{"owner": "me"}',
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_files_of_somebody_else_are_refused_and_not_touched(source: Source, tmp_path: Path, name: str, overwrite: bool) -> None:
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / name).write_bytes(THEIRS[name])
    before = contents(dst)
    advice = f"{dst} holds {name}, which `biggan shard` did not write there: name another DST"
    with pytest.raises(ConfigError, match=rf"^{re.escape(advice)}$"):
        packed(source, str(dst), CONFIG, overwrite)
    with pytest.raises(ConfigError, match=re.escape(advice)):
        pack(source, str(dst), CONFIG, quiet, resume=not overwrite)
    assert contents(dst) == before


def test_tars_that_are_only_indexed_are_not_replaced(source: Source, tmp_path: Path) -> None:
    """Their manifest is ours, and lists them."""
    dst = tmp_path / "dst"
    pack(source, str(dst), CONFIG, quiet)
    for name in ("manifest.json", "report.json"):
        (dst / name).unlink()
    index_shards(find_shards(str(dst)), str(dst), Rules(), 1, lambda samples, size: None)
    before = contents(dst)
    with pytest.raises(ConfigError, match=r"holds 000000\.tar and \d+ other such files, which .* name another DST$"):
        packed(source, str(dst), SMALL, overwrite=True)
    assert contents(dst) == before


def test_shards_are_not_packed_over_themselves(source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(source, str(tmp_path / "dst"), CONFIG, quiet)
    before = contents(tmp_path / "dst")
    command = ["shard", str(tmp_path / "dst"), f"{tmp_path}/tree/../dst/", "--resolution", "16", "--overwrite"]
    assert main(command) == 78
    assert f"SRC and DST are the same folder, {tmp_path / 'dst'}: name another DST" in capsys.readouterr().err
    assert contents(tmp_path / "dst") == before


def test_overwrite_replaces_what_its_own_manifest_lists_and_nothing_else(source: Source, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    pack(source, str(dst), SMALL, quiet)
    theirs = {"00000.tar": b"1", "0000000.tar.idx": b"2", "notes.json": b"3", ".000000.tar.half.tmp": b"4", "x.tmp": b"5"}
    for name, data in theirs.items():
        (dst / name).write_bytes(data)
    (dst / ".report.json.0123abcd.tmp").write_bytes(b"ours")
    assert packed(source, str(dst), CONFIG, overwrite=True) is None
    stop_after(source, dst, 0, CONFIG)  # killed while it removes: what it lists is gone later
    pack(source, str(tmp_path / "fresh"), CONFIG, quiet)
    pack(source, str(dst), CONFIG, quiet, resume=False)
    assert without_report(dst) == without_report(tmp_path / "fresh") | theirs


@pytest.mark.parametrize("file", ["manifest.json", "pack.json"])
def test_what_a_damaged_list_says_is_replaced(source: Source, tmp_path: Path, file: str) -> None:
    dst = tmp_path / "dst"
    stop_after(source, dst, 64) if file == "pack.json" else pack(source, str(dst), SMALL, quiet)
    (dst / file).write_bytes((dst / file).read_bytes()[:-2])
    with pytest.raises(DataError, match="--overwrite"):
        packed(source, str(dst), SMALL)
    assert packed(source, str(dst), SMALL, overwrite=True) is None
    pack(source, str(dst), CONFIG, quiet, resume=False)
    pack(source, str(tmp_path / "fresh"), CONFIG, quiet)
    assert without_report(dst) == without_report(tmp_path / "fresh")


def test_files_of_a_pack_that_is_replaced_are_known_after_a_kill(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(source, str(tmp_path / "dst"), SMALL, quiet)
    removed = 0

    def killed(uri: str) -> None:
        nonlocal removed
        removed += 1
        if removed == 3:
            raise Stopped
        os.unlink(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", killed)
        with pytest.raises(Stopped):
            pack(source, str(tmp_path / "dst"), CONFIG, quiet, resume=False)
    assert "manifest.json" not in contents(tmp_path / "dst")
    assert packed(source, str(tmp_path / "dst"), CONFIG) is None
    pack(source, str(tmp_path / "dst"), CONFIG, quiet)
    pack(source, str(tmp_path / "fresh"), CONFIG, quiet)
    assert without_report(tmp_path / "dst") == without_report(tmp_path / "fresh")


def test_a_report_of_somebody_else_beside_our_shards_is_not_replaced(source: Source, tmp_path: Path) -> None:
    pack(source, str(tmp_path / "dst"), CONFIG, quiet)
    (tmp_path / "dst" / "report.json").write_bytes(b'{"quarter": 4}')
    with pytest.raises(ConfigError, match=r"holds report\.json, which `biggan shard` did not write there"):
        packed(source, str(tmp_path / "dst"), SMALL, overwrite=True)
    assert (tmp_path / "dst" / "report.json").read_bytes() == b'{"quarter": 4}'


def test_without_a_list_of_ours_nothing_is_taken_for_ours(source: Source, tmp_path: Path) -> None:
    """Not even what has the form of our unfinished files: they are hidden, so no reason to refuse."""
    place = tmp_path / "dst" / ".000000.tar.0123abcd.tmp"
    place.parent.mkdir()
    place.write_bytes(b"mine")
    assert packed(source, str(tmp_path / "dst"), CONFIG) is None
    pack(source, str(tmp_path / "dst"), CONFIG, quiet)
    assert place.read_bytes() == b"mine"


def test_a_class_with_the_name_of_a_shard_makes_no_file_ours(tmp_path: Path) -> None:
    (write_tree(tmp_path / "tree", 4, grey=True) / "bars").rename(tmp_path / "tree" / "000009.tar")
    source = open_source(str(tmp_path / "tree"))[0]
    pack(source, str(tmp_path / "dst"), CONFIG, quiet)
    (tmp_path / "dst" / "000009.tar").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds 000009\.tar, which `biggan shard` did not write there"):
        packed(source, str(tmp_path / "dst"), SMALL, overwrite=True)
    assert (tmp_path / "dst" / "000009.tar").read_bytes() == b"mine"
