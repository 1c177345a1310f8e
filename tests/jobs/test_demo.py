"""The demo: what it types, when it refuses, and (slow) a small one from images to samples, twice."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from PIL import Image

from jobs import demo
from jobs.cli import commands, main
from pipeline.runs.run_folder import load_run_config
from tests.support.patterns import write_tree
from tests.support.tiny_runs import mlflow_runs


def good() -> dict[str, Any]:
    """Figures that pass."""
    return {
        "images": 1000,
        "samples": 100,
        "accuracy": 0.9,
        "class_accuracy": {"a": 0.8, "b": 1.0},
        "worst_class": "a",
        "FID[x]": 30.0,
        "real": {"test_accuracy": 0.92, "FID[x] of training images": 0.4},
    }


def test_good_figures_pass() -> None:
    assert demo.verdict(good()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accuracy": 0.849}, "class accuracy 84.9%, needed 85%"),
        ({"FID[x]": 80.1}, "FID[x] 80.1, allowed 80"),
        ({"FID[x]": float("nan")}, "FID[x] nan"),
        ({"real": {"test_accuracy": 0.899}}, "the judge knows 89.9% of real test images, needed 90%"),
    ],
)
def test_each_threshold_alone_fails(change: dict[str, Any], words: str) -> None:
    missed = demo.verdict(good() | change)
    assert len(missed) == 1 and words in missed[0]


def test_the_summary_says_how_good_how_long_and_what_next(tmp_path: Path) -> None:
    text = "\n".join(demo.summary(tmp_path, good(), {"train": 60.0, "evaluate": 20.0}, ["too bad"]))
    for words in ("90.0%", "a, 80.0%", "FID[x]  30.0", "real images 0.40", "1.3 min", "train 75%", "NOT GOOD ENOUGH: too bad"):
        assert words in text
    next_commands = text.split("next:\n")[1].splitlines()
    assert len(next_commands) == 3
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/run/mlflow.db" in next_commands[0]
    assert all(line.split()[1] in commands() for line in next_commands[1:])


def test_commands_are_those_of_the_product() -> None:
    assert [step.words[0] for step in demo.steps(Path("demo"), "fashion-mnist", "fashion-mnist")] == [
        "shard",
        "train",
        "evaluate",
        "register",
        "sample",
    ]


@pytest.mark.long
def test_a_step_that_fails_ends_the_demo_with_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = demo.DemoStep("pack", ("shard", str(tmp_path / "none"), str(tmp_path / "shards")))
    never = demo.DemoStep("never", ("shard", "--help"))
    assert demo.show(tmp_path, [missing, never]) == 78
    out = capfd.readouterr()
    assert f"$ biggan shard {tmp_path}/none" in out.out and "1/2 pack" in out.out and "never" not in out.out
    assert out.err.startswith("biggan: error: ")


class Usage(NamedTuple):
    """What `shutil.disk_usage` gives."""

    total: int
    used: int
    free: int


def test_a_small_disk_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**10, 10**10, demo.NEEDED_BYTES - 1))
    assert main(["demo", "--folder", str(tmp_path / "demo")]) == 74
    error = capsys.readouterr().err
    assert "free, the demo needs" in error and str(tmp_path) in error and error.count("\n") == 1
    assert not (tmp_path / "demo").exists()
    # What a first demo has already written need not fit again.
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "samples.png").write_bytes(b"x")
    demo.check_disk(tmp_path / "demo")


def test_a_file_in_place_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").write_text("")
    assert main(["demo", "--folder", str(tmp_path / "demo")]) == 78
    assert "is a file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_demo_from_images_to_samples_and_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # batches this small only wait for a second thread
    for split, images in (("train", 64), ("test", 16)):
        write_tree(tmp_path / "images" / split, images, grey=True)
    config = {
        "total_images": 512,
        "model": {"resolution": 32, "num_classes": 4, "channels": 1, "ch": 4, "shared_dim": 8, "z_dim": 32},
        "batch": {"global_batch": 32, "norm_group": 16},
        "checkpoint": {"every": 256},
        "processes": 2,
        "precision": "auto",
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "demo"
    steps = demo.steps(folder, str(tmp_path / "images"), str(tmp_path / "tiny.yaml"))
    steps[0] = demo.DemoStep(steps[0].title, (*steps[0].words, "--resolution", "32"))
    # 16 updates draw nothing, and the demo must say so; everything before the verdict works.
    assert demo.show(folder, steps) == 1
    first = capfd.readouterr().out
    assert "5/5" in first and "NOT GOOD ENOUGH: class accuracy" in first
    assert Image.open(folder / "samples.png").size == (4 * 32, 8 * 32)
    settled = re.search(r"precision=auto: (bf16|fp32), as a thread of this CPU convolves at", first)
    assert settled and load_run_config(folder / "run").precision == settled[1]
    assert [found.data.params["precision"] for found in mlflow_runs(folder / "run")] == [settled[1]]
    figures = json.loads((folder / "run" / "evaluation" / "0000000512.json").read_text())
    assert figures["images"] == 512 and "FID[fashion-mnist-clf]" in figures

    assert demo.show(folder, steps) == 1
    again = capfd.readouterr().out
    assert "already packed" in again and "has finished" in again and "already registered" in again
    assert "training the judge" not in again
    assert json.loads((folder / "run" / "evaluation" / "0000000512.json").read_text()) == figures
