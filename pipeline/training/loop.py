"""Training, as a story: start or resume, D steps, a G step, the average; now and then a report, samples, a checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from model.latents import RandomStream
from pipeline import exit_codes
from pipeline.checkpoint.failpoints import NaNInjection
from pipeline.checkpoint.fencing import take_fence
from pipeline.checkpoint.format import Progress
from pipeline.checkpoint.saver import Saver
from pipeline.config import RunConfig
from pipeline.data.dataset import load_data
from pipeline.data.loader import DataLoader, MicroBatch
from pipeline.data.manifest import Manifest
from pipeline.engine.batch import BatchPlan
from pipeline.engine.objective import ObjectiveState, Pair
from pipeline.engine.optim import ema_decay, lr_scale
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.engine.zero import Ranks
from pipeline.fault_tolerance.health import Failure, Health
from pipeline.fault_tolerance.stop import Signals, Stop
from pipeline.fault_tolerance.watchdog import Watchdog
from pipeline.runs.initial_weights import initial_checkpoint
from pipeline.runs.resume import agree_on_checkpoint, note_saved
from pipeline.runs.run_folder import RunState, check_model, read_identity, write_status
from pipeline.runs.trusted_places import checkpoint_uri
from pipeline.training.micro_batch import plan_in_memory
from pipeline.training.recorder import Recorder
from pipeline.training.train_state import TrainState


@dataclass(frozen=True)
class _Job:
    """What all attempts of a training share."""

    config: RunConfig
    ranks: Ranks
    plan: BatchPlan
    manifest: Manifest
    health: Health
    fault: NaNInjection
    stop: Stop
    uid: str
    """The run's own id, read once: its disk may go while it trains."""
    profile: int
    """Images of which to write a trace."""


def train(config: RunConfig, ranks: Ranks, signals: Signals, profile: int = 0) -> str | None:
    """Train until `total_images`, from the newest checkpoint if there is one; trace `profile` images. Every rank calls it.

    Returns None, or the reason to stop before that, saved. Raises TrainingError if the run goes bad and does not get over it.
    """
    stop = Stop(config.stop, Path(config.run), signals, ranks)
    manifest = load_data(config.data)
    check_model(config, manifest)
    plan = plan_in_memory(config, ranks)
    uid = read_identity(Path(config.run))["uid"]
    health = Health(config.health, Path(config.run), ranks, config.objective, config.checkpoint.uri)
    job = _Job(config, ranks, plan, manifest, health, NaNInjection(ranks.rank), stop, uid, profile)
    while isinstance(ended := _attempt(job), Failure):
        health.heal(ended)
    return ended


def _attempt(job: _Job) -> Failure | str | None:
    """Train from the newest good checkpoint until `total_images`, a reason to stop, or a failure."""
    config, ranks, plan, manifest, health = job.config, job.ranks, job.plan, job.manifest, job.health
    fence = take_fence(checkpoint_uri(config), ranks)
    saved = agree_on_checkpoint(config, ranks, health.history, job.uid)
    state = saved.told("objective", ObjectiveState) if saved else ObjectiveState()
    learner = TrainState(config, plan, ranks, saved or initial_checkpoint(config), state)
    g, d = learner.g, learner.d
    progress = health.begin(saved.progress() if saved else None)
    if ranks.main:
        write_status(Path(config.run), RunState("running", progress.images))
        note_saved(Path(config.run), progress.images)
    stream = _open_stream(config, manifest, plan, ranks, progress)
    kept, reason, failure = progress, None, None
    with (
        stream,
        Watchdog(config.hang, Path(config.run), ranks) as watchdog,
        Recorder(config, ranks, plan, manifest, stream, progress, watchdog, job.uid, job.profile) as recorder,
        Saver(config.checkpoint, fence, ranks, progress.images, partial(note_saved, Path(config.run))) as saver,
    ):
        health.tracker = recorder.tracker
        while progress.images < config.total_images and not failure and not (reason := job.stop.agreed()):
            scale = lr_scale(config.optim, progress.images, config.total_images, plan.global_batch) * health.lr_scale
            learner.set_lr(scale)
            before = progress
            progress = _update(learner, stream, recorder, health, progress, job.fault.strikes(progress.g_steps))
            recorder.updated(progress)

            report, sample, save = (
                _due(every, before, progress, config)
                for every in (config.log_every, config.sample_every, config.checkpoint.every)
            )
            if failure := health.failure(before, progress, report or save, (g, d), learner.ema, learner.objective.state):
                break
            if report:
                health.report(recorder.report(progress, scale), progress, g, d)
            if sample:
                health.samples(recorder.samples(progress, g, learner.ema), progress, g, d)
            if health.wants_save(save, progress.images >= config.total_images):
                with recorder.timed("checkpoint"):
                    saver.save(progress, learner.slices(), learner.state(manifest, job.uid))
                health.saved(progress)
                kept = progress
                if ranks.main:
                    write_status(Path(config.run), RunState("running", progress.images))
            failure = health.collapsed(progress)

        health.tracker = None
        recorder.status = "FAILED" if failure else "KILLED" if reason else "FINISHED"
        with recorder.timed("checkpoint"):
            if reason and progress != kept and health.wants_last_save(progress, (g, d), learner.ema, learner.objective.state):
                saver.save(progress, learner.slices(), learner.state(manifest, job.uid))
            saver.close()
    if failure:
        g.close()
        d.close()
    elif ranks.main:
        end = RunState("finished", progress.images, exit_codes.DONE.number)
        if reason:
            end = RunState("stopped", progress.images, exit_codes.STOPPED.number, reason)
        write_status(Path(config.run), end)
    dist.barrier()
    return failure or reason


def _update(
    learner: TrainState, stream: DataLoader, recorder: Recorder, health: Health, progress: Progress, spoilt: bool
) -> Progress:
    """One round of `batch.d_steps` D steps, a G step and the average; returns how far the run is then."""
    config, plan, ranks = learner.config, learner.plan, learner.ranks
    g, d, objective = learner.g, learner.d, learner.objective
    began = progress.images
    for _ in range(config.batch.d_steps):
        with recorder.timed("d_step"):
            draw = fakes(config.model, plan, ranks, config.seed, RandomStream.D_STEP, progress.images)
            reals = _reals(stream, ranks.device, recorder, spoilt)
            recorder.add(health.see(d_step(g, d, reals, draw, objective, progress.images)))
        progress = replace(progress, images=progress.images + plan.global_batch)

    with recorder.timed("g_step"):
        position = progress.g_steps * plan.global_batch
        draw = fakes(config.model, plan, ranks, config.seed, RandomStream.G_STEP, position)
        values = health.see(g_step(g, d, draw, objective, position))
        recorder.add(values)
    if not values["skipped/g"]:
        with recorder.timed("ema"):
            learner.ema.update(g.parts(), ema_decay(config.optim, progress.images, progress.images - began))
    return replace(progress, g_steps=progress.g_steps + 1)


def _due(every: int, before: Progress, now: Progress, config: RunConfig) -> bool:
    """Whether a multiple of `every` images, or the end, was reached by the update from `before` to `now`; never for 0."""
    return every > 0 and (now.images // every > before.images // every or now.images >= config.total_images)


def _open_stream(config: RunConfig, manifest: Manifest, plan: BatchPlan, ranks: Ranks, progress: Progress) -> DataLoader:
    return DataLoader(
        config.data,
        manifest,
        seed=config.seed,
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        position=progress.images,
        rollbacks=progress.rollbacks,
        quarantine=config.data.quarantine(manifest, Path(config.run, "quarantine.jsonl")),
        mirror=ranks.device.type == "cpu",
    )


def _reals(stream: DataLoader, device: torch.device, recorder: Recorder, spoilt: bool) -> Iterator[Pair]:
    while True:
        with recorder.timed("data"):
            batch = next(stream)
        x, y = on_device(batch, device)
        yield (x * torch.nan if spoilt else x), y


def on_device(batch: MicroBatch, device: torch.device) -> Pair:
    """uint8 pixels -> -1..1, mirrored where the stream says so: images x [m, C, r, r], labels y [m]."""
    x: Tensor = batch.images.to(device, non_blocking=True).float().div_(127.5).sub_(1)
    flips = batch.flips.to(device, non_blocking=True)[:, None, None, None]
    return torch.where(flips, x.flip(3), x), batch.labels.to(device, non_blocking=True)
