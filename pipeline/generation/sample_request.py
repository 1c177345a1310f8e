"""What samples are asked for, and what can be wrong with that before a model is opened. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from model.latents import Truncation

Layout = Literal["classes", "grid", "interpolation", "truncation"]
Kind = Literal["sheet", "npz", "folder", "shards"]

COLUMNS, ROWS, STEPS = 10, 8, 8
TRUNCATIONS = "0.1,0.3,0.5,0.8,1,1.5,none"
_SHEETS = (".png", ".webp")
_LEAST = {"seed": 0, "per_class": 1, "steps": 2, "count": 1, "batch": 1, "standing": 2}


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What `pipeline.generation.sample` is asked for; it says what each means."""

    model: str
    out: str
    layout: Layout
    classes: str | None
    seed: int
    truncation: float | None
    truncation_method: "Truncation | None"
    truncations: str | None
    per_class: int | None
    steps: int | None
    count: int | None
    format: str | None
    batch: int
    standing: int | None
    checkpoint: int | None

    @cached_property
    def kind(self) -> Kind:
        """What OUT is. Raises ConfigError for a name that says nothing."""
        if self.out.lower().endswith(_SHEETS):
            return "sheet"
        if self.out.lower().endswith(".npz"):
            if "://" in self.out:
                raise ConfigError(f"OUT {self.out}: an .npz is written on this machine's disk; copy it from there")
            return "npz"
        if self.format == "shards":
            return "shards"
        if self.out.endswith("/") or Path(self.out).is_dir():
            return "folder"
        raise ConfigError(f"OUT {self.out}: must end in .png or .webp (a sheet), .npz (a set) or / (a folder of images)")

    @property
    def is_ours(self) -> bool:
        """Whether our own code draws, and not that of a registered model."""
        from pipeline.generation.model_address import is_registered, serves

        return not is_registered(self.model) and not serves(self.model)


def check(request: SampleRequest) -> None:
    """Raises ConfigError for an OUT or a number that means nothing, and for an argument that would do nothing or is missing."""
    kind = request.kind
    for name, least in _LEAST.items():
        value = getattr(request, name)
        if value is not None and value < least:
            raise ConfigError(f"{_flag(name)} {value}: must be at least {least}")
    if request.truncation is not None and not 0 < request.truncation < float("inf"):
        raise ConfigError(f"--truncation {request.truncation}: must be above 0; leave it out for no truncation")
    _check_partners(request, kind)
    if kind in ("folder", "shards"):
        from pipeline.storage.ownership import refuse_foreign

        refuse_foreign(f"OUT {request.out}", request.out, "name a new folder")


def _check_partners(request: SampleRequest, kind: Kind) -> None:
    sheet, ours, layout = kind == "sheet", request.is_ours, request.layout
    local = "a run's folder, a checkpoint or an exported model's folder"
    for name, fits, partner in (
        ("count", not sheet, "a set: let OUT end in .npz or /"),
        ("format", kind in ("folder", "shards"), "a folder: let OUT end in /"),
        ("per_class", sheet and layout != "truncation", "a sheet of another layout"),
        ("steps", layout == "interpolation", "--layout interpolation"),
        ("truncations", layout == "truncation", "--layout truncation"),
        ("truncation", layout != "truncation", "another layout: type --truncations"),
        ("truncation_method", ours, local),
        ("standing", ours, local),
        ("checkpoint", ours, local),
    ):
        value = getattr(request, name)
        if value is not None and not fits:
            raise ConfigError(f"{_flag(name)} {value} goes only with {partner}")
    if layout in ("interpolation", "truncation") and not (sheet and ours):
        need = "a sheet: let OUT end in .png or .webp" if ours else local
        raise ConfigError(f"--layout {layout} goes only with {need}")
    if not sheet and request.count is None:
        raise ConfigError(f"--count is missing: say how many images {request.out} shall hold")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def choose(wanted: str | None, classes: Sequence[str], default: int = COLUMNS) -> list[int]:
    """Return class numbers of `wanted`, names or numbers with commas between; the first `default` if None.

    Raises ConfigError for a class that is not there.
    """
    if wanted is None:
        return list(range(min(default, len(classes))))
    chosen = []
    for part in wanted.split(","):
        if part in classes:
            chosen.append(classes.index(part))
        elif part.isdecimal() and int(part) < len(classes):
            chosen.append(int(part))
        else:
            names = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise ConfigError(f"--classes {part!r}: the model has 0 to {len(classes) - 1}: {names}")
    return chosen
