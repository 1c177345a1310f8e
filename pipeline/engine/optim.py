"""Optimiser settings and their schedules, all in images, so that they survive another batch size."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from model.ema import decay_per_step
from pipeline.bounds import Bounds, check_bounds


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Defaults are the paper's for a global batch of 2,048 (section 3 and appendix C)."""

    g_lr: Annotated[float, Bounds(gt=0, lt=math.inf)] = 5e-5
    """Learning rate of G."""
    d_lr: Annotated[float, Bounds(gt=0, lt=math.inf)] = 2e-4
    """Learning rate of D."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Rule by which both rates follow the global batch: in proportion (arXiv 1706.02677, for SGD), or to its square root (arXiv
    1404.5997; for Adam, arXiv 2205.10782)."""
    lr_batch: Annotated[int | None, Bounds(ge=1)] = None
    """Global batch that g_lr and d_lr are meant for, where a rule scales them to another."""
    betas: Annotated[tuple[float, float], Bounds(ge=0, lt=1)] = (0.0, 0.999)
    """Adam's decay rates of the first and second moment."""
    eps: Annotated[float, Bounds(gt=0, lt=math.inf)] = 1e-8
    """Added to Adam's denominator."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """sgd (no momentum) exists to compare runs: it does not amplify rounding as Adam does where gradients are near 0."""
    warmup: Annotated[int, Bounds(ge=0)] = 0
    """Images over which both learning rates rise linearly from 0."""
    decay_from: int | None = None
    """From this image on both learning rates fall linearly to 0 at total_images. Default: constant."""
    ema_half_life: Annotated[float, Bounds(ge=0)] = 14_000_000
    """Images after which an old generator's weight in the EMA has halved (0.9999 a step at 2,048 is 14 million)."""
    ema_start: Annotated[int, Bounds(ge=0)] = 0
    """Until D has seen this many images the EMA is a copy of G."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if (self.lr_scaling == "none") != (self.lr_batch is None):
            has, lacks = f"lr_batch={self.lr_batch}", "optim.lr_scaling=linear or optim.lr_scaling=sqrt"
            if self.lr_batch is None:
                has, lacks = f"lr_scaling={self.lr_scaling}", "optim.lr_batch=BATCH"
            raise ValueError(f"{has} needs {lacks.partition('=')[0]}, and vice versa: set {lacks}")


def make_optimizer(config: OptimConfig, network: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr)
    return torch.optim.Adam(network.parameters(), lr, config.betas, config.eps, fused=True)


def batch_scale(config: OptimConfig, global_batch: int) -> float:
    """Factor on both learning rates at `global_batch`, by the rule of `lr_scaling`."""
    ratio = global_batch / (config.lr_batch or global_batch)
    return ratio**0.5 if config.lr_scaling == "sqrt" else ratio


def lr_scale(config: OptimConfig, images: int, total: int, global_batch: int) -> float:
    """Factor on both learning rates for the step of `global_batch` that starts after `images`.

    A step of the warm-up has the rate of its last image: the first is not lost, and the one that ends it has the full rate.
    """
    scale = min(1.0, (images + global_batch) / config.warmup) if config.warmup else 1.0
    if config.decay_from is not None and images > config.decay_from:
        scale *= max(0.0, (total - images) / (total - config.decay_from))
    return scale * batch_scale(config, global_batch)


def ema_decay(config: OptimConfig, images: int, images_per_step: int) -> float:
    """EMA decay of a step that ends at `images`."""
    return 0.0 if images < config.ema_start else decay_per_step(config.ema_half_life, images_per_step)
