"""How the layouts of trees that people have are read, or what their refusal says."""

import argparse
import json
import os
import re
import shlex
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from jobs import shard
from pipeline.errors import ConfigError, DataError
from pipeline.packing.sources.detect import open_source
from tests.support.datasets.folders import counts, put, zipped
from tests.support.packing import quiet


def classes(*names: str, below: str = "", ending: str = "jpg") -> list[str]:
    return [f"{below}{name}/{i}.{ending}" for name in names for i in (1, 2)]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser()
    shard.add_arguments(found)
    return found


def advised(message: str, place: Path) -> list[list[str]]:
    """The arguments of `biggan shard` that a refusal of `place` says to type."""
    flags = re.findall(r"add (--label \w+ to --split \w+|--(?:label|split) \w+)", message)
    whole = [shlex.split(words) for words in re.findall(r"`biggan shard ([^`]+)`", message)]
    return whole + [[str(place), "DST", *words.replace(" to ", " ").split()] for words in flags]


AB = {"a": 2, "b": 2}
TRAIN, VAL = classes("a", "b", below="TRAIN/"), classes("a", "b", below="Val/")

READ = {
    "splits in any case": ([*TRAIN, *VAL], {"train": AB, "val": AB}),
    "Kaggle's": (classes("a", "b", below="Training/") + classes("a", "b", below="Testing/"), {"train": AB, "test": AB}),
    "dev and eval": (classes("a", "b", below="dev/") + classes("a", "b", below="eval/"), {"dev": AB, "eval": AB}),
    "longer names": (classes("a", "b", below="my_train/") + classes("a", "b", below="my_test/"), {"train": AB, "test": AB}),
    "train in a class's name": (
        classes("bullet_train", "cat", "test_tube"),
        {"": {"bullet_train": 2, "cat": 2, "test_tube": 2}},
    ),
    "a split without images": ([*TRAIN, "test/notes.txt"], {"train": AB}),
    "NAS and desktop": (
        [
            *(*classes("a", "b"), "@eaDir/a/1.jpg", "a/@eaDir/1.jpg/x.jpg", "#recycle/1.jpg", "lost+found/1.jpg", "a/._1.jpg"),
            *(".git/1.jpg", "a/.ipynb_checkpoints/1.jpg", "__MACOSX/a/._1.jpg", "System Volume Information/1.jpg", "Thumbs.db"),
        ],
        {"": AB},
    ),
    "other endings": (["a/1.JFIF", "a/2.avif", "b/1.JPE", "b/2.tga", "b/3.heic"], {"": AB}),
    "a flat folder": (["1.jpg", "2.png", "notes/a.txt"], {"": {"all": 2}}),
    "five digits that are classes": (classes("00000", "00001"), {"": {"00000": 2, "00001": 2}}),
    "somebody's dataset.json": ([*classes("a", "b"), "dataset.json"], {"": AB}),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("form", ["folder", "zip", "zip of the folder", "zip of Windows"])
def test_layouts_that_are_read(tmp_path: Path, case: str, form: str) -> None:
    paths, expected = READ[case]
    paths = [path.replace("/", "\\") if form == "zip of Windows" else path for path in paths]
    if form == "zip of the folder":
        paths = [f"photos/{path}" for path in paths]
    if form != "folder" and any("dataset.json" in path for path in paths):
        paths = [path for path in paths if "dataset.json" not in path]
    place = put(tmp_path / "tree", paths) if form == "folder" else zipped(tmp_path / "a.zip", paths)
    if case == "somebody's dataset.json" and form == "folder":
        (place / "dataset.json").write_text('{"title": "photos"}')
    if case == "a flat folder" and form == "zip of the folder":
        expected = {"": {"photos": 2}}
    sources = open_source(str(place), quiet)
    assert counts(sources) == expected
    for source in sources:
        data = source.read(0)
        assert isinstance(data, bytes)
        assert data.decode().replace("\\", "/").endswith(source.names[0])


REFUSED = {
    "a split without class folders": (
        [*TRAIN, "val/1.jpg"],
        "the split val has no class folders, train has: add --split train to pack that split, or add --label none",
    ),
    "splits without class folders": (
        ["train2017/1.jpg", "val2017/1.jpg", "annotations/x.json"],
        "train2017, val2017 are splits without class folders, or classes: add --label none .* or add --label name",
    ),
    "one folder more": (
        [*TRAIN, *VAL, "unlabeled/1.jpg"],
        "TRAIN, Val are splits and unlabeled is not, or all are classes: add --split train .* or add --label name",
    ),
    "a longer name more": (
        classes("a", "b", below="seg_train/") + classes("a", "b", below="seg_test/") + ["seg_pred/1.jpg"],
        "seg_train, seg_test are splits and seg_pred is not",
    ),
    "a class called train": (
        classes("apple", "train"),
        "train is a split and apple is not, or all are classes: type `biggan .* --split train --label none` .* --label name",
    ),
    "an image beside splits": ([*TRAIN, "x.jpg"], "x.jpg is in no class folder, and beside the splits TRAIN"),
    "two folders of one split": ([*TRAIN, *classes("a", below="training/")], "TRAIN and training are both the split train"),
    "an image beside classes": ([*classes("a", "b"), "x.jpg"], "x.jpg is in no class folder, beside the class folders a, b"),
    "splits below classes": (
        ["a/train/1.jpg", "a/test/1.jpg", "b/1.jpg"],
        "class folder a holds a folder test: .* --label name",
    ),
    "one level too deep": (
        classes("a", "b", below="x/y/"),
        r"all images are in the folder x/y/ with 2 folders \(a, b\) inside: .*`biggan shard \S*/x/y DST`.* add --label name",
    ),
    "labels one level too deep": (
        ["x/dataset.json", "x/00000/1.png", "x/00000/2.png"],
        r"all images are in the folder x/ with dataset.json inside: .*`biggan shard \S*/x DST`.* add --label name",
    ),
    "one level too deep in a split": (
        classes("a", "b", below="train/x/"),
        r"all images are in the folder x/ .*`biggan shard \S*/train/x DST`.* add --label name to --split train",
    ),
    "a sequence cut into folders": (
        ["00000/00000.png", "00000/00001.png", "01000/01000.png"],
        "the folders 00000, 01000 hold one numbered sequence of images, or are classes: add --label none .* --label name",
    ),
    "a class that cannot be read": ([*classes("a"), "b/1.heic"], r"class folder b has no images \(it holds 1 .heic image that"),
    "no images": (["a/1.heic", "a/x.txt"], "has no images; it holds 1 .heic image that cannot be read here .*, 1 .txt file"),
    "tars in folders": (["train/0.tar", "train/0.json"], "shards, which .* `biggan index .*/train --out DST`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path, case: str) -> None:
    paths, message = REFUSED[case]
    place = put(tmp_path / "tree", paths)
    for file in place.rglob("dataset.json"):
        file.write_text(json.dumps({"labels": [["00000/1.png", 0], ["00000/2.png", 1]]}))
    with pytest.raises(ConfigError, match=message) as caught:
        open_source(str(place), quiet)
    assert len(str(caught.value).splitlines()) == 1
    for words in advised(str(caught.value), place):
        args = parser().parse_args(words)
        assert open_source(args.src, quiet, args.split, args.label)


def test_a_split_is_chosen_by_any_word_and_the_others_are_not_compared(tmp_path: Path) -> None:
    """tiny-imagenet: the images of val and test lie in one folder, which is no class."""
    tree = put(tmp_path / "tiny", [f"train/n{i}/images/{k}.JPEG" for i in range(3) for k in range(2)])
    put(tree, ["val/images/1.JPEG", "val/val_annotations.txt", "test/images/1.JPEG", "train/n0/n0_boxes.txt"])
    with pytest.raises(
        ConfigError, match=r"class images is in only one of train \(3 classes\) and test \(1 class\).*--split train"
    ):
        open_source(str(tree), quiet)
    said: list[str] = []
    (source,) = open_source(str(tree), said.append, split="Training")
    assert (source.split, source.classes, len(source.labels)) == ("train", ("n0", "n1", "n2"), 6)
    assert "6 images in 3 folders below a class folder (such as n0/images), taken as part of the class" in said[0]
    assert Counter(kind for _, kind in source.passed) == {".txt file": 2, "image outside the split": 2}
    (val,) = open_source(str(tree), said.append, split="val")
    assert said[2].endswith("tiny, val: 1 image: 1 class folder (images): one class") and val.classes == ("images",)
    for wanted, label, message in [
        ("tset", None, "--split tset: .* has train, test, val"),
        ("x", "name", "has train, test, val"),
    ]:
        with pytest.raises(ConfigError, match=message):
            open_source(str(tree), quiet, wanted, label)


def test_label_none_and_name_read_what_is_refused(tmp_path: Path) -> None:
    tree = put(tmp_path / "tree", ["train/1.jpg", "train/2.jpg", "val/3.jpg"])
    assert counts(open_source(str(tree), quiet, label="none")) == {"train": {"all": 2}, "val": {"all": 1}}
    assert counts(open_source(str(tree), quiet, label="name")) == {"": {"train": 2, "val": 1}}
    assert counts(open_source(str(tree), quiet, "val", "none")) == {"val": {"all": 1}}
    with pytest.raises(ConfigError, match="the split val has no class folders: add --label none"):
        open_source(str(tree), quiet, "val")
    put(tree, ["x.jpg", "y/1.jpg"])
    (tree / "train").rename(tree / "a")
    (tree / "val").rename(tree / "b")
    assert counts(open_source(str(tree), quiet, label="none")) == {"": {"all": 5}}


def test_links_to_folders_are_followed_and_show_no_image_twice(tmp_path: Path) -> None:
    store = put(tmp_path / "store", classes("n1", "n2"))
    tree = put(tmp_path / "tree", ["n1/own.jpg"])
    links = {
        "n1/more": store / "n1",
        "n1/again/more": store / "n1",
        "n1/up": tree,
        "n2": store / "n2",
        "n2x": tmp_path / "none",
    }
    for name, target in links.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).symlink_to(target)
    (source,) = open_source(str(tree), quiet)
    assert counts([source]) == {"": {"n1": 3, "n2": 2}}
    assert Counter(kind for _, kind in source.passed) == {
        "link to an image of the same class": 2,
        "link back to a folder above it": 1,
        "broken link": 1,
    }
    (tree / "n2x").unlink()
    (tree / "n3").symlink_to(store / "n2")
    with pytest.raises(
        ConfigError, match=r"n2/1.jpg and n3/1.jpg are one image by a link, in the classes n2 and n3: remove one"
    ):
        open_source(str(tree), quiet)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train").symlink_to(store)
    assert counts(open_source(str(tmp_path / "splits"), quiet)) == {"train": {"n1": 2, "n2": 2}}


def test_names_that_are_no_text_and_zips_that_repeat_a_name(tmp_path: Path) -> None:
    for name in (b"\xe9", b"\xea"):
        os.makedirs(os.fsencode(tmp_path / "tree") + b"/" + name)
        Path(os.fsdecode(os.fsencode(tmp_path / "tree") + b"/" + name + b"/1.jpg")).write_text("")
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"the name of the class \\xe9 is not UTF-8: rename it, or add --label none"):
        open_source(str(tmp_path / "tree"), said.append)
    (source,) = open_source(str(tmp_path / "tree"), said.append, label="none")
    assert len(source.labels) == 2
    "".join(said).encode()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/1.jpg", "old")
        archive.writestr("a\\1.jpg", "new")
        archive.writestr("b/1.jpg", "")
    (source,) = open_source(str(tmp_path / "a.zip"), quiet)
    assert (source.names, source.read(0)) == (["a/1.jpg", "b/1.jpg"], b"new")
    assert source.passed == (("a/1.jpg", "file that the zip has again"),)
    data = zipped(tmp_path / "b.zip", ["ä/1.jpg"]).read_bytes()
    (tmp_path / "b.zip").write_bytes(data.replace("ä".encode(), b"\xff\xff"))
    with pytest.raises(DataError, match=r"cannot read \S*b\.zip: .*its names"):
        open_source(str(tmp_path / "b.zip"), quiet)
