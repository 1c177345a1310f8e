"""The configuration of a network as a file tells it, and the network built for tensors that are there: shapes before memory.

What a file says of itself may be anything, so a network exists without memory (on torch's meta device) until its tensors fit.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from typing_extensions import TypedDict

from model.config import ModelConfig, from_saved
from model.networks import Generator, build_generator
from pipeline.checkpoint.format import Checkpoint, Tensors
from pipeline.errors import ConfigError, DataError
from pipeline.untrusted import parse, parsing
from pipeline.wording import printable

_Size = Annotated[int, Field(ge=0, le=1 << 20)]
_Sizes = Annotated[list[_Size], Field(max_length=16)]
_Scale = Annotated[float, Field(gt=0, le=1)]


class _Bounds(TypedDict, total=False):
    """Far beyond any network that was ever trained, and small enough that no product of a few overflows."""

    resolution: _Size
    num_classes: _Size
    channels: _Size
    ch: _Size
    d_ch: _Size | None
    max_channels: _Size | None
    shared_dim: _Size
    z_dim: _Size | None
    g_attention: _Sizes | None
    d_attention: _Sizes | None
    g_widths: _Sizes | None
    d_widths: _Sizes | None
    d_halvings: _Size | None
    output_width: _Size | None
    bn_eps: _Scale
    sn_eps: _Scale
    output_bn_eps: _Scale | None


def parse_model(found: Mapping[str, Any], what: str, advice: str) -> ModelConfig:
    """Return the configuration of the networks in `what`, of this version or an earlier one.

    Raises DataError for values out of range, ConfigError for settings of a later version.
    """
    if unknown := sorted(set(found) - {field.name for field in fields(ModelConfig)}):
        raise ConfigError(f"{what} sets {unknown[0][:40]!r}, which this version does not know: use the version that wrote it")
    text = json.dumps(found)
    parse(_Bounds, text, what, advice)
    parse(ModelConfig, text, what, advice)
    with parsing(what, advice):
        return from_saved(found)


def saved_model(found: Checkpoint) -> ModelConfig | None:
    """Return the configuration that a checkpoint says its networks have, None if it says none. Raises as `parse_model` does."""
    model = found.state().get("model")
    if model is not None and not isinstance(model, dict):
        raise DataError(f"{found.uri}/state.json: model is not an object: use another checkpoint")
    return None if model is None else parse_model(model, f"{found.uri}/state.json", "use another checkpoint")


def networks_of(found: Checkpoint) -> ModelConfig:
    """Return the same of a checkpoint that has to say it. Raises DataError if it does not."""
    if (model := saved_model(found)) is None:
        raise DataError(f"{found.uri}/state.json does not say which networks it is of: use another checkpoint")
    return model


def build_fitting(config: ModelConfig, tensors: Tensors, what: str, device: torch.device | str) -> Generator:
    """Return the generator of `config` with the `tensors` of `what` on `device`. Raises DataError if they do not fit it."""
    with parsing(what), torch.device("meta"):
        generator = build_generator(config)
    check_fit(generator, tensors, what)
    generator.to_empty(device=device)
    generator.load_state_dict(tensors)  # strict: every value that `to_empty` left open is set
    return generator


def check_fit(network: nn.Module, tensors: Tensors, what: str) -> None:
    """Raises DataError unless `tensors` are all that `network` consists of, in its shapes."""
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        shapes = [list(there[name].shape) if name in there else None for there in (tensors, wanted)]
        if shapes[0] != shapes[1]:
            said = printable(name[:100])
            has, needs = (f"{said} {shape}" if shape is not None else f"no {said}" for shape in shapes)
            raise DataError(f"{what} does not fit the network that it names: it has {has}, the network has {needs}")
        if tensors[name].is_floating_point() != wanted[name].is_floating_point():
            raise DataError(f"{what}: {name} is of {tensors[name].dtype}, the network has {wanted[name].dtype}")
