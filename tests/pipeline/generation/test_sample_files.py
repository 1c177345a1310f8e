from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.generation.sample_files import folder_names, write_folder


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (["bars", "Café au lait", "a,b (c)", "7", "日本", "<b>", "%41", "-rf"], None),
        (["..", "."], ["0", "1"]),
        (["a/b", "a-b", "a\\b"], ["0-a-b", "a-b", "2-a-b"]),
        (["a/b", "0-a-b"], ["0-a-b", "1-0-a-b"]),
        (["x", "/etc/passwd", "C:\\x"], ["x", "1-etc-passwd", "2-C--x"]),
        (["crane", "Crane", "crane", "jay"], ["0-crane", "1-Crane", "2-crane", "jay"]),
        (["n\0l", "\x1b]0;t\x07", "b\nbiggan: error", "caf\udce9", ""], ["0-n-l", "1-0-t", "2-b-biggan- error", "3-caf", "4"]),
        (["x" * 300, "日" * 100, "x" * 200], ["0-" + "x" * 80, "1-" + "日" * 26, "x" * 200]),
        ([".hidden", "~root", " a"], ["0-hidden", "1-root", "2-a"]),
    ],
)
def test_a_class_has_a_folder_of_its_own(classes: list[str], folders: list[str] | None) -> None:
    assert folder_names(classes) == (folders or classes)


@given(st.lists(st.text(st.characters(codec=None) | st.sampled_from("./\\-01a\0"), max_size=6), max_size=8))
def test_folders_are_apart_and_plain(classes: list[str]) -> None:
    folders = folder_names(classes)
    assert len({name.casefold() for name in folders}) == len(classes)
    for name in folders:
        assert name.isprintable() and len(name.encode()) < 255 and not name.startswith(".") and Path(name).name == name


def test_samples_are_written_below_out_alone(tmp_path: Path) -> None:
    classes = ["..", "/etc", "a/b", "n\0l", "x" * 300, "caf\udce9"]
    images = np.zeros((len(classes), 4, 4, 1), np.uint8)
    write_folder(f"{tmp_path}/out/", iter([(images, np.arange(len(classes)))]), classes, "png")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == [f"{i:06d}.png" for i in range(len(classes))]
    assert len(list((tmp_path / "out").iterdir())) == len(classes)
