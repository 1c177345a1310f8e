"""StyleGAN's dataset.json: labels of images in folders by number."""

import json
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.packing.sources.detect import open_source
from tests.support.datasets.folders import counts, put, zipped
from tests.support.packing import quiet

PNG = [f"{part}/img{part}{i}.png" for part in ("00000", "00001") for i in range(3)]
LABELS = [[path, i % 2] for i, path in enumerate(PNG)]


@pytest.mark.parametrize("form", ["folder", "zip", "zip of the folder"])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_labels_of_stylegan(tmp_path: Path, form: str, labels: list[list[object]] | None) -> None:
    """Folders by number are no classes: dataset.json has the labels, or says that there are none."""
    text = json.dumps({"labels": labels})
    place = put(tmp_path / "set", PNG)
    (place / "dataset.json").write_text(text)
    if form != "folder":
        top = "set/" if form == "zip of the folder" else ""
        place = zipped(tmp_path / "a.zip", [top + path for path in PNG])
        with zipfile.ZipFile(place, "a") as archive:
            archive.writestr(f"{top}dataset.json", text)
    (source,) = open_source(str(place), quiet)
    if labels is None:
        assert counts([source]) == {"": {"all": 6}}
        return
    assert {name: source.labels[i] for i, name in enumerate(source.names)} == dict(LABELS)  # type: ignore[arg-type]
    assert (source.classes, source.passed) == (("0", "1"), ())
    before = source.fingerprint
    if form == "folder":
        (place / "dataset.json").write_text(text.replace('["00000/img000000.png", 0]', '["00000/img000000.png", 1]'))
        assert open_source(str(place), quiet)[0].fingerprint != before
    assert counts(open_source(str(place), quiet, label="name")) == {"": {"00000": 3, "00001": 3}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "cannot be read: .* add --label name"),
        ({"labels": [[path, [0, 1]] for path in PNG]}, r"gives 00000/img000000.png the label \[0, 1\]"),
        ({"labels": [[path, -1] for path in PNG]}, "the label -1: write a number from 0, or add --label none"),
        ({"labels": [[path, True] for path in PNG]}, "the label True"),
        ({"labels": dict(LABELS)}, "has labels that are no list: write"),  # type: ignore[arg-type]
        ({"labels": 7}, "has labels that are no list: write"),
        ("[" * 100_000, "cannot be read: RecursionError"),
        ({"labels": [*LABELS, [PNG[0], 1]]}, "gives 00000/img000000.png the labels 0 and 1"),
        ({"labels": [*LABELS, ["gone.png", 1]]}, "has labels for 1 file not there, such as gone.png"),
        ({"labels": LABELS[1:]}, "has no label for 1 of 6 images, such as 00000/img000000.png"),
        ({"labels": [[path, 90_000 * i] for i, path in enumerate(PNG)]}, "has the label 450000 for 6 images"),
    ],
)
def test_bad_labels_of_stylegan_are_one_line(tmp_path: Path, document: object, message: str) -> None:
    place = put(tmp_path / "set", PNG)
    (place / "dataset.json").write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        open_source(str(place), quiet)
