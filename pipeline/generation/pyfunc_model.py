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
from safetensors.torch import load

DEFAULTS: dict[str, Any] = {"truncation": None, "seed": 0, "start": 0, "format": "png_base64", "max_batch": 64}
"""The parameters of a request, as in the model's signature."""
MOST_ROWS = 1024
"""Rows of one request: more would keep a server busy for as long as somebody likes. `start` asks for the next ones."""


class GeneratorModel(PythonModel):
    """Classes in, by number or name, PNG images out. Row i depends on the seed, `start` + i and its class, not on the batch.

    `format=description` answers with one JSON text instead: class names, size of the images, parameters. MLflow drops
    parameters that a model does not know before it is asked, so a client has to compare them (`pipeline.generation.client`).
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Rebuild the generator from the artifacts. Raises if the weights are not those that were exported."""
        settings = json.loads(Path(context.artifacts["config"]).read_text())
        weights = Path(context.artifacts["weights"]).read_bytes()
        digest = hashlib.sha256(weights).hexdigest()
        if digest != settings["weights_sha256"]:
            raise MlflowException(
                f"{context.artifacts['weights']} is damaged: sha256 {digest}, expected {settings['weights_sha256']}"
            )
        config, networks, self.sampling = _import_privately(Path(context.artifacts["model"]), "config", "networks", "sampling")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.device("meta"):  # no memory before the weights have been seen to fit
            self.generator = networks.build_generator(config.ModelConfig(**settings["model"]))
        self.generator.load_state_dict(load(weights), assign=True)
        self.generator.eval().requires_grad_(False).to(self.device)
        self.classes: list[str] = settings["classes"]
        self.description = {key: settings[key] for key in ("classes", "images", "weights_sha256")} | {
            "resolution": settings["model"]["resolution"],
            "channels": settings["model"]["channels"],
            "params": sorted(DEFAULTS),
            "most_rows": MOST_ROWS,
        }

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Column `class_id` -> columns `class_id` and `png`, with the same index; the parameters are in the model's signature.

        A parameter that is None has its default.
        """
        params = DEFAULTS | {name: value for name, value in (params or {}).items() if value is not None}
        self._check(len(model_input), params)
        ids = np.array([self._class_id(given) for given in model_input["class_id"].tolist()], np.int64)
        if params["format"] == "description":
            return pd.DataFrame({"description": [json.dumps(self.description)]})
        images = self.sampling.generate(
            self.generator,
            torch.from_numpy(ids),
            seed=params["seed"],
            start=params["start"],
            truncation=params["truncation"],
            batch=params["max_batch"],
        )
        pictures = [_png_base64(image) for image in images.permute(0, 2, 3, 1).numpy()]
        return pd.DataFrame({"class_id": ids, "png": pictures}, index=model_input.index)

    def _class_id(self, given: Any) -> int:
        """A class by its name or number. Raises MlflowException for what is neither, or a name of several classes."""
        last, text = len(self.classes) - 1, str(given).strip()
        if isinstance(given, str) and (known := self.classes.count(text)):
            if known > 1:
                raise MlflowException.invalid_parameter_value(
                    f"class_id {text!r}: {known} classes have this name; give a number"
                )
            return self.classes.index(text)
        if isinstance(given, float) and given.is_integer():  # a column with a gap, or JSON's 3.0
            text = str(int(given))
        if isinstance(given, bool) or not text.isdecimal() or int(text) > last:
            raise MlflowException.invalid_parameter_value(f"class_id {given}: must be from 0 to {last}, or the name of a class")
        return int(text)

    def _check(self, rows: int, params: dict[str, Any]) -> None:
        truncation = params["truncation"]
        if rows > MOST_ROWS:
            raise MlflowException.invalid_parameter_value(f"{rows} rows: at most {MOST_ROWS}; ask on with start={MOST_ROWS}")
        if truncation is not None and not 0 < truncation < float("inf"):
            raise MlflowException.invalid_parameter_value(f"truncation {truncation}: must be above 0 and finite")
        if params["format"] not in ("png_base64", "description"):
            raise MlflowException.invalid_parameter_value(f"format {params['format']!r}: must be 'png_base64' or 'description'")
        for name, least, most in (("seed", 0, 2**63 - 1), ("start", 0, 2**53), ("max_batch", 1, MOST_ROWS)):
            if not least <= params[name] <= most:
                raise MlflowException.invalid_parameter_value(f"{name} {params[name]}: must be from {least} to {most}")


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
