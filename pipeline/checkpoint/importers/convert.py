"""From the tensors of another project to a network of ours: its configuration read off the shapes, every tensor placed.

A format says how it names and arranges each of our tensors (`Weights`); all else is here. Every tensor of ours must be there
in its shape, and none may be left over: a checkpoint of another architecture is refused by the first key that does not fit.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.networks import build_discriminator, build_generator
from model.sizes import SIZES
from pipeline.checkpoint.format import Progress, Tensors
from pipeline.checkpoint.importers.files import refuse_broken
from pipeline.errors import ConfigError, DataError

ROLES = {"G": "generator", "G_ema": "ema", "D": "discriminator"}
"""What BigGAN-PyTorch and StudioGAN call the networks, and what our checkpoints do."""

_HINTS = {"discriminator": "; pass --generator-only to leave D out"}
_VARIANTS = {
    r"blocks\.\d+\.\d+\.conv2d0\.": "; it is StudioGAN's big_resnet_deep_studiogan: only big_resnet_deep_legacy is BigGAN-deep"
}
"""Keys of generators that cannot be built here, and whose they are."""


@dataclass(frozen=True)
class Options:
    """What cannot be read off tensors, or is to be checked. None: the source's own value or its project's default."""

    name_suffix: str | None = None
    """Which of several savings: best0 or copy1 (BigGAN-PyTorch), best or current (StudioGAN)."""
    num_classes: int | None = None
    bn_eps: float | None = None
    sn_eps: float | None = None
    generator_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A checkpoint of another project under our names, in the source's precision."""

    config: ModelConfig
    generator: Tensors
    """Parameters and buffers."""
    ema: Tensors
    """The averaged generator, with its own buffers; the same as `generator` where the source has only one of the two."""
    discriminator: Tensors | None
    optimizers: dict[str, Tensors]
    """`generator`, `discriminator`: Adam's moments as in `pipeline.engine.slices.slice_moments`, where the source has them."""
    statistics: Tensors
    """`truncations` [K] and each batch norm's `NAME.mean` and `NAME.var` [K, C], recorded with the weights of `ema`."""
    progress: Progress
    source: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    """What was assumed or left out, for the user."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one file, under the file's own keys, in the order in which its modules registered them."""

    uri: str
    tensors: Tensors
    key: Callable[[str], str]
    """Our name -> the file's key."""
    arrange: Callable[[str, Tensor], Tensor]
    """(our name, the file's tensor) -> the tensor in our shape and order. Linear, so it serves Adam's moments too."""

    def has(self, name: str) -> bool:
        return self.key(name) in self.tensors

    def get(self, name: str) -> Tensor:
        """The tensor of our `name`. Raises DataError if the file lacks it."""
        if not self.has(name):
            raise DataError(f"{self.uri} lacks {self.key(name)}: it is incomplete; copy or save it again")
        return self.arrange(name, self.tensors[self.key(name)])


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """`name` after each (pattern, replacement) in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def block_places(tensors: Tensors, pattern: str, attention: str) -> list[int]:
    """Where a list of modules has its residual blocks: all numbers of `pattern`'s group but those of `attention`'s."""
    numbers = {int(found[1]) for key in tensors if (found := re.match(pattern, key))}
    return sorted(numbers - {int(found[1]) for key in tensors if (found := re.match(attention, key))})


def at_place(name: str, places: list[int]) -> str:
    """`name` with the number of a block, or of the block before an attention, turned into its place in such a list."""
    if not (found := re.match(r"(blocks|attention)\.(\d+)\.", name)):
        return name
    number = int(found[2])
    place = places[number] if number < len(places) else len(places) + number  # past the end
    return f"{found[1]}.{place + (found[1] == 'attention')}.{name[found.end() :]}"


def convert(networks: dict[str, Weights], fixed: dict[str, Any], options: Options) -> tuple[ModelConfig, dict[str, Tensors]]:
    """The configuration of `networks` (generator, ema, discriminator; one G at least) and all their tensors under our names.

    `fixed` are ModelConfig's fields that shapes do not tell. Raises ConfigError for another architecture or number of
    classes, DataError for missing tensors.
    """
    g, d = networks.get("generator") or networks["ema"], networks.get("discriminator")
    fields = _generator_fields(g) | fixed
    if options.num_classes not in (None, fields["num_classes"]):
        raise ConfigError(f"--num-classes {options.num_classes}: {g.uri} has {fields['num_classes']} classes")
    fields["discriminator"] = fields["generator"]
    config = _config(fields, g.uri)
    if d:
        config = _config(fields | _discriminator_fields(d, fields), d.uri, _HINTS["discriminator"])
    with torch.device("meta"):
        ours = {"generator": build_generator(config), "discriminator": build_discriminator(config)}
    ours["ema"] = ours["generator"]
    return config, {role: _collect(weights, role, ours[role]) for role, weights in networks.items()}


def _config(fields: dict[str, Any], uri: str, hint: str = "") -> ModelConfig:
    """Raises ConfigError that names the file `uri` if its network cannot be built."""
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise ConfigError(f"{uri} does not fit the networks here: {error}{hint}") from None


def _generator_fields(g: Weights) -> dict[str, Any]:
    blocks, deep, per_stage = _family(g, "generator", ("seed.weight", "output.weight", "blocks.0.bn1.gain.weight"))
    if not g.has("shared.weight") and g.has("blocks.0.bn1.gain.u"):
        raise ConfigError(f"{g.uri} has no {g.key('shared.weight')}: it is unconditional, and generators here have classes")
    stages = blocks // per_stage
    widths = [g.get("blocks.0.conv1.weight").shape[1], *_outputs(g, blocks, deep)]
    if (resolution := 4 << stages) not in SIZES:
        raise ConfigError(f"{g.uri} makes images of {resolution} px: one of {', '.join(map(str, SIZES))} can be built")
    ch, override = _multiples(widths, SIZES[resolution].g_widths)
    seed, condition = g.get("seed.weight").shape[1], g.get("blocks.0.bn1.gain.weight").shape[1]
    classes, shared = g.get("shared.weight").shape if g.has("shared.weight") else (condition, 0)
    if classes == 1:
        raise ConfigError(
            f"{g.uri} has one class, and weights for it ({g.key('shared.weight' if shared else 'blocks.0.bn1.gain.weight')}): "
            "networks of one class have none here, so it cannot be imported"
        )
    split = not deep and 0 < shared < condition
    return {
        "resolution": resolution,
        "num_classes": classes,
        "channels": g.get("output.weight").shape[0],
        "generator": "biggan-deep" if deep else "biggan",
        "ch": ch,
        "g_widths": override,
        "shared_dim": shared,
        "z_dim": seed * (stages + 1) if split else seed - shared if deep else seed,
        "hierarchical": split or deep,
        "g_attention": tuple(8 << i // per_stage for i in _attention(g, blocks, per_stage)),
    }


def _discriminator_fields(d: Weights, g: dict[str, Any]) -> dict[str, Any]:
    blocks, deep, per_stage = _family(d, "discriminator", ("linear.weight", "embed.weight"))
    widths = _outputs(d, blocks, deep)
    if deep:
        widths = [d.get("input.weight").shape[0], *widths]
    if (classes := d.get("embed.weight").shape[0]) != g["num_classes"]:
        raise ConfigError(f"{d.uri} has {classes} classes, its generator {g['num_classes']}{_HINTS['discriminator']}")
    ch, override = _multiples(widths, SIZES[g["resolution"]].d_widths)
    if override and not any(width % g["ch"] for width in widths):
        ch, override = g["ch"], tuple(width // g["ch"] for width in widths)
    return {
        "discriminator": "biggan-deep" if deep else "biggan",
        "d_ch": None if ch == g["ch"] else ch,
        "d_widths": override,
        "d_attention": tuple(g["resolution"] >> i // per_stage + 1 for i in _attention(d, blocks, per_stage)),
    }


def _family(weights: Weights, role: str, anchors: tuple[str, ...]) -> tuple[int, bool, int]:
    """(residual blocks, whether they are bottlenecks, how many of them each resolution has)."""
    for name in (*anchors, "blocks.0.conv1.weight", "blocks.0.conv2.weight", "blocks.0.conv1.u"):
        if not weights.has(name):
            first = next(iter(weights.tensors))
            lacks = f"it begins with {first} and has no {weights.key(name)}"
            raise ConfigError(f"{weights.uri} is no BigGAN {role}: {lacks}{_HINTS.get(role, '')}")
    blocks = 0
    while weights.has(f"blocks.{blocks}.conv1.weight"):
        blocks += 1
    deep = weights.has("blocks.0.conv3.weight")
    return blocks, deep, 2 if deep else 1


def _attention(weights: Weights, blocks: int, per_stage: int) -> list[int]:
    """Numbers of the blocks that attention follows: it can only follow the last of a resolution."""
    return [i for i in range(per_stage - 1, blocks, per_stage) if weights.has(f"attention.{i}.gamma")]


def _outputs(weights: Weights, blocks: int, deep: bool) -> list[int]:
    """Output channels of each stage."""
    last, numbers = ("conv4", range(1, blocks, 2)) if deep else ("conv2", range(blocks))
    return [weights.get(f"blocks.{i}.{last}.weight").shape[0] for i in numbers]


def _multiples(widths: list[int], row: Sequence[int]) -> tuple[int, tuple[int, ...] | None]:
    """ch, and the widths in multiples of it unless they are the row's."""
    ch = widths[0] // row[0]
    if widths == [ch * m for m in row]:
        return ch, None
    ch = math.gcd(*widths)
    return ch, tuple(width // ch for width in widths)


def _collect(weights: Weights, role: str, network: nn.Module) -> Tensors:
    wanted = network.state_dict()
    keys = {weights.key(name) for name in wanted}
    if left := [key for key in weights.tensors if key not in keys]:
        more = f" (nor are {len(left) - 1} more)" if left[1:] else ""
        hint = next((hint for pattern, hint in _VARIANTS.items() if re.match(pattern, left[0])), "")
        raise ConfigError(f"{weights.uri}: {left[0]} is no part of the {role}s here{more}{_HINTS.get(role, hint)}")
    tensors = {name: weights.get(name) for name in wanted}
    for name, tensor in tensors.items():
        if (expected := wanted[name].shape) != tensor.shape:
            shapes = f"{weights.key(name)} is {list(tensor.shape)}, beside the other tensors {list(expected)} would fit"
            raise ConfigError(f"{weights.uri}: {shapes}{_HINTS.get(role, '')}")
    return tensors


def one_table(ema: Tensors) -> Tensors:
    """The statistics of a source that records one set, for any truncation; none if it has none."""
    statistics = {name: value[None] for name, value in ema.items() if name.endswith((".norm.mean", ".norm.var"))}
    if any(bool(value.isnan().any()) for value in statistics.values()):
        return {}
    return {"truncations": torch.tensor([math.inf]), **statistics}


def adam_moments(uri: str, saved: Any, weights: Weights, tensors: Tensors) -> Tensors:
    """Adam's state of `weights` by our names; {} before its first step or of another optimiser.

    torch numbers parameters in the order of their registration, which is that of the keys. Raises DataError if the two do not
    fit each other, or if there are values that are NaN or infinite.
    """
    names = {weights.key(name): name for name in tensors}
    ordered = [names[key] for key in weights.tensors if is_parameter(names[key])]
    try:
        places = [place for group in saved["param_groups"] for place in group["params"]]
        state = saved["state"]
    except (KeyError, TypeError):
        raise DataError(f"{uri} holds no state_dict() of an optimiser: copy it again, or leave it out") from None
    if not state or "exp_avg" not in next(iter(state.values())):
        return {}
    found: Tensors = {}
    for place, name in zip(places, ordered, strict=False):
        for kind in ("exp_avg", "exp_avg_sq"):
            moment = state.get(place, {}).get(kind)
            if moment is None or len(places) != len(ordered) or moment.shape != weights.tensors[weights.key(name)].shape:
                raise DataError(f"{uri} is not the optimiser of {weights.uri}: {weights.key(name)} differs")
            found[f"{kind}/{name}"] = weights.arrange(name, moment)
    found["step"] = torch.as_tensor(float(state[places[0]]["step"]))
    refuse_broken(uri, found)
    return found


def is_parameter(name: str) -> bool:
    """Whether our `name` is trained: neither a singular vector nor a statistic."""
    return not name.endswith((".u", ".v", ".norm.mean", ".norm.var"))
