"""A generator that needs none of our packages: an MLflow model of safetensors weights, a config and its own source."""

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
from pipeline.generators import TrainedGenerator
from pipeline.images import png
from pipeline.tracking import calm_mlflow

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch")
_GOLDEN_SEED, _GOLDEN_IMAGES = 0, 8


def save_model(trained: TrainedGenerator, path: Path, mlflow_model: "Model | None" = None) -> None:
    """Write the self-contained MLflow model of `trained` to the new folder `path`."""
    calm_mlflow()
    import pandas as pd
    from mlflow import pyfunc

    with tempfile.TemporaryDirectory() as folder:
        pyfunc.save_model(
            path,
            mlflow_model=mlflow_model,
            python_model=str(Path(__file__).with_name("generator_pyfunc.py")),
            artifacts=_write_artifacts(trained, Path(folder)),
            signature=signature(),
            input_example=(pd.DataFrame({"class_id": [0, 0]}), {"seed": 7, "truncation": 0.5}),
            pip_requirements=requirements(),
        )


def requirements() -> list[str]:
    """Exact versions of what the model's code imports; a CPU or CUDA build of torch is the reader's choice."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS]


def signature() -> "ModelSignature":
    """Class ids in; class ids and PNG files out. Without `truncation` the latents are plain normals."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.long, "class_id")]),
        outputs=Schema([ColSpec(DataType.long, "class_id"), ColSpec(DataType.string, "png")]),
        params=ParamSchema(
            [
                ParamSpec("truncation", DataType.double, None),
                ParamSpec("seed", DataType.long, 0),
                ParamSpec("format", DataType.string, "png_base64"),
                ParamSpec("max_batch", DataType.long, 64),
            ]
        ),
    )


def _write_artifacts(trained: TrainedGenerator, folder: Path) -> dict[str, str]:
    """Name -> path of each artifact, written below `folder`."""
    source = Path(model.__file__).parent
    labels = torch.arange(min(_GOLDEN_IMAGES, trained.config.num_classes))
    config: dict[str, Any] = {
        "model": dataclasses.asdict(trained.config),
        "classes": trained.classes,
        "latents": "model/latents.py: Philox 4x64 keyed by (seed, stream SAMPLES), counted by row of the request",
        "images": trained.images,
        "weights_sha256": trained.weights_sha256,
        # What this seed and these labels gave where the model was exported, side by side in golden.png.
        "golden": {"seed": _GOLDEN_SEED, "labels": labels.tolist()},
    }
    paths = {
        "weights": folder / "generator.safetensors",
        "config": folder / "config.json",
        "golden": folder / "golden.png",
        "model": folder / "model",
    }
    paths["weights"].write_bytes(safetensors.torch.save(dict(trained.generator.state_dict())))
    paths["config"].write_text(json.dumps(config, indent=2))
    golden = grid(generate(trained.generator, labels, seed=_GOLDEN_SEED), len(labels))
    paths["golden"].write_bytes(png(golden.numpy()))
    shutil.copytree(source, paths["model"], ignore=lambda _, names: [n for n in names if not n.endswith(".py")])
    return {name: str(path) for name, path in paths.items()}
