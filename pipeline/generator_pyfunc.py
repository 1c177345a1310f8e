"""The registered model's own code. MLflow copies this file into the model and runs it there.

The process that loads the model has none of our packages, so this imports what the model's requirements name and
nothing else. The network's code travels as an artifact, a copy of the package `model`: there is one implementation.
"""

import base64
import hashlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image
from safetensors.torch import load_file


class GeneratorModel(PythonModel):
    """Class ids in, PNG images out. Row i of a request depends on the seed, i and its class, not on the batch size."""

    def load_context(self, context: PythonModelContext) -> None:
        """Rebuild the generator from the artifacts. Raises if the weights are not those that were exported."""
        settings = json.loads(Path(context.artifacts["config"]).read_text())
        weights = Path(context.artifacts["weights"])
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if digest != settings["weights_sha256"]:
            raise MlflowException(f"{weights} is damaged: sha256 {digest}, expected {settings['weights_sha256']}")
        config, networks, self.sampling = _import_privately(Path(context.artifacts["model"]), "config", "networks", "sampling")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = networks.build_generator(config.ModelConfig(**settings["model"]))
        self.generator.load_state_dict(load_file(weights))
        self.generator.eval().requires_grad_(False).to(self.device)
        self.classes: list[str] = settings["classes"]

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Column `class_id` -> columns `class_id` and `png`; the parameters are in the model's signature."""
        params = {"truncation": None, "seed": 0, "format": "png_base64", "max_batch": 64} | (params or {})
        ids = model_input["class_id"].to_numpy(np.int64, copy=True)
        self._check(ids, params)
        images = self.sampling.generate(
            self.generator,
            torch.from_numpy(ids),
            seed=params["seed"],
            truncation=params["truncation"],
            batch=params["max_batch"],
        )
        pictures = [_png_base64(image) for image in images.permute(0, 2, 3, 1).numpy()]
        return pd.DataFrame({"class_id": ids, "png": pictures})

    def _check(self, ids: np.ndarray[Any, Any], params: dict[str, Any]) -> None:
        last = len(self.classes) - 1
        if wrong := [int(i) for i in ids if not 0 <= i <= last]:
            raise MlflowException.invalid_parameter_value(f"class_id {wrong[0]}: must be from 0 to {last}")
        if params["truncation"] is not None and not params["truncation"] > 0:
            raise MlflowException.invalid_parameter_value(f"truncation {params['truncation']}: must be above 0")
        if params["format"] != "png_base64":
            raise MlflowException.invalid_parameter_value(f"format {params['format']!r}: must be 'png_base64'")
        for name, least in (("seed", 0), ("max_batch", 1)):
            if params[name] < least:
                raise MlflowException.invalid_parameter_value(f"{name} {params[name]}: must be at least {least}")


def _import_privately(folder: Path, *modules: str) -> list[ModuleType]:
    """Modules of the package in `folder`, named by its content: no model meets the code of another."""
    content = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    name = f"_biggan_model_{content.hexdigest()[:16]}"
    # The folder may be the store itself, which holds what was registered and nothing else.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        if name not in sys.modules:
            where = [str(folder)]
            spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=where)
            if spec is None or spec.loader is None:
                raise MlflowException(f"{folder} holds no Python package")
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return [importlib.import_module(f"{name}.{module}") for module in modules]
    finally:
        sys.dont_write_bytecode = before


def _png_base64(pixels: np.ndarray[Any, Any]) -> str:
    """uint8 [H, W, 1 or 3] -> base64 of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


set_model(GeneratorModel())
