"""What a start says of itself, on the terminal and in MLflow, before it trains."""

from pipeline.config import flatten, to_yaml
from pipeline.data.loader import DataLoader
from pipeline.data.order import lanes_for
from pipeline.engine.optim import batch_scale
from pipeline.runs import lineage
from pipeline.tracking.tracker import Tracker
from pipeline.training.setup import Setup
from pipeline.wording import hide_secrets, plural


def opening_lines(setup: Setup, images: int, loader: DataLoader) -> list[str]:
    """Return how the run is shared among the ranks, and at which learning rates it starts at `images`."""
    config, plan = setup.config, setup.plan
    lines = [
        f"{'resuming at' if images else 'training from'} image {images:,} of {config.total_images:,}: "
        f"global batch {plan.global_batch} = {plural(plan.world_size, 'rank')} x "
        f"{plural(plan.accumulation, 'micro-batch', 'micro-batches')} of "
        f"{plan.micro_batch}, batch norm over {plan.norm_group}, ZeRO-{config.zero.stage}, "
        f"{config.precision}, {setup.ranks.device.type}"
    ]
    optim, scale = config.optim, batch_scale(config.optim, plan.global_batch)
    rule = f", {optim.lr_scaling} in the batch from {optim.lr_batch}" if optim.lr_batch else ""
    lines.append(f"learning rates: G {optim.g_lr * scale:.3g}, D {optim.d_lr * scale:.3g}{rule}")
    if (times := loader.amplification()) > 2:
        better = lanes_for(plan.global_batch, plan.micro_batch)
        lines.append(f"each byte of the data is read by {times:.0f} ranks: data.lanes={better} would save that in a new run")
    return lines


def open_tracker(setup: Setup, images: int) -> Tracker:
    """Return a tracker that knows what the run is made of. For rank 0 alone."""
    config = setup.config
    tags = lineage.tags(config, setup.ranks, setup.plan, setup.manifest, images)
    data = lineage.datasets(config, setup.manifest)
    tracker = Tracker(config.tracking, setup.run, setup.uid, flatten(config), tags=tags, datasets=data)
    tracker.artifact_text(hide_secrets(to_yaml(config)), "config.yaml")
    return tracker
