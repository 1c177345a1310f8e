import base64
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.cli import main
from model.sampling import generate
from pipeline.generation import export
from pipeline.generation.load import TrainedGenerator, load_generator
from tests.support.saved_run import save_run, short_standing_statistics

# Loads the model where our packages cannot be imported, and answers requests as a service would.
CONSUMER = """
import importlib.abc, json, sys, traceback

class NoneOfOurs(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("model", "pipeline", "jobs", "tests"):
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, NoneOfOurs())
import mlflow.pyfunc, pandas as pd
served = mlflow.pyfunc.load_model(sys.argv[1])
answers = []
for ids, params in json.loads(sys.argv[2]):
    try:
        kind = object if any(type(i) is not int for i in ids) else "int64"
        asked = pd.DataFrame({"class_id": ids}, dtype=kind, index=[2 * i + 5 for i in range(len(ids))])
        answer = served.predict(asked, params=params)
        assert list(answer.index) in (list(asked.index), [0])  # 0: of the description
        answers.append(answer.to_dict("list"))
    except Exception as error:
        answers.append({"error": f"{getattr(error, 'error_code', '')}: {error}"})
leaked = sorted(n for n in sys.modules if n.partition(".")[0] in ("model", "pipeline", "jobs", "tests"))
print(json.dumps({"answers": answers, "leaked": leaked}))
"""
REQUESTS: list[tuple[list[Any], dict[str, Any]]] = [
    ([0, 1, 2, 3, 0], {"seed": 3}),
    ([0, 1, 2, 3, 0], {"seed": 3, "max_batch": 2}),
    ([0, 1, 2, 3, 0], {"seed": 4}),
    ([0, 1, 2, 3, 0], {"seed": 3, "truncation": 0.5}),
    ([0, 1, 2, 3], {}),
    ([2, 3, 0], {"seed": 3, "start": 2}),
    ([0], {"format": "description"}),
    ([], {}),
    ([0, 4], {}),
    ([-1], {}),
    ([0], {"truncation": 0.0}),
    ([0], {"format": "jpeg"}),
    ([0], {"seed": -1}),
    ([0], {"max_batch": 0}),
    ([0], {"max_batch": 1025}),
    ([0], {"start": -1}),
    ([0], {"truncation": float("inf")}),
    ([0] * 1025, {}),
    *(([0, wrong], {}) for wrong in (1.5, float("nan"), None, True, "coat", "²")),
    ([0], {"seed": "x"}),
    (["bars", "1", "checks", 3.0], {"seed": None, "truncation": None, "start": None}),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    save_run(folder, shards, mode="off")
    return folder


@pytest.fixture(scope="module")
def trained(run_dir: Path) -> TrainedGenerator:
    with pytest.MonkeyPatch.context() as patch:
        short_standing_statistics(patch)
        return load_generator(run_dir)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, trained: TrainedGenerator) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model"
    export.save_model(trained, path)
    return path


@pytest.fixture(scope="module")
def consumer(exported: Path) -> dict[str, Any]:
    """What a fresh process says that has only the model's requirements, works elsewhere and must not unpickle."""
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", CONSUMER, str(exported), json.dumps(REQUESTS)],
        cwd="/", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def pixels(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The pictures of an answer, int [n, H, W, C]."""
    files = [Image.open(io.BytesIO(base64.b64decode(text))) for text in answer["png"]]
    assert all(file.format == "PNG" for file in files)
    return np.stack([np.atleast_3d(np.asarray(file)).astype(int) for file in files])


@pytest.mark.long
def test_a_process_without_our_packages_draws_what_the_run_draws(consumer: dict[str, Any], trained: TrainedGenerator) -> None:
    seed3, small_batch, seed4, truncated, *_ = consumer["answers"]
    assert seed3["class_id"] == [0, 1, 2, 3, 0]
    labels = torch.tensor([0, 1, 2, 3, 0])
    for answer, options in ((seed3, {"seed": 3}), (seed4, {"seed": 4}), (truncated, {"seed": 3, "truncation": 0.5})):
        ours = generate(trained.generator, labels, **options).permute(0, 2, 3, 1).numpy()
        assert abs(pixels(answer) - ours).max() <= 1  # rounding, should another number of threads sum otherwise
    assert pixels(seed3).shape == (5, 32, 32, 3)
    assert abs(pixels(seed3) - pixels(small_batch)).max() <= 1
    assert abs(pixels(seed3) - pixels(seed4)).max() > 10 and abs(pixels(seed3) - pixels(truncated)).max() > 10
    assert abs(pixels(seed3)[0] - pixels(seed3)[4]).max() > 10  # same class, another row: another latent
    assert consumer["leaked"] == []
    assert abs(pixels(consumer["answers"][5]) - pixels(seed3)[2:]).max() <= 1  # samples 2 to 4


def test_classes_have_names_and_parameters_may_be_null(consumer: dict[str, Any]) -> None:
    by_name, by_number = consumer["answers"][-1], consumer["answers"][4]
    assert by_name["class_id"] == by_number["class_id"] == [0, 1, 2, 3]
    assert abs(pixels(by_name) - pixels(by_number)).max() <= 1


def test_the_model_describes_itself(consumer: dict[str, Any], trained: TrainedGenerator) -> None:
    about = json.loads(consumer["answers"][6]["description"][0])
    assert about["classes"] == list(trained.classes) and about["weights_sha256"] == trained.weights_sha256
    assert about["resolution"] == 32 and about["channels"] == 3 and about["most_rows"] == 1024
    assert about["params"] == sorted(param.name for param in export.signature().params.params)


@pytest.mark.parametrize("kind", ["mlflow", "safetensors"])
def test_an_export_is_the_same_generator(
    kind: str, run_dir: Path, trained: TrainedGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    short_standing_statistics(monkeypatch)
    assert main(["export", str(run_dir), str(tmp_path / "a" / "model"), "--format", kind]) == 0
    assert f"{kind}, 4,096 images, weights sha256 {trained.weights_sha256[:12]}" in capsys.readouterr().out
    again = load_generator(tmp_path / "a" / "model")
    assert again.weights_sha256 == trained.weights_sha256 and again.classes == trained.classes
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["there"], "is there already: name a new folder"),
        (["there.onnx"], "is there already: name a new file"),
        (["new", "--format", "onnx"], "needs a name that ends in .onnx"),
        (["new.onnx", "--format", "mlflow"], "needs a name that ends in .onnx"),
        (["new", "--standing", "1"], "--standing 1: must be at least 2"),
        (["new", "--checkpoint", "7"], "7"),
    ],
)
def test_a_place_that_does_not_fit_is_named(
    run_dir: Path, tmp_path: Path, argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there.onnx").touch()
    assert main(["export", str(run_dir), str(tmp_path / argv[0]), *argv[1:]]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and not list(tmp_path.glob("new*"))


def test_the_golden_picture_is_what_its_seed_and_labels_give(consumer: dict[str, Any], exported: Path) -> None:
    config = json.loads((exported / "artifacts" / "config.json").read_text())
    assert config["golden"] == {"seed": 0, "labels": [0, 1, 2, 3]}
    golden = np.asarray(Image.open(exported / "artifacts" / "golden.png")).astype(int)
    assert abs(np.concatenate(list(pixels(consumer["answers"][4])), axis=1) - golden).max() <= 1


def test_bad_requests_are_refused_with_what_is_allowed(consumer: dict[str, Any]) -> None:
    empty, *refused, _ = consumer["answers"][7:]
    assert empty == {"class_id": [], "png": []}
    for answer, reason in zip(
        refused,
        [
            "class_id 4: must be from 0 to 3",
            "class_id -1",
            "truncation 0.0",
            "format 'jpeg'",
            "seed -1",
            "max_batch 0",
            "max_batch 1025",
            "start -1",
            "truncation inf",
            "1025 rows: at most 1024",
            "class_id 1.5: must be from 0 to 3, or the name of a class",
            "class_id nan",
            "class_id nan",  # as MLflow passes None on
            "class_id True",
            "class_id coat",
            "class_id ²",
            "",
        ],
        strict=True,
    ):
        assert answer["error"].startswith("INVALID_PARAMETER_VALUE") or not reason, answer
        assert reason in answer["error"]


def test_the_model_says_where_it_comes_from(exported: Path, trained: TrainedGenerator) -> None:
    config = json.loads((exported / "artifacts" / "config.json").read_text())
    assert config["classes"] == ["bars", "blob", "checks", "stripes"] and config["images"] == 4096
    assert config["weights_sha256"] == trained.weights_sha256
    assert not [p for p in (exported / "artifacts" / "model").rglob("*") if p.suffix != ".py"]
    pins = (exported / "requirements.txt").read_text().split()
    assert {pin.partition("==")[0] for pin in pins} == {"mlflow", "numpy", "pandas", "pillow", "safetensors", "torch"}
    assert all(re.fullmatch(r"\w+==[\d.]+\w*", pin) for pin in pins), pins  # exact, and no +cpu that an index may lack


def test_damaged_weights_are_not_loaded(exported: Path, tmp_path: Path) -> None:
    pyfunc = importlib.import_module("mlflow.pyfunc")
    copy = shutil.copytree(exported, tmp_path / "model")
    weights = copy / "artifacts" / "generator.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(Exception, match="is damaged"):
        pyfunc.load_model(str(copy))


def test_two_models_in_one_process_keep_their_own_code(exported: Path, tmp_path: Path) -> None:
    """A model that was exported by an older release must not draw with the code of a newer one, or the other way."""
    pyfunc, pd = importlib.import_module("mlflow.pyfunc"), importlib.import_module("pandas")
    other = shutil.copytree(exported, tmp_path / "model")
    source = other / "artifacts" / "model" / "biggan.py"
    source.write_text(source.read_text().replace("image.float()).tanh()", "image.float()).tanh().neg()"))
    request = pd.DataFrame({"class_id": [1]})
    first, negative = pyfunc.load_model(str(exported)), pyfunc.load_model(str(other))
    drawn = [pixels(loaded.predict(request).to_dict("list")) for loaded in (first, negative)]
    assert abs(drawn[0] - (255 - drawn[1])).max() <= 1
