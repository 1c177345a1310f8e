"""Training, as a story: start or resume, D steps, a G step, the average; now and then a report, samples, a checkpoint."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from model.latents import RandomStream
from pipeline import exit_codes
from pipeline.checkpoint.failpoints import NaNInjection
from pipeline.checkpoint.fencing import take_fence
from pipeline.checkpoint.format import Progress
from pipeline.checkpoint.saver import Saver
from pipeline.config import RunConfig
from pipeline.data.dataset import load_data
from pipeline.data.loader import DataLoader
from pipeline.engine.objective import ObjectiveState, Pair
from pipeline.engine.optim import ema_decay, lr_scale
from pipeline.engine.ranks import Ranks
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.fault_tolerance.health import Health
from pipeline.fault_tolerance.recovery import Failure, Recovery
from pipeline.fault_tolerance.stop import Signals, Stop
from pipeline.fault_tolerance.watchdog import Watchdog
from pipeline.runs.initial_weights import initial_checkpoint
from pipeline.runs.resume import agree_on_checkpoint, note_saved
from pipeline.runs.run_folder import RunState, check_model, read_identity, write_status
from pipeline.runs.trusted_places import checkpoint_uri
from pipeline.tracking.system_metrics import SystemMetrics
from pipeline.training.micro_batch import plan_in_memory
from pipeline.training.reals import Reals
from pipeline.training.recorder import Recorder
from pipeline.training.setup import Setup
from pipeline.training.train_state import TrainState


def train(config: RunConfig, ranks: Ranks, signals: Signals, profile: int = 0) -> str | None:
    """Train until `total_images`, from the newest checkpoint if there is one; trace `profile` images. Every rank calls it.

    Returns None, or the reason to stop before that, saved. Raises TrainingError if the run goes bad and does not get over it.
    """
    run = Path(config.run)
    stop = Stop(config.stop, run, signals, ranks)
    manifest = load_data(config.data)
    check_model(config, manifest)
    plan, uid = plan_in_memory(config, ranks), read_identity(run)["uid"]
    setup = Setup(config=config, ranks=ranks, plan=plan, manifest=manifest, uid=uid, profile=profile)
    recovery = Recovery(config.health, run, ranks, config.checkpoint.uri)
    injection = NaNInjection(ranks.rank)
    while isinstance(ended := _attempt(setup, recovery, stop, injection), Failure):
        recovery.heal(ended)
    return ended


def _attempt(setup: Setup, recovery: Recovery, stop: Stop, injection: NaNInjection) -> Failure | str | None:
    """Train from the newest good checkpoint until `total_images`, a reason to stop, or a failure."""
    config, ranks, plan = setup.config, setup.ranks, setup.plan
    fence = take_fence(checkpoint_uri(config), ranks)
    state, start = _resume(setup, recovery)
    progress = kept = start
    reason = failure = None
    with (
        _open_loader(setup, progress) as loader,
        Watchdog(config.hang, setup.run, ranks) as watchdog,
        Recorder(setup, loader, progress, watchdog) as recorder,
        SystemMetrics(setup.run, config.tracking.system_seconds if ranks.local_main else 0, ranks.node),
        Saver(config.checkpoint, fence, ranks, progress.images, partial(note_saved, setup.run)) as saver,
    ):
        health = Health(recovery, state, start, recorder.tracker)
        reals = injection.spoil(Reals(loader, ranks.device, recorder), start.g_steps, config.batch.d_steps * plan.accumulation)

        def save() -> None:
            saver.save(progress, state.slices(), state.state(setup.manifest, setup.uid))

        while progress.images < config.total_images and not (reason := stop.agreed()):
            scale = lr_scale(config.optim, progress.images, config.total_images, plan.global_batch) * recovery.lr_scale
            state.set_lr(scale)
            before = progress
            progress = _update(state, reals, recorder, health, progress)
            recorder.updated(progress)

            due = partial(_due, before=before, now=progress, config=config)
            report, sample, save_due = due(config.log_every), due(config.sample_every), due(config.checkpoint.every)
            if failure := health.failure(before, progress, look=report or save_due):
                break

            if report:
                health.report(recorder.report(progress, scale), progress)
            if sample:
                health.samples(recorder.samples(progress, state), progress)
            if health.wants_save(save_due, end=progress.images >= config.total_images):
                with recorder.timed("checkpoint"):
                    save()
                health.saved(progress)
                kept = progress
                if ranks.main:
                    write_status(setup.run, RunState("running", progress.images))
            if failure := health.collapsed(progress):
                break

        recorder.status = "FAILED" if failure else "KILLED" if reason else "FINISHED"
        with recorder.timed("checkpoint"):
            if reason and progress != kept and health.wants_last_save(progress):
                save()
            saver.close()
    if failure:
        state.close()
    elif ranks.main:
        end = RunState("finished", progress.images, exit_codes.DONE.number)
        if reason:
            end = RunState("stopped", progress.images, exit_codes.STOPPED.number, reason)
        write_status(setup.run, end)
    dist.barrier()
    return failure or reason


def _resume(setup: Setup, recovery: Recovery) -> tuple[TrainState, Progress]:
    """The newest good checkpoint, else what the run starts from: what is trained, and how far it is."""
    config, ranks, run = setup.config, setup.ranks, setup.run
    saved = agree_on_checkpoint(config, ranks, recovery.history, setup.uid)
    objective = saved.told("objective", ObjectiveState) if saved else ObjectiveState()
    state = TrainState(config, setup.plan, ranks, saved or initial_checkpoint(config), objective)
    progress = recovery.begin(saved.progress() if saved else None)
    if ranks.main:
        write_status(run, RunState("running", progress.images))
        note_saved(run, progress.images)
    return state, progress


def _update(state: TrainState, reals: Iterator[Pair], recorder: Recorder, health: Health, progress: Progress) -> Progress:
    """One round of `batch.d_steps` D steps, a G step and the average; returns how far the run is then."""
    config, plan = state.config, state.plan
    g, d, objective = state.g, state.d, state.objective
    draw = partial(fakes, config.model, plan, state.ranks, seed=config.seed)
    began = progress.images
    for _ in range(config.batch.d_steps):
        with recorder.timed("d_step"):
            latents = draw(stream=RandomStream.D_STEP, position=progress.images)
            recorder.add(health.see(d_step(g, d, reals, latents, objective, position=progress.images)))
        progress = replace(progress, images=progress.images + plan.global_batch)

    with recorder.timed("g_step"):
        position = progress.g_steps * plan.global_batch
        latents = draw(stream=RandomStream.G_STEP, position=position)
        values = health.see(g_step(g, d, latents, objective, position=position))
        recorder.add(values)
    if not values["skipped/g"]:
        with recorder.timed("ema"):
            state.ema.update(g.parts(), ema_decay(config.optim, progress.images, progress.images - began))
    return replace(progress, g_steps=progress.g_steps + 1)


def _due(every: int, before: Progress, now: Progress, config: RunConfig) -> bool:
    """Whether a multiple of `every` images, or the end, was reached by the update from `before` to `now`; never for 0."""
    return every > 0 and (now.images // every > before.images // every or now.images >= config.total_images)


def _open_loader(setup: Setup, progress: Progress) -> DataLoader:
    config, ranks = setup.config, setup.ranks
    return DataLoader(
        config.data,
        setup.manifest,
        seed=config.seed,
        global_batch=setup.plan.global_batch,
        micro_batch=setup.plan.micro_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        position=progress.images,
        rollbacks=progress.rollbacks,
        quarantine=config.data.quarantine(setup.manifest, setup.run / "quarantine.jsonl"),
        mirror=ranks.device.type == "cpu",
    )
