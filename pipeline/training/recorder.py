"""What a person sees of a run while it trains: progress lines, metrics, sample grids; and where the time goes."""

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from tqdm import tqdm

from model.ema import EMA
from model.sampling import generate, grid
from pipeline.checkpoint.format import Progress
from pipeline.config import RunConfig, flatten, to_yaml
from pipeline.data.loader import DataLoader
from pipeline.data.manifest import Manifest
from pipeline.data.order import lanes_for
from pipeline.engine.batch import BatchPlan
from pipeline.engine.optim import batch_scale
from pipeline.engine.zero import Engine, Ranks
from pipeline.fault_tolerance.watchdog import SLOW, Spread, Watchdog
from pipeline.generation.load import ema_generator
from pipeline.profiling.clock import COMMUNICATION, Clock, timed_collectives
from pipeline.profiling.mfu import efficiency
from pipeline.profiling.trace import trace
from pipeline.runs import lineage
from pipeline.storage.best_effort import best_effort
from pipeline.tracking.system_metrics import SystemMetrics
from pipeline.tracking.terminal import Told
from pipeline.tracking.tracker import Status, Tracker
from pipeline.wording import hide_secrets, plural


class Recorder:
    """Sums up what the steps return and, on rank 0, prints and tracks it. Every rank calls every method."""

    def __init__(
        self,
        config: RunConfig,
        ranks: Ranks,
        plan: BatchPlan,
        manifest: Manifest,
        stream: DataLoader,
        start: Progress,
        watchdog: Watchdog,
        uid: str,
        profile: int = 0,
    ):
        self.config, self.ranks, self.stream, self.manifest, self.watchdog = config, ranks, stream, manifest, watchdog
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.efficiency = efficiency(config, ranks)
        self.clock = Clock(ranks.device)
        self.open = ExitStack()
        self.profiler = None
        if profile:
            updates = -(-profile // (plan.global_batch * config.batch.d_steps))
            self.profiler = self.open.enter_context(trace(Path(config.run, "profile"), ranks, updates, self.say))
        self.began = self.last_time = time.monotonic()
        self.start_images = self.last_images = self.images = start.images
        self.tracker: Tracker | None = None
        self.status: Status = "FINISHED"
        """How the attempt ends, unless by an exception."""
        if not ranks.main:
            return
        self.told = Told()
        self.tracker = _tracker(config, ranks, plan, manifest, start, uid)
        self.bar = tqdm(total=config.total_images, initial=start.images, unit="img", unit_scale=True, disable=None)
        self.say(
            f"{'resuming at' if start.images else 'training from'} image {start.images:,} of {config.total_images:,}: "
            f"global batch {plan.global_batch} = {plural(plan.world_size, 'rank')} x "
            f"{plural(plan.accumulation, 'micro-batch', 'micro-batches')} of "
            f"{plan.micro_batch}, batch norm over {plan.norm_group}, ZeRO-{config.zero.stage}, "
            f"{config.precision}, {ranks.device.type}"
        )
        optim, scale = config.optim, batch_scale(config.optim, plan.global_batch)
        rule = f", {optim.lr_scaling} in the batch from {optim.lr_batch}" if optim.lr_batch else ""
        self.say(f"learning rates: G {optim.g_lr * scale:.3g}, D {optim.d_lr * scale:.3g}{rule}")
        if (times := stream.amplification()) > 2:
            better = lanes_for(plan.global_batch, plan.micro_batch)
            self.say(f"each byte of the data is read by {times:.0f} ranks: data.lanes={better} would save that in a new run")

    def say(self, line: str) -> None:
        if not self.bar.disable:
            self.bar.write(line)
        else:
            print(line, flush=True)

    def add(self, values: dict[str, Tensor]) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()
            self.counts[key] = self.counts.get(key, 0) + 1

    def updated(self, progress: Progress) -> None:
        """An update is done."""
        self.images = progress.images
        self.watchdog.updated()
        if self.ranks.main:
            self.told(progress.images)
        if self.profiler:
            self.profiler.step()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Charge what happens inside to `part` of the run's time; what is timed inside it belongs to that alone."""
        self.watchdog.enter(part, self.images)
        with self.clock.phase(part):
            yield
        self.watchdog.enter(f"end of {part}", self.images)

    def report(self, progress: Progress, lr_scale: float) -> dict[str, float]:
        """One line and one set of metrics; returns the means over the updates since the last report and over all ranks."""
        with self.timed("logging"):
            keys = sorted(self.sums)
            sums = self.ranks.sum([self.sums[key].to(self.ranks.device) for key in keys])
            values = {key: total / self.ranks.world_size / self.counts[key] for key, total in zip(keys, sums, strict=True)}
            spread = self.watchdog.spread()
            parts = self.clock.lap()
            now = time.monotonic()
            speed = (progress.images - self.last_images) / (now - self.last_time)
            self.sums, self.counts, self.last_time, self.last_images = {}, {}, now, progress.images
            if self.tracker:
                self._tell(progress, values, speed, parts, spread, lr_scale, self.tracker)
        return values

    def _tell(
        self,
        progress: Progress,
        values: dict[str, float],
        speed: float,
        parts: dict[str, float],
        spread: Spread | None,
        lr_scale: float,
        tracker: Tracker,
    ) -> None:
        self.bar.update(progress.images - self.bar.n)
        left = max(0, self.config.total_images - progress.images) / speed
        share = {part: seconds / sum(parts.values()) for part, seconds in parts.items()}
        mfu, bad = self.efficiency.mfu(speed), self.stream.quarantine.count()
        self.say(
            f"{progress.images:>10,} img  {speed:7.1f} img/s  MFU {mfu:4.0%}  data {share.get('data', 0):4.0%}  "
            f"comm {share.get(COMMUNICATION, 0):4.0%}  D {values['loss/d']:6.3f}  "
            f"G {values['loss/g']:6.3f}  D(real) {values['d/real']:6.2f}  D(fake) {values['d/fake']:6.2f}  "
            f"|grad D| {values['grad_norm/d']:7.3f}  |grad G| {values['grad_norm/g']:7.3f}  left {left / 60:.1f} min"
            + (f"  bad samples {bad}" if bad else "")
        )
        tracked = values | {
            "images_per_second": speed,
            "images_per_second_per_device": speed / self.ranks.world_size,
            "mfu": mfu,
            "memory/peak_gb": peak_memory(self.ranks.device) / 1e9,
            "lr/g": lr_scale * self.config.optim.g_lr,
            "lr/d": lr_scale * self.config.optim.d_lr,
            "data/bad_samples": bad,
        }
        if spread:
            tracked["time/step_spread"] = spread.ratio
            if spread.ratio > SLOW:
                self.say(
                    f"{spread.slowest} is slow: {spread.most:.2f} s of its own per update, where the median is "
                    f"{spread.median:.2f} s and the least {spread.least:.2f} s"
                )
        tracked |= {f"time/{part}": seconds for part, seconds in parts.items()}
        tracked |= {f"time/share/{part}": part_share for part, part_share in share.items()}
        tracker.metrics(tracked, progress.images)

    def samples(self, progress: Progress, generator: Engine, ema: EMA) -> Tensor | None:
        """A grid of EMA samples, classes (at most 10) as columns, always of the same latents.

        Returns it on rank 0: uint8 [8, columns, C, r, r].
        """
        averages = generator.whole(ema.averages)
        if not self.tracker:
            return None
        with self.timed("samples"):
            columns = min(10, self.config.model.num_classes)
            labels = torch.arange(columns).repeat(8)
            # Fewer standing samples than the finished generator gets: this is a look, on the training's time.
            buffers = dict(generator.module.named_buffers())
            copy = ema_generator(self.config.model, buffers, averages, self.ranks.device, samples=512)
            images = generate(copy, labels, seed=self.config.seed)
            self.tracker.image(grid(images, columns).numpy(), "samples/ema", progress.images)
        return images.unflatten(0, (8, columns))

    def __enter__(self) -> Self:
        self.open.enter_context(timed_collectives(self.clock))
        self.open.enter_context(SystemMetrics(Path(self.config.run), self.config.tracking.system_seconds))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.open.close()
        if not self.tracker:
            return
        self.bar.close()
        self.clock.lap()
        print(
            f"{self.last_images - self.start_images:,} images in {time.monotonic() - self.began:.0f} s: "
            + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in sorted(self.clock.totals.items(), key=lambda p: -p[1])),
            flush=True,
        )
        if bad := self.stream.quarantine.count():
            print(f"{bad} damaged samples were replaced by others: {self.stream.quarantine.path} lists them", flush=True)
        with best_effort(events := Path(self.config.run, "events.jsonl")):
            if events.exists():
                self.tracker.artifact(events.name)  # as it is at the end
        self.tracker.close("FAILED" if error else self.status)


def peak_memory(device: torch.device) -> int:
    """Bytes that tensors took at most on the GPU, or this process in all on a CPU, since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _tracker(config: RunConfig, ranks: Ranks, plan: BatchPlan, manifest: Manifest, start: Progress, uid: str) -> Tracker:
    run = Path(config.run)
    tags = lineage.tags(config, ranks, plan, manifest, start.images)
    data = lineage.datasets(config, manifest)
    tracker = Tracker(config.tracking, run, uid, flatten(config), tags, data)
    tracker.artifact_text(hide_secrets(to_yaml(config)), "config.yaml")
    return tracker
