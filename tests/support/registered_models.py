"""Versions in a registry that a test may promote, and the registry as a test finds it afterwards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from jobs.cli import main
from pipeline.generation.load import load_generator
from pipeline.tracking.mlflow_store import connect
from tests.support.saved_run import save_checkpoint, save_run

FID = "FID[clf]"
RECIPE = {"extractor": "clf", "samples": 10000, "truncation": None, "reference": {"fingerprint": "abc", "split": "test"}}
RECIPE_ID = "0123456789abcdef"


def evaluation(fid: float, **other: Any) -> dict[str, Any]:
    """What `biggan evaluate` writes, as far as the registry reads it."""
    return {"metrics": {FID: fid, "accuracy": 0.9}, "recipe": RECIPE, "recipe_id": RECIPE_ID, **other}


def write_evaluation(run: Path, images: int, fid: float, **other: Any) -> Path:
    """Such a document about a checkpoint, where `biggan evaluate` puts it."""
    path = run / "evaluation" / f"{images:010d}.json"
    path.parent.mkdir(exist_ok=True)
    sha256 = load_generator(run, images).weights_sha256
    path.write_text(json.dumps(evaluation(fid, images=images, weights_sha256=sha256) | other))
    return path


def register_three(folder: Path, shards: Path, store: Path) -> Path:
    """A run with versions 1, 2 and 3 of `tiny`, with FID 30, 20 and 10; no champion."""
    run = folder / "run"
    config = save_run(run, shards, store=store)
    for images, fid in ((4096, 30.0), (8192, 20.0), (12288, 10.0)):
        save_checkpoint(config, images)
        write_evaluation(run, images, fid)
        assert main(["register", str(run), "--checkpoint", str(images), "--name", "tiny"]) == 0
    return run


class Registry:
    """A registry of its own: a copy of a run's store, whose artifacts stay where they are."""

    def __init__(self, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
        shutil.copy(run / "mlflow.db", folder / "copy.db")
        self.uri = f"sqlite:///{folder / 'copy.db'}"
        self.client: MlflowClient = connect(self.uri)
        self._capsys = capsys

    def biggan(self, *argv: str) -> tuple[int, str]:
        """Exit code, and what it said: stdout if it is done, else the one line on stderr."""
        self._capsys.readouterr()
        code = main([*argv, "--tracking-uri", self.uri])
        said = self._capsys.readouterr()
        if code == 0:
            return code, said.out
        (line,) = said.err.splitlines()
        return code, line

    def last_error(self) -> str:
        """The last line on stderr, after warnings."""
        return self._capsys.readouterr().err.splitlines()[-1]

    def champion(self) -> str | None:
        held = self.client.get_registered_model("tiny").aliases.get("champion")
        return None if held is None else str(held)

    def crown(self, version: int) -> None:
        """Set the alias past the gate, as a start."""
        self.client.set_registered_model_alias("tiny", "champion", str(version))

    def tag(self, version: int, key: str, value: str | None) -> None:
        if value is None:
            self.client.delete_model_version_tag("tiny", str(version), key)
        else:
            self.client.set_model_version_tag("tiny", str(version), key, value)

    def evaluate(self, version: int, document: dict[str, Any]) -> None:
        self.tag(version, "evaluation", json.dumps(document))

    def claims(self) -> list[str]:
        return [key for key in self.client.get_registered_model("tiny").tags if key.startswith("promotion_claim")]
