import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from pipeline.data.loader import DataConfig, load_all
from pipeline.data.manifest import load_manifest
from tests.support.datasets.idx import write_idx
from tests.support.patterns import write_tree
from tests.support.servers import S3Server


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", 4, grey=False, size=48)


def test_a_folder_is_cropped_to_the_resolution(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", str(tree), str(tmp_path / "dst"), "--resolution", "32"]) == 0
    assert "16 images, RGB 32 x 32, 4 classes" in capsys.readouterr().out
    assert load_manifest(str(tmp_path / "dst")).resolution == 32


def test_idx_files_are_padded_to_a_power_of_two_and_split(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    originals = {part: write_idx(tmp_path / "src", part, n, zipped=True) for part, n in (("train", 20), ("t10k", 10))}
    assert main(["shard", str(tmp_path / "src"), str(tmp_path / "dst")]) == 0
    for split, part in (("train", "train"), ("test", "t10k")):
        uri = str(tmp_path / "dst" / split)
        images, labels = load_all(DataConfig(uri=uri), load_manifest(uri))
        stored = sorted((int(y), x[0, 2:-2, 2:-2].tobytes()) for x, y in zip(images.numpy(), labels, strict=True))
        pixels, targets = originals[part]
        assert stored == sorted((int(y), x.tobytes()) for x, y in zip(pixels, targets, strict=True))
        assert images[:, :, :2].sum() == images[..., -2:].sum() == 0


def test_one_split_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "src").mkdir()
    for part in ("train", "t10k"):
        write_idx(tmp_path / "src", part, 10, zipped=False)
    assert main(["shard", str(tmp_path / "src"), str(tmp_path / "dst"), "--split", "test"]) == 0
    assert os.listdir(tmp_path / "dst") == ["test"]
    assert main(["shard", str(tmp_path / "src"), str(tmp_path / "dst"), "--split", "tset"]) == 78
    assert "--split tset" in capsys.readouterr().err


def test_again_says_so_and_other_flags_need_overwrite(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["shard", str(tree), str(tmp_path / "dst"), "--resolution"]
    assert main([*command, "32"]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "dst").iterdir()}
    assert main([*command, "32"]) == 0
    assert "already packed, 16 images" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "dst").iterdir()} == before
    assert main([*command, "16"]) == 78
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "16", "--overwrite"]) == 0
    assert load_manifest(str(tmp_path / "dst")).resolution == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TREE", "DST"], "--resolution is missing"),
        (["TREE", "DST", "--resolution", "33"], "--resolution 33: choose one of"),
        (["TREE", "DST", "--resolution", "32", "--shard-size", "0"], "--shard-size 0"),
        (["TREE", "DST", "--resolution", "32", "--workers", "0"], "--workers 0"),
        (["TREE", "DST", "--resolution", "32", "--keep"], "--keep stores images as they are"),
        (["TREE", "DST", "--keep", "--fit", "pad"], "--keep stores images as they are"),
        (["TREE", "DST", "--resolution", "32", "--quality", "90"], "--quality: png has none"),
        (["TREE", "DST", "--resolution", "32", "--format", "jpg", "--quality", "0"], "--quality 0: from 1 to 100"),
        (["none", "DST", "--resolution", "32"], "SRC none does not exist"),
        (["TREE", "TREE", "--resolution", "32"], "is not empty (it holds bars)"),
        (["TREE", "/sys/biggan-test", "--resolution", "32"], "cannot write /sys/biggan-test"),
    ],
)
def test_bad_input_is_one_line_and_78(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"TREE": str(tree), "DST": str(tmp_path / "dst")}
    assert main(["shard", *(places.get(argument, argument) for argument in arguments)]) == 78
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "dst").exists()


def test_a_corrupt_image_is_one_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "blob" / "0002.png").write_bytes(b"no image")
    assert main(["shard", str(tree), str(tmp_path / "dst"), "--resolution", "32"]) == 65
    error = capsys.readouterr().err
    assert "blob/0002.png" in error
    assert len(error.splitlines()) == 1


def test_to_s3(tree: Path, tmp_path: Path, s3: S3Server) -> None:
    uri = f"{s3.uri}/packed"
    assert main(["shard", str(tree), uri, "--resolution", "32"]) == 0
    assert main(["shard", str(tree), str(tmp_path / "dst"), "--resolution", "32"]) == 0
    local = load_manifest(str(tmp_path / "dst"))
    assert load_manifest(uri) == local
    for ours, theirs in zip(
        load_all(DataConfig(uri=uri), local), load_all(DataConfig(uri=str(tmp_path / "dst")), local), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.long
def test_a_killed_pack_goes_on_behind_its_finished_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 in the midst, the same command again: the same bytes, and what was finished is not written anew."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (4_000, 32, 32), np.uint8), np.zeros(4_000, np.uint8)
    (tmp_path / "src").mkdir()
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / "src" / f"train-{name}-ubyte").write_bytes(header + array.tobytes())
    command = ["shard", str(tmp_path / "src"), str(tmp_path / "dst"), "--shard-size", "1"]
    dst, fresh = tmp_path / "dst" / "train", tmp_path / "fresh" / "train"
    child = subprocess.Popen([sys.executable, "-m", "jobs.cli", *command])
    try:
        deadline = time.monotonic() + 60
        while not (dst / "000002.tar").exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    finally:
        child.wait()
    assert not (dst / "manifest.json").exists()
    before = {name: (dst / name).stat().st_mtime_ns for name in ("000000.tar", "000001.tar")}
    assert main(command) == 0
    assert "continuing after" in capsys.readouterr().out
    assert {name: (dst / name).stat().st_mtime_ns for name in before} == before
    assert main([*command[:2], str(tmp_path / "fresh"), *command[3:]]) == 0
    assert sorted(os.listdir(dst)) == sorted(os.listdir(fresh))
    for path in fresh.iterdir():
        if path.name != "report.json":  # which tells the time that it took
            assert (dst / path.name).read_bytes() == path.read_bytes()


def test_bad_images_can_be_skipped_and_are_reported(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "blob" / "0002.png").write_bytes(b"no image")
    dst = tmp_path / "dst"
    assert main(["shard", str(tree), str(dst), "--resolution", "64", "--on-error", "skip", "--workers", "3"]) == 0
    said = capsys.readouterr().out
    assert "15 images, RGB 64 x 64" in said
    assert "shorter side 48 to 48 px (median 48), 15 smaller than the resolution" in said
    assert "4 classes, 1 shard, " in said
    assert "left out 1 image, such as blob/0002.png" in said
    (rejected,) = json.loads((dst / "report.json").read_bytes())["rejected"]
    assert rejected["name"] == "blob/0002.png"


def test_images_can_be_kept_and_packed_again(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", str(tree), str(tmp_path / "kept"), "--keep"]) == 0
    assert "16 images, RGB of any size" in capsys.readouterr().out
    assert main(["shard", str(tmp_path / "kept"), str(tmp_path / "small"), "--resolution", "32", "--format", "webp"]) == 0
    manifest = load_manifest(str(tmp_path / "small"))
    assert (manifest.resolution, manifest.class_counts) == (32, (4, 4, 4, 4))
    assert manifest.source.startswith("32 px, cropped, lanczos, webp of quality 95 (")


def test_what_was_passed_over_is_said_and_in_the_report(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "@eaDir").mkdir()
    (tree / "blob" / "notes.txt").write_text("")
    (tree / "blob" / "x.heic").write_text("")
    assert main(["shard", str(tree), str(tmp_path / "dst"), "--resolution", "32"]) == 0
    said = capsys.readouterr().out
    assert f"{tree}: 16 images: 4 class folders" in said
    assert "passed over 1 .txt file (blob/notes.txt), 1 .heic image that cannot be read here (blob/x.heic), 1 folder of" in said
    report = json.loads((tmp_path / "dst" / "report.json").read_bytes())
    assert report["layout"] == "4 class folders"
    assert report["passed_over"] == {
        ".txt file": 1,
        ".heic image that cannot be read here": 1,
        "folder of a desktop or NAS": 1,
    }


def test_splits_of_different_kinds_are_refused_and_the_advice_packs_one(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    tree.rename(tmp_path / "set" / "Training")
    (tmp_path / "set" / "val").mkdir()
    (tmp_path / "set" / "Training" / "blob" / "0000.png").rename(tmp_path / "set" / "val" / "0.png")
    command = ["shard", str(tmp_path / "set"), str(tmp_path / "dst"), "--resolution", "32"]
    assert main(command) == 78
    assert "the split val has no class folders, train has: add --split train" in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()
    assert main([*command, "--split", "train"]) == 0
    assert os.listdir(tmp_path / "dst") == ["train"]
    assert load_manifest(str(tmp_path / "dst" / "train")).class_counts == (4, 3, 4, 4)
    assert main([*command, "--label", "none", "--overwrite"]) == 0
    for split, count in (("train", 15), ("val", 1)):
        manifest = load_manifest(str(tmp_path / "dst" / split))
        assert (manifest.classes, manifest.class_counts) == (("all",), (count,))
    assert main([*command[:2], str(tmp_path / "one"), *command[3:], "--label", "name"]) == 0
    assert load_manifest(str(tmp_path / "one")).class_counts == (15, 1)


@pytest.mark.slow
def test_fashion_mnist_in_one_command(tmp_path: Path) -> None:
    began = time.process_time()
    assert main(["shard", "fashion-mnist", str(tmp_path)]) == 0
    assert time.process_time() - began < 60
    for split, each in (("train", 6000), ("test", 1000)):
        manifest = load_manifest(str(tmp_path / split))
        assert manifest.class_counts == (each,) * 10
        assert (manifest.resolution, manifest.channels, manifest.classes[9]) == (32, 1, "Ankle boot")


def test_a_file_in_place_of_the_destination_is_kept(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dst").write_bytes(b"mine")
    assert main(["shard", str(tree), str(tmp_path / "dst"), "--resolution", "8"]) == 78
    assert "dst is not a folder: name another DST" in capsys.readouterr().err
    assert (tmp_path / "dst").read_bytes() == b"mine"
