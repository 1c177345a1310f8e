"""What a run trains, on one rank: both engines, the average of G, the objective. Built anew or from a checkpoint."""

import time
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from model.ema import EMA
from model.networks import build_discriminator, build_generator
from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.saved_network import check_fit
from pipeline.config import RunConfig
from pipeline.data.manifest import Manifest
from pipeline.engine import slices
from pipeline.engine.batch import BatchPlan
from pipeline.engine.objective import Objective, ObjectiveState
from pipeline.engine.optim import make_optimizer
from pipeline.engine.ranks import Ranks
from pipeline.engine.slices import Slice
from pipeline.engine.zero import Engine, share_batch_norm
from pipeline.errors import DataError


class TrainState:
    """Engines and average, with random weights or those of a checkpoint; an imported one may lack D or the moments.

    Every rank makes one (collective).
    """

    def __init__(
        self,
        config: RunConfig,
        plan: BatchPlan,
        ranks: Ranks,
        weights: Checkpoint | None = None,
        state: ObjectiveState | None = None,
    ):
        self.config, self.plan, self.ranks = config, plan, ranks
        torch.manual_seed(config.seed)
        self.g = self._engine("generator", build_generator(config.model), config.optim.g_lr, weights)
        self.d = self._engine("discriminator", build_discriminator(config.model), config.optim.d_lr, weights)
        for engine in (self.g, self.d):
            share_batch_norm(engine.module, plan, ranks.rank)
            if config.compile:
                engine.module.compile_blocks()  # type: ignore[operator]
        self.ema = EMA(self.g.parts())
        if weights:
            averages, whole = weights.tensors("ema"), weights.shapes["generator"]
            for name in self.ema.averages:
                if name not in averages or list(averages[name].shape) != whole[name]:
                    raise DataError(f"{weights.uri}: its ema has no {name} as its generator has: use another checkpoint")
            self.ema.load(self.g.part(averages))
        self.objective = Objective(config.objective, plan, ranks, config.seed, state)

    def _engine(self, name: str, network: torch.nn.Module, lr: float, weights: Checkpoint | None) -> Engine:
        config, have = self.config, weights.parts if weights else set()
        network.to(self.ranks.device)
        network.recompute = config.activation_checkpointing == "blocks"  # type: ignore[assignment]
        if weights and (name in have or name == "generator"):
            # Before DeepSpeed takes its own copies of the parameters.
            tensors = weights.tensors(name)
            check_fit(network, tensors, f"{weights.uri}: its {name}")
            network.load_state_dict(tensors)
        optimizer = make_optimizer(config.optim, network, lr)
        engine = Engine(network, optimizer, config.zero, self.plan.micro_batch, config.bf16)
        if weights and f"{name}_optimizer" in have:
            slices.load_moments(engine, self.ranks, partial(weights.fill, f"{name}_optimizer"))
        return engine

    def close(self) -> None:
        """Let go of both networks (`Engine.close`)."""
        self.g.close()
        self.d.close()

    def set_lr(self, scale: float) -> None:
        self.g.set_lr(self.config.optim.g_lr * scale)
        self.d.set_lr(self.config.optim.d_lr * scale)

    def slices(self) -> dict[str, list[Slice]]:
        """What this rank writes into a checkpoint."""
        return {
            "generator": slices.network(self.g, self.ranks),
            "generator_optimizer": slices.slice_moments(self.g, self.ranks),
            "discriminator": slices.network(self.d, self.ranks),
            "discriminator_optimizer": slices.slice_moments(self.d, self.ranks),
            "ema": slices.average(self.ema.averages, self.g, self.ranks),
        }

    def state(self, manifest: Manifest, uid: str) -> dict[str, Any]:
        """What a checkpoint says beside its tensors: whose it is, and what it takes to sample from it without its run."""
        config = self.config
        state = {"run": uid, "time": time.time(), "world_size": self.ranks.world_size}
        state |= {"zero_stage": config.zero.stage, "objective": asdict(self.objective.state)}
        return state | {"model": asdict(config.model), "classes": list(manifest.classes)}
