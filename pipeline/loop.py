"""Training, as a story: start or resume, D steps, a G step, the average; now and then a report, samples, a checkpoint."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.ema import EMA
from model.latents import Stream as Numbers
from model.networks import build_discriminator, build_generator
from pipeline import checkpoint as checkpoints
from pipeline.batch import BatchPlan, plan_batch
from pipeline.checkpoint import Checkpoint, Progress
from pipeline.config import RunConfig
from pipeline.dataset import load_data
from pipeline.engines import Engine, Ranks, share_batch_norm
from pipeline.errors import ConfigError
from pipeline.index import Manifest
from pipeline.initial import initial_checkpoint
from pipeline.objective import Objective, Pair, State
from pipeline.report import Recorder
from pipeline.run import Status, check_model, checkpoint_uri, read_identity, write_status
from pipeline.schedule import ema_decay, lr_scale, make_optimizer
from pipeline.steps import d_step, fakes, g_step
from pipeline.stream import MicroBatch, Stream
from pipeline.trace import trace


def train(config: RunConfig, ranks: Ranks, profile_images: int = 0) -> None:
    """Train until `total_images`, from the newest checkpoint if there is one; trace that many images. Every rank calls it."""
    manifest = load_data(config.data)
    check_model(config, manifest)
    plan = plan_batch(config.batch, ranks.world_size)
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
    with Recorder(config, ranks, plan, manifest, stream, progress) as recorder, ExitStack() as stack:
        profiler = None
        if profile_images:
            updates = -(-profile_images // (plan.global_batch * config.batch.d_steps))
            profiler = stack.enter_context(trace(Path(config.run, "profile"), ranks, updates, recorder.say))
        while progress.images < config.total_images:
            scale = lr_scale(config.optim, progress.images, config.total_images)
            g.set_lr(config.optim.g_lr * scale)
            d.set_lr(config.optim.d_lr * scale)

            before = progress
            for _ in range(config.batch.d_steps):
                with recorder.timed("d_step"):
                    draw = fakes(config.model, plan, ranks, config.seed, Numbers.D_STEP, progress.images)
                    reals = _reals(stream, ranks.device, recorder)
                    recorder.add(d_step(g, d, reals, draw, objective, progress.images))
                progress = replace(progress, images=progress.images + plan.global_batch)

            position = progress.g_steps * plan.global_batch
            with recorder.timed("g_step"):
                draw = fakes(config.model, plan, ranks, config.seed, Numbers.G_STEP, position)
                values = g_step(g, d, draw, objective, position)
                recorder.add(values)
            progress = replace(progress, g_steps=progress.g_steps + 1)
            if not values["skipped/g"]:
                with recorder.timed("ema"):
                    ema.update(g.parts(), ema_decay(config.optim, progress.images, progress.images - before.images))

            if profiler:
                profiler.step()
            if _due(config.log_every, before, progress, config):
                recorder.report(progress, scale)
            if _due(config.sample_every, before, progress, config):
                recorder.samples(progress, g, ema)
            if _due(config.checkpoint.every, before, progress, config):
                with recorder.timed("checkpoint"):
                    _save(config, manifest, ranks, g, d, ema, progress, objective.state)
    stream.close()
    if ranks.main:
        write_status(Path(config.run), Status("finished", progress.images, 0))
    dist.barrier()


def _due(every: int, before: Progress, now: Progress, config: RunConfig) -> bool:
    """Whether a multiple of `every` images, or the end, was reached by the update from `before` to `now`; never for 0."""
    return every > 0 and (now.images // every > before.images // every or now.images >= config.total_images)


def find_checkpoint(config: RunConfig) -> Checkpoint | None:
    """The newest intact checkpoint of this run. Raises ConfigError if another run saves itself at the same place."""
    uri, uid = checkpoint_uri(config), read_identity(Path(config.run))["uid"]
    found = checkpoints.newest(uri)
    if found and found.state().get("run", uid) != uid:
        raise ConfigError(
            f"checkpoint.uri={uri} holds the checkpoints of another run than run={config.run}: name another place"
        )
    return found


def _agree_on_checkpoint(config: RunConfig, ranks: Ranks) -> Checkpoint | None:
    """Rank 0 looks for the newest intact checkpoint; all take the same."""
    choice = [find_checkpoint(config) if ranks.main else None]
    dist.broadcast_object_list(choice)
    return choice[0]


def _build(config: RunConfig, plan: BatchPlan, ranks: Ranks, weights: Checkpoint | None) -> tuple[Engine, Engine, EMA]:
    """Engines and average, with random weights or those of a checkpoint; an imported one may lack D or the moments."""
    torch.manual_seed(config.seed)
    have = {file.removesuffix(".safetensors") for file in weights.files} if weights else set()
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
            checkpoints.load_optimizer(engine, weights.tensors(f"{name}_optimizer"))
        engines.append(engine)
    g, d = engines
    for engine in engines:
        share_batch_norm(engine.module, plan, ranks.rank)
    ema = EMA(g.parts())
    if weights:
        ema.load(g.part(weights.tensors("ema")))
    return g, d, ema


def _reals(stream: Stream, device: torch.device, recorder: Recorder) -> Iterator[Pair]:
    while True:
        with recorder.timed("data"):
            batch = next(stream)
        yield on_device(batch, device)


def on_device(batch: MicroBatch, device: torch.device) -> Pair:
    """uint8 pixels -> -1..1, mirrored where the stream says so: images x [m, C, r, r], labels y [m]."""
    x: Tensor = batch.images.to(device, non_blocking=True).float().div_(127.5).sub_(1)
    flips = batch.flips.to(device, non_blocking=True)[:, None, None, None]
    return torch.where(flips, x.flip(3), x), batch.labels.to(device, non_blocking=True)


def _save(
    config: RunConfig, manifest: Manifest, ranks: Ranks, g: Engine, d: Engine, ema: EMA, progress: Progress, objective: State
) -> None:
    """Gather on all ranks, write on rank 0."""
    tensors: dict[str, dict[str, Tensor]] = {
        "generator_optimizer": checkpoints.optimizer_tensors(g),
        "discriminator_optimizer": checkpoints.optimizer_tensors(d),
        "ema": g.whole(ema.averages),
    }
    for name, engine in (("generator", g), ("discriminator", d)):
        with engine.gathered():
            tensors[name] = {key: tensor.clone() for key, tensor in checkpoints.network_tensors(engine.module).items()}
    if ranks.main:
        state: dict[str, Any] = {"run": read_identity(Path(config.run))["uid"], "time": time.time()}
        state |= {"world_size": ranks.world_size, "zero_stage": config.zero.stage, "objective": asdict(objective)}
        # What it takes to sample from a checkpoint that has left its run.
        state |= {"model": asdict(config.model), "classes": list(manifest.classes)}
        checkpoints.save(checkpoint_uri(config), progress, tensors, state, config.checkpoint.keep)
        write_status(Path(config.run), Status("running", progress.images))
    # The others wait: a rank that runs ahead into the next collective would meet a timeout if the disk is slow.
    dist.barrier()
