import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipeline.runs.run_folder import load_run_config
from pipeline.tracking.mlflow_store import connect, store_uri
from tests.support.mistakes import refusal
from tests.support.registered_models import FID, RECIPE, evaluation, write_evaluation
from tests.support.saved_run import COMMIT, save_checkpoint, save_run

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def run_dir(registered_run: Path) -> Path:
    return registered_run


def versions(run_dir: Path, name: str) -> list[Any]:
    found = connect(store_uri(run_dir, None)).search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: int(version.version))


@pytest.mark.long
def test_register_makes_one_version_per_weights(
    tmp_path: Path, shards: Path, empty_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    config = save_run(run_dir, shards, store=empty_store)
    store = connect(store_uri(run_dir, None))
    experiment = store.get_experiment_by_name("biggan")
    assert experiment is not None
    (before,) = store.search_runs([experiment.experiment_id])

    assert main(["register", str(run_dir), "--name", "tiny", "--alias", "demo"]) == 0
    said = capsys.readouterr().out
    assert "registered: tiny version 1, alias demo, 4,096 images" in said
    assert f"biggan sample models:/tiny@demo samples.png --tracking-uri {run_dir}" in said
    (version,) = versions(run_dir, "tiny")
    assert version.tags["images"] == "4096" and version.tags["git_commit"] == COMMIT
    assert version.tags["dataset_fingerprint"] == before.data.tags["biggan.dataset_fingerprint"]
    assert version.tags["run_id"] == version.run_id == before.info.run_id
    assert len(version.tags["weights_sha256"]) == 64 and "evaluation" not in version.tags
    assert len(version.tags["files_sha256"]) == len(version.tags["golden_sha256"]) == 64
    assert version.tags["config_sha256"] == hashlib.sha256((run_dir / "config.yaml").read_bytes()).hexdigest()

    # All of it is in the run's own folder.
    model_id = version.source.removeprefix("models:/")
    assert Path(store.get_logged_model(model_id).artifact_location.removeprefix("file://")).is_relative_to(run_dir)
    assert not (tmp_path / "mlruns").exists()

    # The training's run has a model now, and is otherwise as it was.
    after = store.get_run(before.info.run_id)
    assert (after.info.status, after.info.end_time) == (before.info.status, before.info.end_time)
    assert len(store.get_metric_history(before.info.run_id, "loss/d")) == 1
    assert after.outputs is not None and [output.step for output in after.outputs.model_outputs] == [4096]

    assert main(["register", str(run_dir), "--name", "tiny", "--alias", "again"]) == 0
    assert "already registered: tiny version 1, alias again" in capsys.readouterr().out
    save_checkpoint(config, 8192)
    assert main(["register", str(run_dir), "--name", "tiny", "--alias", "demo"]) == 0
    assert "registered: tiny version 2, alias demo, 8,192 images" in capsys.readouterr().out
    assert [int(v.version) for v in versions(run_dir, "tiny")] == [1, 2]
    assert int(store.get_model_version_by_alias("tiny", "demo").version) == 2
    assert int(store.get_model_version_by_alias("tiny", "again").version) == 1


@pytest.mark.long
def test_a_run_that_was_never_delivered_is_delivered_first(
    tmp_path: Path, shards: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    save_run(run_dir, shards, store=empty_store, mode="off")
    assert main(["register", str(run_dir)]) == 0
    assert "registered: biggan version 1, alias challenger" in capsys.readouterr().out
    (version,) = versions(run_dir, "biggan")
    run = connect(store_uri(run_dir, None)).get_run(version.run_id)
    assert run.data.metrics == {"loss/d": 0.5} and run.info.status == "FINISHED"


def test_a_dead_server_is_one_line_and_a_storage_failure(
    tmp_path: Path, shards_grey: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "run"
    save_run(other, shards_grey, uri="http://user:secret@127.0.0.1:9", mode="off")
    code, line = refusal(capsys, "register", str(other))
    assert code == 74 and "http://127.0.0.1:9" in line and "secret" not in line


@pytest.mark.parametrize("option", [("--alias", "latest"), ("--alias", "v1"), ("--alias", "a b"), ("--name", "a/b")])
def test_a_name_that_the_registry_would_refuse_is_named(
    run_dir: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    code, line = refusal(capsys, "register", str(run_dir), *option)
    assert code == 78 and f"{option[0]} '{option[1]}'" in line


def test_a_folder_without_a_run_or_without_a_checkpoint_is_named(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refusal(capsys, "register", str(tmp_path))
    assert code == 78 and str(tmp_path) in line
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(run_dir), str(copy)))
    assert load_run_config(copy).run == str(copy)
    shutil.rmtree(copy / "checkpoints")
    code, line = refusal(capsys, "register", str(copy))
    assert code == 78 and "no checkpoint" in line


@pytest.fixture
def two_checkpoints(tmp_path: Path, shards_grey: Path, empty_store: Path) -> Path:
    """The folder of a run with checkpoints at 4,096 and 8,192 images, and a document of before there were recipes."""
    config = save_run(tmp_path / "run", shards_grey, store=empty_store)
    save_checkpoint(config, 8192)
    older = tmp_path / "run" / "evaluation" / "0000004096.json"
    older.parent.mkdir()
    older.write_text(json.dumps({"images": 4096, "FID[clf]": 5.0}))
    return tmp_path / "run"


@pytest.mark.long
def test_an_evaluation_of_the_very_weights_goes_with_them(two_checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = two_checkpoints
    older = run_dir / "evaluation" / "0000004096.json"
    register = ["register", str(run_dir), "--name", "tiny"]

    # No evaluation yet, but an older document: said, and registered without.
    assert main([*register, "--checkpoint", "4096"]) == 0
    said = capsys.readouterr().out
    assert f"ignored: {older} has no recipe" in said and "evaluation:" not in said
    code, line = refusal(capsys, *register, "--best", FID)
    assert code == 78 and "no evaluation of this run has it; they have nothing" in line

    # Registering again after an evaluation renews the tag, and only that.
    write_evaluation(run_dir, 4096, 7.0)
    write_evaluation(run_dir, 8192, 9.0)
    assert main([*register, "--best", FID]) == 0
    said = capsys.readouterr().out
    assert (
        "already registered: tiny version 1" in said
        and "evaluation: FID[clf] 7, accuracy 0.9 (10,000 samples, recipe 0123456789abcdef)" in said
    )
    (version,) = versions(run_dir, "tiny")
    assert json.loads(version.tags["evaluation"]) == evaluation(7.0)
    write_evaluation(run_dir, 4096, 6.5)
    assert main([*register, "--checkpoint", "4096"]) == 0
    assert json.loads(versions(run_dir, "tiny")[0].tags["evaluation"])["metrics"][FID] == 6.5

    # A quick look takes no place of theirs, in the folder's order of files or as a file of its own; all are said and kept.
    quick = {"recipe": RECIPE | {"samples": 500}, "recipe_id": "5" * 16}
    small = write_evaluation(run_dir, 4096, 29.0, **quick).rename(run_dir / "evaluation" / "0000004096-500-samples-ab.json")
    capsys.readouterr()
    assert main([*register, "--checkpoint", "4096"]) == 0
    said = capsys.readouterr().out
    assert "evaluation: FID[clf] 6.5, accuracy 0.9 (10,000 samples, recipe" in said
    assert "beside it: FID[clf] 29, accuracy 0.9 (500 samples, recipe 5555555555555555)" in said
    assert f"keeps its evaluation of more samples, or as many: pass --evaluation FILE for {small}" in said
    tags = versions(run_dir, "tiny")[0].tags
    assert (
        json.loads(tags["evaluation"])["metrics"][FID] == 6.5
        and json.loads(tags[f"evaluation.{'5' * 16}"])["metrics"][FID] == 29
    )
    assert main([*register, "--checkpoint", "4096", "--evaluation", str(small)]) == 0
    assert json.loads(versions(run_dir, "tiny")[0].tags["evaluation"])["metrics"][FID] == 29
    assert "beside it: FID[clf] 6.5, accuracy 0.9 (10,000 samples" in capsys.readouterr().out


@pytest.mark.long
def test_evaluations_that_do_not_compare_or_are_not_theirs_are_refused(
    two_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = two_checkpoints
    older = run_dir / "evaluation" / "0000004096.json"
    register = ["register", str(run_dir), "--name", "tiny"]
    write_evaluation(run_dir, 4096, 6.5)
    assert main([*register, "--checkpoint", "4096"]) == 0
    capsys.readouterr()

    # Figures of two recipes do not compare; a file about other weights is not theirs.
    other = write_evaluation(run_dir, 8192, 1.0, recipe_id="f" * 16)
    code, line = refusal(capsys, *register, "--best", FID)
    assert code == 78 and "by several recipes" in line and "f" * 16 in line
    code, line = refusal(capsys, *register, "--checkpoint", "4096", "--evaluation", str(other))
    assert code == 78 and "is about other weights" in line and "8,192 images" in line
    older.write_text(json.dumps({"images": 4096, "FID[clf]": 5.0}))
    code, line = refusal(capsys, *register, "--checkpoint", "4096", "--evaluation", str(older))
    assert code == 78 and "has no recipe" in line
    code, line = refusal(capsys, *register, "--checkpoint", "4096", "--evaluation", str(tmp_path / "none"))
    assert code == 78 and "is not a file" in line
    assert main([*register, "--evaluation", str(other)]) == 0
    assert json.loads(versions(run_dir, "tiny")[1].tags["evaluation"])["recipe_id"] == "f" * 16
    capsys.readouterr()

    # What the best was said of, and what is there now, must be the same.
    write_evaluation(run_dir, 8192, 1.0, weights_sha256="0" * 64)
    code, line = refusal(capsys, *register, "--best", FID)
    assert code == 78 and "is about other weights than the checkpoint has" in line
