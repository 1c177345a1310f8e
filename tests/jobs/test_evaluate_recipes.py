"""Evaluations of one checkpoint by several recipes stand beside each other, in files and in MLflow."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import evaluate
from jobs.cli import main
from pipeline.checkpoint import format
from pipeline.evaluation import document as evaluation_document
from pipeline.runs import evaluations
from pipeline.runs.run_folder import load_run_config
from pipeline.tracking import journal
from pipeline.tracking.records import MetricsRecord
from tests.support.patterns import write_tree
from tests.support.saved_run import save_checkpoint, save_run

pytestmark = pytest.mark.usefixtures("one_thread", "short_recipe")


def test_the_samples_of_names_without_a_number_are_the_default() -> None:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    assert parser.parse_args(["RUN"]).samples == evaluation_document.STANDARD_SAMPLES


@pytest.mark.long
def test_another_recipe_replaces_nothing(
    run_folder: Path, splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_document, "STANDARD_SAMPLES", 64)
    held = tmp_path / "held"
    assert main(["shard", str(write_tree(tmp_path / "tree", 20, grey=True)), str(held), "--resolution", "32"]) == 0
    command = ["evaluate", str(run_folder), "--extractor", "patterns", "--metrics", "prdc", "--samples"]
    plain = run_folder / "evaluation" / "0000008192.json"
    beside = run_folder / "checkpoints" / "0000008192" / format.EVALUATION

    def document(path: Path) -> dict[str, Any]:
        return json.loads(path.read_text())  # type: ignore[no-any-return]

    assert main([*command, "32"]) == 0
    quick = document(plain)
    assert quick == document(beside)
    assert main([*command, "64"]) == 0  # more samples: it takes the place, and the quick look is kept
    standard, said = document(plain), capsys.readouterr().out
    (kept,) = plain.parent.glob("0000008192-32-samples-*.json")
    assert document(kept) == quick and f"kept: {kept}, which was {plain} (32 samples)" in said
    assert document(beside) == standard and standard["samples"] == 64
    before = (plain.read_bytes(), beside.read_bytes())
    for words in (["32", "--seed", "1"], ["64", "--test", str(held)], ["40", "--real", "20"], ["64", "--reference", "train"]):
        assert main([*command, *words]) == 0
        assert f"unchanged: {beside}, another evaluation of as many samples or more" in capsys.readouterr().out
        assert (plain.read_bytes(), beside.read_bytes()) == before
    found = evaluations.of_run(run_folder, print)
    assert sorted((one.samples, one.seed) for one in found) == [(32, 0), (32, 1), (40, 0), (64, 0), (64, 0), (64, 0)]
    assert len({one.recipe_id for one in found}) == 5

    # In MLflow, two recipes have no name in common at the step, and the standard one's does not say that it is.
    lines = journal.read_file(journal.figures_path(run_folder))
    rows = [record for record, _ in lines if isinstance(record, MetricsRecord)]
    names = [next(key for key in row.metrics if key.startswith("eval/FID/")) for row in rows]
    assert len(set(names)) == len(names) == 6
    assert names[:3] == [f"eval/FID/patterns{end}" for end in ("/samples-32", "", "/samples-32/seed-1")]
    others = [one.recipe_id[:8] for one in found if one.samples == 64 and one.recipe_id != standard["recipe_id"]]
    assert sorted([names[3], names[5]]) == sorted(f"eval/FID/patterns/recipe-{recipe}" for recipe in others)
    assert main([*command, "64"]) == 0
    assert len(list(journal.read_file(journal.figures_path(run_folder)))) == 6

    # Whoever follows asks for a recipe, not for a file.
    capsys.readouterr()
    (run_folder / "status.json").write_text('{"state": "finished", "images": 8192}')
    assert main([*command, "64", "--follow"]) == 0
    assert "at 4,096 images, EMA" in (said := capsys.readouterr().out) and "at 8,192 images, EMA" not in said
    assert main([*command, "16", "--follow"]) == 0
    assert capsys.readouterr().out.count("images, EMA") == 2
    assert main([*command, "16", "--follow"]) == 0
    assert capsys.readouterr().out.count("images, EMA") == 0


@pytest.mark.long
def test_the_floor_has_as_many_images_as_the_samples(tmp_path: Path, splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    save_checkpoint(save_run(folder, splits / "train", mode="off"), 8192)
    command = ["evaluate", str(folder), "--extractor", "patterns", "--metrics", "prdc", "--json", str(tmp_path / "out.json")]

    def evaluated(*words: str) -> dict[str, Any]:
        assert main([*command, *words]) == 0
        return json.loads((tmp_path / "out.json").read_text())  # type: ignore[no-any-return]

    few = evaluated("--real", "16", "--samples", "128")
    assert few["recipe"]["reference"]["images"] == 16 and few["real"]["training_images"] == 128
    assert few["floor"].keys() == few["metrics"].keys()
    # With fewer images than samples, real ones would look worse than they are.
    train = evaluated("--reference", "train", "--samples", "128")
    assert list(train["floor"]) == ["accuracy[patterns]"] and "FID[patterns] of training images" not in train["real"]
    assert "left out: figures of real images need as many test images as samples; there are 64: pass --samples 64" in (
        capsys.readouterr().out
    )
    assert evaluated("--reference", "train", "--samples", "64")["floor"].keys() == few["metrics"].keys()


@pytest.mark.long
def test_weights_of_a_training_that_diverged_are_warned_of(
    run_folder: Path, tmp_path: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(load_run_config(run_folder), 12288, diverged=True)
    warning = f"biggan: warning: {run_folder} has NaN or infinite values in output.bias: its samples are worthless"
    for command in (
        ["sample", str(run_folder), str(tmp_path / "sheet.png"), "--per-class", "1"],
        ["evaluate", str(run_folder), "--samples", "16", "--metrics", "prdc"],
        ["register", str(run_folder)],
    ):
        assert main(command) == 0, command
        assert warning in capsys.readouterr().err, command
    assert main(["sample", str(run_folder), str(tmp_path / "sheet.png"), "--per-class", "1", "--checkpoint", "8192"]) == 0
    assert "warning" not in capsys.readouterr().err
