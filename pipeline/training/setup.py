"""What all attempts of one training share."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.data.manifest import Manifest
from pipeline.engine.batch import BatchPlan
from pipeline.engine.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained on what, by whom."""

    config: RunConfig
    ranks: Ranks
    plan: BatchPlan
    manifest: Manifest
    uid: str
    """The run's own id, read once: its disk may go while it trains."""
    profile: int
    """Images of which to write a trace."""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.config.run)

    @property
    def images_per_update(self) -> int:
        """Real images that D sees in one update."""
        return self.plan.global_batch * self.config.batch.d_steps
