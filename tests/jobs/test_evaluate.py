"""`biggan evaluate` on a run of weights that no training has touched."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import evaluate
from jobs.cli import main
from pipeline import classifier
from pipeline.classifier import Recipe
from tests.conftest import write_tree
from tests.pipeline.saved_run import save_checkpoint, save_run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def short_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dozen steps are enough for these patterns."""
    recipe = Recipe(epochs=1, min_steps=24, batch=32)
    monkeypatch.setattr(classifier, "obtain_judge", partial(classifier.obtain_judge, recipe=recipe))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey shards, `train` and `test`, of 4 classes."""
    folder = tmp_path_factory.mktemp("splits")
    for split, images in (("train", 64), ("test", 16)):
        tree = write_tree(folder / "trees" / split, images, grey=True)
        assert main(["shard", str(tree), str(folder / split), "--resolution", "32"]) == 0
    return folder


@pytest.fixture
def run_folder(tmp_path: Path, splits: Path) -> Path:
    config = save_run(tmp_path / "run", splits / "train", mode="off")
    save_checkpoint(config, 8192)
    return tmp_path / "run"


def figures(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "evaluation" / name).read_text())  # type: ignore[no-any-return]


def test_figures_of_the_newest_and_of_another_checkpoint_and_of_the_same_again(
    run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["evaluate", str(run_folder), "--samples", "64", "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    result = figures(run_folder, "0000008192.json")
    assert result == json.loads((tmp_path / "out.json").read_text())
    assert result["real"]["test_accuracy"] > 0.9 and result["real"]["test_images"] == 64
    assert result["accuracy"] == pytest.approx(sum(result["class_accuracy"].values()) / 4)
    assert result["class_accuracy"][result["worst_class"]] == min(result["class_accuracy"].values())
    # Noise from an untrained network is far away, real images are near: one feature extractor, named wherever FID is.
    fid = f"FID[clf-{result['judge']['key'][:8]}]"
    assert result[fid] > 10 * result["real"][f"{fid} of training images"]
    assert f"{fid} to 64 real test images" in printed and "8,192 images" in printed
    assert "training the judge" in printed and f"{result['worst_class']:6}" in printed
    assert printed.count("FID") == printed.count("FID[")
    assert main(["evaluate", str(run_folder), "--samples", "64"]) == 0
    assert figures(run_folder, "0000008192.json") == result
    assert "worst" in next(line for line in printed.splitlines() if line.startswith(result["worst_class"]))

    command = ["evaluate", str(run_folder), "--samples", "64", "--checkpoint", "4096", "--extractor", "patterns"]
    assert main([*command, "--truncation", "0.5"]) == 0
    assert "training the judge" not in capsys.readouterr().out  # it is kept beside the run
    other = figures(run_folder, "0000004096-truncation-0.5.json")
    assert (other["images"], other["truncation"]) == (4096, 0.5)
    assert other["weights_sha256"] != result["weights_sha256"] and other["FID[patterns]"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "--samples 1: must be at least 2"),
        (["--seed", "-1"], "--seed -1"),
        (["--truncation", "0"], "--truncation 0.0: must be above 0"),
        (["--checkpoint", "last"], "--checkpoint last: must be a number"),
        (["--checkpoint", "5"], "no checkpoint at 5 images; it has: 8192, 4096"),
        (["--test", "{splits}/train"], "--test holds the images of --train"),
        (["--test", "{splits}/nowhere"], "no shards at"),
        (["--train", "{splits}/test"], "--test is missing"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, run_folder: Path, splits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_folder), *(word.format(splits=splits) for word in arguments)]) == 78
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (run_folder / "evaluation").exists()


def test_shards_of_other_classes_or_colours(
    run_folder: Path, splits: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_folder), "--test", str(shards)]) == 78
    assert "has channels 3, the run's images have 1" in capsys.readouterr().err
    tree = shutil.copytree(splits / "trees" / "test", tmp_path / "tree")
    shutil.rmtree(tree / "bars")
    assert main(["shard", str(tree), str(tmp_path / "three"), "--resolution", "32"]) == 0
    assert main(["evaluate", str(run_folder), "--test", str(tmp_path / "three")]) == 78
    assert "has other classes than the run" in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path)]) == 78
    assert "is not the folder of a run" in capsys.readouterr().err


def test_the_split_beside(splits: Path) -> None:
    assert evaluate._test_beside(f"{splits}/train/") == f"{splits}/test"
