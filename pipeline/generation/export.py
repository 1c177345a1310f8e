"""A generator that needs none of our packages: an MLflow model of safetensors weights, a config and its own source.

`pipeline.generation.export_onnx` is for those without torch.
"""

import dataclasses
import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

import model
from model.sampling import generate, grid
from pipeline.generation.load import TrainedGenerator
from pipeline.images.pillow import png
from pipeline.progress import progress
from pipeline.tracking.mlflow_store import calm_mlflow

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch")
GOLDEN_SEED, _GOLDEN_IMAGES = 0, 8

WEIGHTS, CONFIG, GOLDEN = "generator.safetensors", "config.json", "golden.png"


def save_model(trained: TrainedGenerator, path: Path, mlflow_model: "Model | None" = None) -> None:
    """Write the self-contained MLflow model of `trained` to the new folder `path`."""
    calm_mlflow()
    import pandas as pd
    from mlflow import pyfunc

    with tempfile.TemporaryDirectory() as folder, progress("writing the MLflow model", 2, "step") as tell:
        artifacts = _write_artifacts(trained, Path(folder))
        tell(1)
        pyfunc.save_model(
            path,
            mlflow_model=mlflow_model,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts=artifacts,
            signature=signature(),
            input_example=(pd.DataFrame({"class_id": [0, 0]}), {"seed": 7, "truncation": 0.5}),
            pip_requirements=requirements(),
        )
        tell(1)


def save_files(trained: TrainedGenerator, folder: Path) -> None:
    """Write the weights, the config and the golden samples of `trained` to the new folder `folder`, and nothing else."""
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(dict(trained.generator.state_dict())))
    (folder / CONFIG).write_text(json.dumps(describe(trained), indent=2))
    (folder / GOLDEN).write_bytes(golden_png(trained))


def describe(trained: TrainedGenerator) -> dict[str, Any]:
    """What a reader of the weights has to know, ready for JSON."""
    return {
        "model": dataclasses.asdict(trained.config),
        "classes": trained.classes,
        "latents": "model/latents.py: Philox 4x64 keyed by (seed, stream SAMPLES), counted by the sample's number",
        "images": trained.images,
        "weights_sha256": trained.weights_sha256,
        # What this seed and these labels gave where the model was exported, side by side in golden.png.
        "golden": {"seed": GOLDEN_SEED, "labels": golden_labels(trained).tolist()},
    }


def golden_labels(trained: TrainedGenerator) -> torch.Tensor:
    """Labels [n] int64 of the golden samples: the first classes."""
    return torch.arange(min(_GOLDEN_IMAGES, trained.config.num_classes))


def golden_png(trained: TrainedGenerator) -> bytes:
    """The golden samples side by side, as a PNG."""
    labels = golden_labels(trained)
    return png(grid(generate(trained.generator, labels, seed=GOLDEN_SEED), len(labels)).numpy())


def requirements() -> list[str]:
    """Exact versions of what the model's code imports; a CPU or CUDA build of torch is the reader's choice."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS]


def signature() -> "ModelSignature":
    """Class ids or names in; class ids and PNG files out. Without `truncation` the latents are plain normals.

    Row i is sample `start` + i of `seed`; `max_batch` rows are drawn at once.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    return ModelSignature(
        # Of any type, so that names come through, and that the model refuses 3.7, which MLflow would cast to class 3.
        inputs=Schema([ColSpec(AnyType(), "class_id")]),  # type: ignore[no-untyped-call]
        outputs=Schema([ColSpec(DataType.long, "class_id"), ColSpec(DataType.string, "png")]),
        params=ParamSchema(
            [
                ParamSpec("truncation", DataType.double, None),
                ParamSpec("seed", DataType.long, 0),
                ParamSpec("start", DataType.long, 0),
                ParamSpec("format", DataType.string, "png_base64"),
                ParamSpec("max_batch", DataType.long, 64),
            ]
        ),
    )


def _write_artifacts(trained: TrainedGenerator, folder: Path) -> dict[str, str]:
    """Name -> path of each artifact, written below `folder`."""
    source, files = Path(model.__file__).parent, folder / "files"
    save_files(trained, files)
    paths = {"weights": files / WEIGHTS, "config": files / CONFIG, "golden": files / GOLDEN, "model": folder / "model"}
    shutil.copytree(source, paths["model"], ignore=lambda _, names: [n for n in names if not n.endswith(".py")])
    return {name: str(path) for name, path in paths.items()}
