"""A run's configuration: one tree of frozen dataclasses, each beside the code that it configures.

A file or preset, then `key=value` arguments, in this order of precedence. A YAML file may start from a preset with
`preset: NAME`. Unknown keys, wrong types and impossible values are errors that name the key and the nearest valid one.
"""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import pydantic
import yaml

from model.config import ModelConfig
from pipeline import config_tree
from pipeline.bounds import Bounds, check_bounds
from pipeline.checkpoint.retention import CheckpointConfig
from pipeline.config_tree import named_sections_in, preset_names, section_in
from pipeline.data.loader import DataConfig
from pipeline.engine.batch import BatchConfig
from pipeline.engine.objective import ObjectiveConfig
from pipeline.engine.optim import OptimConfig
from pipeline.engine.zero import ZeroConfig
from pipeline.errors import ConfigError
from pipeline.fault_tolerance.recovery import HealthConfig
from pipeline.fault_tolerance.stop import StopConfig
from pipeline.fault_tolerance.watchdog import HangConfig
from pipeline.tracking.tracker import TrackingConfig

__all__ = ["RunConfig", "build", "flatten", "load_config", "located", "preset_names", "to_yaml"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a training run."""

    run: str
    """The run's folder. The same folder again means: resume."""
    total_images: Annotated[int, Bounds(ge=1)]
    """Training ends when D has seen this many real images."""
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    hang: HangConfig = field(default_factory=HangConfig)
    init: str | None = None
    """A run, or checkpoints anywhere, as `biggan import` makes them: the weights to start from, instead of random ones."""
    seed: Annotated[int, Bounds(ge=0)] = 0
    """Decides the weights at the start, the order of the images, flips and latents."""
    precision: Literal["bf16", "fp32", "auto"] = "bf16"
    """bf16: autocast, with parameters, batch-norm statistics, sigma, logits and losses kept in fp32. auto: bf16 on GPUs; on a
    CPU what it convolves faster in at the run's first start, and then the same for good."""
    activation_checkpointing: Literal["none", "blocks"] = "none"
    """blocks: both networks keep the inputs of their blocks only, and compute each block again in backward (arXiv
    1604.06174). The numbers stay the same: it trades a third more computation for memory."""
    compile: bool = False
    """torch.compile fuses what stands between the convolutions of a block: minutes at every start, a quicker step on a GPU. A
    graph that cannot be compiled is an error, as a run must not change its rounding by chance."""
    processes: Annotated[int | None, Bounds(ge=1)] = None
    """Workers on each machine. Default: one per GPU, or one where there is no GPU."""
    peak_tflops: Annotated[float | None, Bounds(gt=0)] = None
    """Matrix rate of one device in TFLOP/s, which model FLOP utilisation is a share of. Default: measured at the start."""
    log_every: Annotated[int, Bounds(ge=1)] = 10_000
    """Images between two lines of progress and metrics."""
    sample_every: Annotated[int, Bounds(ge=0)] = 100_000
    """Images between two sample grids in MLflow; 0 for none."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.run:
            raise ValueError("run= is empty: set run=FOLDER")
        for key, clash in (("objective.r1=0", self.objective.r1), ("zero.stage=2", self.zero.stage == 3)):
            if self.compile and clash:
                raise ValueError(f"compile=true supports neither R1 nor ZeRO-3: set compile=false or {key}")
        g, d = self.model.g_entry, self.model.d_entry
        for entry, network in ((g, f"{self.model.generator} G"), (d, f"{self.model.discriminator} D")):
            if self.compile and not entry.compiles:
                raise ValueError(f"compile=true: the {network} has no blocks to compile: set compile=false")
            if self.zero.stage == 3 and not entry.zero3:
                raise ValueError(f"zero.stage=3: the {network} cannot be split over ranks: set zero.stage=2")
        if self.objective.r1 and not d.r1:
            raise ValueError("objective.r1: needs a D without batch norm: set model.discriminator=biggan or objective.r1=0")
        if self.objective.r1 and self.zero.stage == 3:
            raise ValueError("objective.r1: differentiates D twice, which ZeRO-3 cannot: set zero.stage=2 or objective.r1=0")

    @property
    def bf16(self) -> bool:
        """Whether to autocast. Nobody knows of `auto` before `pipeline.training.precision.settle`."""
        assert self.precision != "auto"
        return self.precision == "bf16"


def load_config(source: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of preset or YAML file `source`, with `key=value` (dotted keys) on top. Raises ConfigError."""
    tree, given, overrides = config_tree.read(source, RunConfig), config_tree.Tree(), list(overrides)
    config_tree.override(given, overrides, RunConfig)
    tree = config_tree.without_source(tree, given)
    config_tree.override(tree, overrides, RunConfig)
    return located(build(tree))


def located(config: RunConfig) -> RunConfig:
    """Return `config` with `~` expanded and relative local paths made absolute, so that they mean the same from everywhere.

    URIs of stores stay as they are. `run` is only expanded: it is the user's name for the run, and its folder may move.
    """
    place, data, store = _absolute, config.data, config.tracking.uri
    parts = {name: replace(part, uri=place(part.uri)) for name, part in data.mix.items()}
    return replace(
        config,
        run=os.path.expanduser(config.run),
        init=config.init and place(config.init),
        data=replace(data, uri=data.uri and place(data.uri), mix=parts, cache=data.cache and place(data.cache)),
        checkpoint=replace(config.checkpoint, uri=config.checkpoint.uri and place(config.checkpoint.uri)),
        # MLflow has stores that are one word, such as databricks.
        tracking=replace(config.tracking, uri=place(store) if store and "/" in store else store),
    )


def _absolute(uri: str) -> str:
    store = re.match(r"sqlite(\+\w+)?:///(?!:memory:)", uri)
    scheme, rest = (store[0], uri[store.end() :]) if store else ("", uri)
    if not scheme and re.match(r"[\w+.-]+:/", rest):  # s3://, models:/
        return uri
    path = os.path.expanduser(rest)
    if os.path.isabs(path):
        return scheme + path
    path = os.path.join(os.getcwd(), path)
    plain = os.path.normpath(path)
    # `..` behind a link is not the folder above the link.
    return scheme + (plain if os.path.realpath(plain) == os.path.realpath(path) else path)


def build(tree: Mapping[str, Any]) -> RunConfig:
    """Check a plain tree against the dataclasses. Raises ConfigError naming the first key at fault."""
    _refuse_unknown(tree, RunConfig, "")
    # Of a section that is left out, the first key that it must have is named.
    tree = {name: {} for name, inner in _keys(RunConfig) if inner} | dict(tree)
    try:
        return pydantic.TypeAdapter(RunConfig).validate_python(tree)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(_named(first["loc"], tree))
        if first["type"] == "missing":
            raise ConfigError(f"config key {key} is missing: set {key}=VALUE") from None
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if first["type"] == "value_error":
            raise ConfigError(f"config {key + '.' if key else ''}{message}") from None
        raise ConfigError(f"config key {key}={first['input']!r}: {message}") from None


def _named(place: tuple[int | str, ...], tree: Any) -> Iterable[str]:
    """The parts of a place that a user would type: pydantic names the types on the way, too."""
    for part in place:
        below = isinstance(tree, Mapping) and part in tree
        if below or part in _all_names() or isinstance(part, int):
            yield str(part)
        tree = tree[part] if below else tree


def to_yaml(config: RunConfig) -> str:
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, for comparing and for tracking."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else key, value)
        else:
            flat[prefix] = node

    walk("", _plain(dataclasses.asdict(config)))
    return flat


def _keys(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(node).items():
        yield prefix + name, (inner := section_in(hint))
        if named := named_sections_in(hint):
            yield from _keys(named, f"{prefix}{name}.NAME.")
        if inner:
            yield from _keys(inner, f"{prefix}{name}.")


def _all_names() -> set[str]:
    return {part for key, _ in _keys(RunConfig) for part in key.split(".")}


def _refuse_unknown(tree: Mapping[str, Any], node: Any, prefix: str) -> None:
    hints = typing.get_type_hints(node)
    for key, value in tree.items():
        if key not in hints:
            while isinstance(value, Mapping) and value:  # of a whole section, its first key
                below, value = next(iter(value.items()))
                key = f"{key}.{below}"
            _unknown(f"{prefix}{key}")
        if isinstance(value, bool) and bool not in (hints[key], *typing.get_args(hints[key])):
            raise ConfigError(f"config key {prefix}{key}={str(value).lower()}: must not be true or false")
        inner, named = section_in(hints[key]), named_sections_in(hints[key])
        if inner and isinstance(value, Mapping):
            _refuse_unknown(value, inner, f"{prefix}{key}.")
        if named and isinstance(value, Mapping):
            for name, below in value.items():
                if isinstance(below, Mapping):
                    _refuse_unknown(below, named, f"{prefix}{key}.{name}.")


def _unknown(key: str) -> typing.NoReturn:
    known = [name for name, inner in _keys(RunConfig) if not inner]
    # The last part may be right, or nearly so, under the wrong parent: compare both the whole key and its end.
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    end = key.rpartition(".")[2]
    near = [ends[end]] if end in ends else difflib.get_close_matches(key, known, 1, 0.5)
    near = near or [ends[name] for name in difflib.get_close_matches(end, ends, 1, 0.5)]
    raise ConfigError(f"unknown config key {key}: " + (f"did you mean {near[0]}?" if near else f"keys are {', '.join(known)}"))


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, (tuple, list)) else node
