"""The table, the curve and the names of an evaluation's document; what real images over HTTP leave in the cache."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.data.loader import DataConfig
from pipeline.data.manifest import load_manifest
from pipeline.evaluation import reference_cache
from pipeline.evaluation.classifier import Classifier
from pipeline.evaluation.document import curve, table, tracked_names
from pipeline.evaluation.measure import Judged, Real
from pipeline.evaluation.networks import from_judge
from pipeline.runs.evaluation_document import Document, JudgeFile, RealFigures
from tests.support.evaluation_documents import make_document


def document(truncation: float | None, **values: float) -> Document:
    return make_document(
        {f"{name}[x]": value for name, value in values.items()},
        truncation=truncation,
        floor={"FID[x]": 0.4},
        spread={"KID[x]": 0.0012},
        left_out={"is": "is needs more"},
        recipe_id="abc",
    )


def test_the_table_has_samples_beside_real_images() -> None:
    text = "\n".join(table(document(0.5, FID=24.31, KID=0.0123, precision=0.7, density=1.2)))
    assert "runs/one at 1,000 images, EMA, seed 0, truncation 0.5" in text and "recipe abc" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if "[x]" in line}
    assert rows == {
        "FID[x]": ["24.31", "0.40"],
        "KID[x]": ["0.0123", "+-", "0.0012"],
        "precision[x]": ["70.0%"],
        "density[x]": ["1.20"],
    }
    assert "left out: is needs more" in text


@pytest.mark.parametrize("score", [{}, {"IS": 4.0}])
def test_the_curve_draws_a_point_for_each_truncation(score: dict[str, float]) -> None:
    def drawn(truncations: list[float | None]) -> int:
        documents = [document(t, FID=30 - i, **{k: v + i for k, v in score.items()}) for i, t in enumerate(truncations)]
        image = Image.open(io.BytesIO(curve(documents))).convert("RGB")
        return sum(n for n, (r, _, b) in image.getcolors(1 << 20) or () if b > r + 40)  # the line and its points are blue

    assert drawn([0.5, None, 1.0, 2.0]) > drawn([0.5, None]) > 100


def test_mlflow_may_have_the_names() -> None:
    assert tracked_names(document(None, FID=1.0, **{"intra-FID": 2.0, "IS": float("nan")})) == {
        "eval/FID/x": 1.0,
        "eval/intra-FID/x": 2.0,
    }
    assert tracked_names(document(0.5, FID=1.0)) == {"eval/FID/x/truncation-0.5": 1.0}


def test_the_files_keys_are_those_of_every_version() -> None:
    """In this order, with the FID and the accuracy at the top for `checkpoint.keep_best`; secrets are not among them."""
    plain = make_document({"FID[x]": 2.0}, run="https://me:secret@host/run").as_json()
    about = ["run", "images", "weights_sha256", "samples", "seed", "truncation", "metrics", "spread", "floor"]
    rest = ["class_intra_fid", "FID[x]", "real", "left_out", "recipe", "recipe_id"]
    assert list(plain) == about + rest and plain["FID[x]"] == 2.0 and plain["truncation"] is None
    assert plain["run"] == "https://host/run" and list(plain["real"]) == ["test_images"]
    real = RealFigures(test_images=1, training_images=2, test_accuracy=0.5, test_class_accuracy={"cat": 0.5})
    judge = JudgeFile(file="f", key="k", seconds=1.0, train="a", test="b")
    judged = make_document(
        {"accuracy[x]": 0.9, "FID[x]": 2.0},
        floor={"FID[x]": 1.0},
        real=real,
        accuracy=0.9,
        class_accuracy={"cat": 0.9},
        worst_class="cat",
        judge=judge,
    ).as_json()
    assert list(judged) == [*about, *rest[:3], "accuracy", "class_accuracy", "worst_class", *rest[3:], "judge"]
    of_training = "FID[x] of training images"
    assert list(judged["real"]) == ["test_images", "training_images", of_training, "test_accuracy", "test_class_accuracy"]
    assert judged["real"][of_training] == 1.0 and list(judged["judge"]) == ["file", "key", "seconds", "train", "test"]
    keys = ["version", "extractor", "resizer", "crop", "resolution", "grey", "samples", "truncation", "truncation_method"]
    assert list(judged["recipe"]) == [*keys, "standing", "reference"]


def test_shards_over_http_leave_what_is_said_of_them_in_the_cache(
    nginx: tuple[str, Path], shards: Path, tmp_path: Path
) -> None:
    address, root = nginx
    shutil.copytree(shards, root / "evaluated", ignore=shutil.ignore_patterns("evaluation"))
    images = Real(DataConfig(uri=f"{address}/evaluated"), load_manifest(f"{address}/evaluated"), 250)
    extractor = from_judge("clf", "00", Classifier(32, 3, 4))
    made = Judged(torch.rand(250, 4), torch.zeros(250, dtype=torch.int64), torch.zeros(250, dtype=torch.int64))
    calls: list[Judged] = []

    def compute() -> Judged:
        calls.append(made)
        return made

    for _ in range(2):
        found = reference_cache.obtain(extractor, images, str(tmp_path), compute, str)
        assert torch.equal(found.features, made.features)
    assert len(calls) == 1 and len(list(tmp_path.iterdir())) == 2
    # Where they are kept beside the shards, they are found there.
    shutil.copytree(tmp_path, root / "evaluated" / reference_cache.FOLDER)
    reference_cache.obtain(extractor, images, str(tmp_path / "other"), compute, str)
    assert len(calls) == 1 and not (tmp_path / "other").exists()
