"""The folder of an exported model: settings and weights, read as what anybody may have written."""

import hashlib
from typing import Annotated, Any, NotRequired

import safetensors.torch
from pydantic import Field
from typing_extensions import TypedDict

from model.config import ModelConfig
from pipeline import storage
from pipeline.checkpoint.format import Tensors
from pipeline.checkpoint.saved_network import parse_model
from pipeline.errors import DataError
from pipeline.untrusted import parse, parsing
from pipeline.wording import printable

EXPORTED = ("artifacts/config.json", "config.json")
"""Where `biggan export` puts a model's settings, as MLflow model and as plain files; the weights lie beside them."""
GOLDEN_MOST = 64
"""Golden samples of one model; `pipeline.generation.export` writes 8."""
_WEIGHTS = "generator.safetensors"
_AGAIN = "export or copy the model again"


_Whole = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Golden(TypedDict):
    seed: _Whole
    labels: Annotated[list[_Whole], Field(max_length=GOLDEN_MOST)]


class _Settings(TypedDict):
    model: dict[str, Any]
    classes: list[str]
    images: _Whole
    weights_sha256: str
    golden: NotRequired[_Golden]


def find_exported(source: str) -> str | None:
    """The folder of an exported model with its weights and config.json; None for runs and checkpoints."""
    for place in EXPORTED:
        folder = storage.join(source, place).removesuffix("/config.json")
        if storage.exists(storage.join(source, place)) and storage.exists(storage.join(folder, _WEIGHTS)):
            return folder
    return None


def read_settings(place: str) -> dict[str, Any]:
    """Return the config.json at `place`: model, classes, images, weights_sha256, and mostly golden. Raises DataError."""
    settings: Any = parse(_Settings, storage.read_bytes(place), f"{place} is damaged", _AGAIN)
    return settings


def read_exported(folder: str) -> tuple[ModelConfig, Tensors, dict[str, Any]]:
    """Return configuration, weights and settings of an exported model (see `pipeline.generation.export`). Raises DataError.

    Only data are read; the model's own code is run by those who load it through MLflow.
    """
    about, place = storage.join(folder, "config.json"), storage.join(folder, _WEIGHTS)
    settings = read_settings(about)
    config = parse_model(settings["model"], about, _AGAIN)
    if len(settings["classes"]) != config.num_classes:
        raise DataError(f"{about} names {len(settings['classes'])} classes, its network has {config.num_classes}: {_AGAIN}")
    weights = storage.read_bytes(place)
    found = hashlib.sha256(weights).hexdigest()
    if found != settings["weights_sha256"]:
        said = printable(settings["weights_sha256"][:12])
        raise DataError(f"{place} is damaged: its SHA-256 is {found[:12]}, not {said} of config.json; {_AGAIN}")
    with parsing(f"{place} is damaged", _AGAIN):
        return config, safetensors.torch.load(weights), settings
