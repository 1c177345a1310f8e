"""Weights to start a run from: those of another run, or of `biggan import`."""

from dataclasses import asdict, fields
from typing import Any

from model.config import ModelConfig
from pipeline.checkpoint import Checkpoint
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.run import locate


def initial_checkpoint(config: RunConfig) -> Checkpoint | None:
    """The checkpoint that `init` names, None without one.

    Raises ConfigError if it is of another network, naming all keys that differ and what to type.
    """
    if config.init is None:
        return None
    found = locate(config.init)
    theirs, ours = explicit(ModelConfig(**found.state()["model"])), explicit(config.model)
    has_d = "discriminator" in found.parts
    keys = [
        field.name
        for field in fields(ModelConfig)
        if theirs[field.name] != ours[field.name] and (has_d or not field.name.startswith("d"))
    ]
    if keys:
        wanted = " ".join(f"model.{key}={_written(theirs[key])}" for key in keys)
        raise ConfigError(f"init={config.init}: its networks are others than the configuration's: type {wanted}")
    return found


def explicit(config: ModelConfig) -> dict[str, Any]:
    """All fields, with what the defaults stand for: two configurations of equal networks are equal."""
    chosen = asdict(config) | {
        "d_ch": config.d_ch or config.ch,
        "z_dim": config.latent_dim,
        "g_attention": config.g_attention_at,
        "d_attention": config.d_attention_at,
        "output_bn_eps": config.bn_eps if config.output_bn_eps is None else config.output_bn_eps,
        "output_width": config.output_width or config.channels,
    }
    return {key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()}


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
