"""Training, as a story: start or resume, D steps, a G step, the average; now and then a report, samples, a checkpoint."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.ema import EMA
from model.latents import Stream as Numbers
from model.networks import build_discriminator, build_generator
from pipeline import checkpoint as checkpoints
from pipeline import slices
from pipeline.batch import BatchPlan, plan_batch
from pipeline.checkpoint import Checkpoint, Progress
from pipeline.config import RunConfig
from pipeline.dataset import load_data
from pipeline.engines import Engine, Ranks, share_batch_norm
from pipeline.errors import ConfigError
from pipeline.index import Manifest
from pipeline.initial import check_networks, initial_checkpoint
from pipeline.objective import Objective, Pair, State
from pipeline.report import Recorder
from pipeline.run import Status, check_model, checkpoint_uri, read_identity, write_status
from pipeline.saver import Saver, take_fence
from pipeline.schedule import ema_decay, lr_scale, make_optimizer
from pipeline.steps import d_step, fakes, g_step
from pipeline.stream import MicroBatch, Stream


def train(config: RunConfig, ranks: Ranks) -> None:
    """Train until `total_images`, from the newest checkpoint if there is one. Every rank calls it."""
    manifest = load_data(config.data)
    check_model(config, manifest)
    plan = plan_batch(config.batch, ranks.world_size)
    fence = take_fence(checkpoint_uri(config), ranks)
    saved = _agree_on_checkpoint(config, ranks)
    g, d, ema = _build(config, plan, ranks, saved or initial_checkpoint(config))
    progress = saved.progress() if saved else Progress()
    state = State(**saved.state().get("objective", {})) if saved else State()
    objective = Objective(config.objective, plan, ranks, config.seed, state)
    if ranks.main:
        write_status(Path(config.run), Status("running", progress.images))
    stream = Stream(
        config.data,
        manifest,
        seed=config.seed,
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        position=progress.images,
        quarantine=config.data.quarantine(manifest, Path(config.run, "quarantine.jsonl")),
    )
    with (
        Recorder(config, ranks, plan, manifest, stream, progress) as recorder,
        Saver(config.checkpoint, fence, ranks, progress.images) as saver,
    ):
        while progress.images < config.total_images:
            scale = lr_scale(config.optim, progress.images, config.total_images)
            g.set_lr(config.optim.g_lr * scale)
            d.set_lr(config.optim.d_lr * scale)

            before = progress
            for _ in range(config.batch.d_steps):
                draw = fakes(config.model, plan, ranks, config.seed, Numbers.D_STEP, progress.images)
                recorder.add(d_step(g, d, _reals(stream, ranks.device), draw, objective, progress.images))
                progress = replace(progress, images=progress.images + plan.global_batch)

            position = progress.g_steps * plan.global_batch
            draw = fakes(config.model, plan, ranks, config.seed, Numbers.G_STEP, position)
            values = g_step(g, d, draw, objective, position)
            recorder.add(values)
            progress = replace(progress, g_steps=progress.g_steps + 1)
            if not values["skipped/g"]:
                ema.update(g.parts(), ema_decay(config.optim, progress.images, progress.images - before.images))

            if _due(config.log_every, before, progress, config):
                recorder.report(progress, scale)
            if _due(config.sample_every, before, progress, config):
                recorder.samples(progress, g, ema)
            if _due(config.checkpoint.every, before, progress, config):
                with recorder.timed("checkpoint"):
                    _save(saver, config, manifest, ranks, g, d, ema, progress, objective.state)
        with recorder.timed("checkpoint"):
            saver.close()
    stream.close()
    if ranks.main:
        write_status(Path(config.run), Status("finished", progress.images, 0))
    dist.barrier()


def _due(every: int, before: Progress, now: Progress, config: RunConfig) -> bool:
    """Whether a multiple of `every` images, or the end, was reached by the update from `before` to `now`; never for 0."""
    return every > 0 and (now.images // every > before.images // every or now.images >= config.total_images)


def find_checkpoint(config: RunConfig) -> Checkpoint | None:
    """The newest intact checkpoint of this run. Raises ConfigError if what is there is another run's, or of other networks."""
    uri, uid = checkpoint_uri(config), read_identity(Path(config.run))["uid"]
    found = checkpoints.newest(uri)
    if found and found.state().get("run", uid) != uid:
        raise ConfigError(
            f"checkpoint.uri={uri} holds the checkpoints of another run than run={config.run}: name another place"
        )
    if found:
        check_networks(found, config, f"checkpoint.uri={uri}")
    return found


def _agree_on_checkpoint(config: RunConfig, ranks: Ranks) -> Checkpoint | None:
    """Rank 0 looks for the newest intact checkpoint; all take the same."""
    choice = [find_checkpoint(config) if ranks.main else None]
    dist.broadcast_object_list(choice)
    return choice[0]


def _build(config: RunConfig, plan: BatchPlan, ranks: Ranks, weights: Checkpoint | None) -> tuple[Engine, Engine, EMA]:
    """Engines and average, with random weights or those of a checkpoint; an imported one may lack D or the moments."""
    torch.manual_seed(config.seed)
    have = weights.parts if weights else set()
    engines = []
    for name, network, lr in (
        ("generator", build_generator(config.model), config.optim.g_lr),
        ("discriminator", build_discriminator(config.model), config.optim.d_lr),
    ):
        network.to(ranks.device)
        network.recompute = config.activation_checkpointing == "blocks"
        if weights and name in have:
            # Before DeepSpeed takes its own copies of the parameters.
            network.load_state_dict(weights.tensors(name))
        optimizer = make_optimizer(config.optim, network, lr)
        engine = Engine(network, optimizer, config.zero, plan.micro_batch, config.precision == "bf16")
        if weights and f"{name}_optimizer" in have:
            slices.load_moments(engine, ranks, partial(weights.fill, f"{name}_optimizer"))
        engines.append(engine)
    g, d = engines
    for engine in engines:
        share_batch_norm(engine.module, plan, ranks.rank)
    ema = EMA(g.parts())
    if weights:
        ema.load(g.part(weights.tensors("ema")))
    return g, d, ema


def _reals(stream: Stream, device: torch.device) -> Iterator[Pair]:
    for batch in stream:
        yield on_device(batch, device)


def on_device(batch: MicroBatch, device: torch.device) -> Pair:
    """uint8 pixels -> -1..1, mirrored where the stream says so: images x [m, C, r, r], labels y [m]."""
    x: Tensor = batch.images.to(device, non_blocking=True).float().div_(127.5).sub_(1)
    flips = batch.flips.to(device, non_blocking=True)[:, None, None, None]
    return torch.where(flips, x.flip(3), x), batch.labels.to(device, non_blocking=True)


def _save(
    saver: Saver,
    config: RunConfig,
    manifest: Manifest,
    ranks: Ranks,
    g: Engine,
    d: Engine,
    ema: EMA,
    progress: Progress,
    objective: State,
) -> None:
    """Begin to save what each rank holds, and the state."""
    state: dict[str, Any] = {"run": read_identity(Path(config.run))["uid"], "time": time.time()}
    state |= {"world_size": ranks.world_size, "zero_stage": config.zero.stage, "objective": asdict(objective)}
    # What it takes to sample from a checkpoint that has left its run.
    state |= {"model": asdict(config.model), "classes": list(manifest.classes)}
    saver.save(progress, own_slices(ranks, g, d, ema), state)
    if ranks.main:
        write_status(Path(config.run), Status("running", progress.images))


def own_slices(ranks: Ranks, g: Engine, d: Engine, ema: EMA) -> dict[str, list[slices.Slice]]:
    """What this rank writes of a checkpoint."""
    return {
        "generator": slices.network(g, ranks),
        "generator_optimizer": slices.moments(g, ranks),
        "discriminator": slices.network(d, ranks),
        "discriminator_optimizer": slices.moments(d, ranks),
        "ema": slices.average(ema.averages, g, ranks),
    }
