"""When a run saves itself, and which of its checkpoints stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pipeline.bounds import Bounds, check_bounds
from pipeline.storage.addresses import is_web
from pipeline.wording import hide_secrets

if TYPE_CHECKING:
    from pipeline.checkpoint.format import Checkpoint


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When and where a run saves itself, and what of it stays."""

    every: Annotated[int, Bounds(ge=1, because=" image")] = 200_000
    """Images between two checkpoints; one is always written at the end."""
    keep: Annotated[int, Bounds(ge=2, because=": the newest checkpoint may turn out to be damaged")] = 2
    """Checkpoints to keep: the newest ones."""
    keep_every: int | None = None
    """Of each so many images, also keep the first checkpoint for good."""
    keep_best: Literal["fid", "accuracy"] | None = None
    """Also keep the one that `biggan evaluate` found the best by this figure (of several recipes, the best by each)."""
    max_loss: int | None = None
    """Images that a store that takes nothing may put at risk before the run stops. Default: 5 times `every`."""
    uri: str | None = None
    """Any fsspec URI; a relative path is made absolute. Default: `checkpoints` in the run's folder."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.uri and is_web(self.uri):
            raise ValueError(f"uri={hide_secrets(self.uri)}: HTTP is read only; name a folder or an object store")
        if self.keep_every is not None and self.keep_every < self.every:
            raise ValueError(f"keep_every={self.keep_every}: must be at least every={self.every}")
        if self.max_loss is not None and self.max_loss < self.every:
            raise ValueError(f"max_loss={self.max_loss}: must be at least every={self.every}, which a crash costs anyway")

    @property
    def loss_limit(self) -> int:
        return 5 * self.every if self.max_loss is None else self.max_loss


def kept(config: CheckpointConfig, saved: "Checkpoint", older: Sequence["Checkpoint"]) -> set[str]:
    """Return the URIs that stay, of the newest checkpoint and all `older` ones, newest first."""
    everything = [saved, *older]
    keep = {checkpoint.uri for checkpoint in everything[: config.keep]}
    if config.keep_every:
        firsts = {c.images // config.keep_every: c.uri for c in everything}  # the oldest of each comes last
        keep |= {uri for number, uri in firsts.items() if number}
    if config.keep_best:
        sign = 1 if config.keep_best == "fid" else -1
        judged = [(*figure, c.uri) for c in everything if (figure := c.figure(config.keep_best))]
        # Figures of different recipes cannot be compared: of each the best, which comes last and stays.
        keep |= set({recipe: uri for recipe, _, uri in sorted(judged, key=lambda j: sign * j[1], reverse=True)}.values())
    return keep
