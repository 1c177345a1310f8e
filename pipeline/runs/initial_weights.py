"""Weights to start a run from: those of another run, or of `biggan import`."""

from dataclasses import asdict, fields
from typing import Any

from model.config import ModelConfig
from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.saved_network import networks_of
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.runs.run_folder import locate, refuse_other_classes
from pipeline.wording import plural


def initial_checkpoint(config: RunConfig) -> Checkpoint | None:
    """The checkpoint that `init` names, None without one.

    Raises ConfigError if it is of another network, naming all keys that differ and what to type.
    """
    if config.init is None:
        return None
    found = locate(config.init)
    # The number of classes is that of the shards already (`pipeline.runs.run_folder.check_model`): no other one can be set.
    where = config.data.uri or ", ".join(part.uri for part in config.data.mix.values())
    refuse_other_classes(config.init, networks_of(found).num_classes, config.model.num_classes, where)
    check_networks(found, config, f"init={config.init}")
    return found


def ema_note(config: RunConfig) -> str:
    """Say how much of the weights of `init` the EMA will hold at the end; empty if that is less than 1%, or without `init`."""
    optim, total = config.optim, config.total_images
    if config.init is None or optim.ema_start or not optim.ema_half_life:
        return ""
    share = 0.5 ** (total / optim.ema_half_life)
    if share < 0.01:
        return ""
    return (
        f"after {plural(total, 'image')} the EMA, which `biggan sample`, `evaluate` and `register` take, still is {share:.1%} "
        f"init={config.init}: set optim.ema_half_life={max(1, total // 10)} for 0.1%"
    )


def check_networks(found: Checkpoint, config: RunConfig, source: str) -> None:
    """Raises ConfigError if `found` is of other networks than the configuration's, naming all keys that differ."""
    theirs, ours = explicit(networks_of(found)), explicit(config.model)
    has_d = "discriminator" in found.parts
    keys = [
        field.name
        for field in fields(ModelConfig)
        if theirs[field.name] != ours[field.name] and (has_d or not field.name.startswith("d"))
    ]
    if keys:
        wanted = " ".join(f"model.{key}={_written(theirs[key])}" for key in keys)
        raise ConfigError(f"{source}: its networks are others than the configuration's: set {wanted}")


def explicit(config: ModelConfig) -> dict[str, Any]:
    """All fields, with what the defaults stand for: two configurations of equal networks are equal."""
    chosen = asdict(config) | {
        "d_ch": config.d_ch or config.ch,
        "g_widths": config.g_widths or config.g_row,
        "d_widths": config.d_widths or config.d_row,
        "d_halvings": None if config.d_entry.halves_all else config.d_keep,
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
