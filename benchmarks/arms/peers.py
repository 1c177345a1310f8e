"""One side of `benchmarks.peers`, in a process of its own that is started as its users start it.

The first line of stdin says which, as JSON; then each line asks for an update: `update`, or `exact` for one without TF32. On
stdout: `ready`, then for each update its seconds and losses as JSON.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.others.biggan_pytorch import EMA_DECAY, EPS, LR, SN_EPS, BigGANPyTorch
from benchmarks.others.peer import Noise, Peer, Setting
from benchmarks.others.studiogan import studiogan
from model.latents import RandomStream, latents, random_labels
from pipeline.config import build
from pipeline.engine.batch import plan_batch
from pipeline.engine.ranks import start_workers
from pipeline.engine.steps import d_step, g_step
from pipeline.runs.initial_weights import initial_checkpoint
from pipeline.runs.run_folder import locate
from pipeline.training.train_state import TrainState


class Ours:
    """A `benchmarks.others.peer.Peer`: our engines, optimisers and average. One process has nothing to share: stage 0."""

    def __init__(self, mode: str, keys: dict[str, Any], init: str | None, setting: Setting):
        ranks = start_workers()
        self.name, self._noise = f"ours, {mode}", noise_for(setting, ranks.device)
        size = setting.micro_batch
        tree = {"run": "none", "total_images": size, "model": _model(setting, init), "init": init, "data": {"uri": "none"}}
        tree |= {"batch": {"global_batch": size, "micro_batch": size, "norm_group": size}, "zero": {"stage": 0}}
        config = build(tree | {"optim": {"g_lr": LR["G"], "d_lr": LR["D"], "eps": EPS}} | keys)
        self._learner = TrainState(config, plan_batch(config.batch, 1), ranks, initial_checkpoint(config))

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        learner = self._learner
        values = d_step(learner.g, learner.d, [(x, y)], lambda _: self._noise(), learner.objective, position=0)
        values |= g_step(learner.g, learner.d, lambda _: self._noise(), learner.objective, position=0)
        learner.ema.update(learner.g.parts(), EMA_DECAY)
        return {key: float(values[key]) for key in ("loss/d", "loss/g")}


def _model(setting: Setting, init: str | None) -> dict[str, Any]:
    """Return the keys of an import's network, or StudioGAN's."""
    if init:
        return locate(init).state()["model"]
    sizes = {key: value for key, value in asdict(setting).items() if key not in ("micro_batch", "classes", "d_steps")}
    return sizes | {"num_classes": setting.classes, "d_relu_shortcut": True, "sn_eps": SN_EPS}


def noise_for(setting: Setting, device: torch.device) -> Noise:
    """Return a function that draws the next latents and labels, the same on every side."""
    n, at = setting.micro_batch, -setting.micro_batch

    def draw() -> tuple[Tensor, Tensor]:
        nonlocal at
        at += n
        z = latents(0, RandomStream.D_STEP, at, n, setting.z_dim)
        return z.to(device), random_labels(0, RandomStream.D_STEP, at, n, setting.classes).to(device)

    return draw


def reals(setting: Setting, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return one micro-batch of images x [n, 3, r, r] in -1..1 and labels y [n]."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(setting.micro_batch, 3, setting.resolution, setting.resolution, generator=generator) * 2 - 1
    return x.to(device), (torch.arange(setting.micro_batch) % setting.classes).to(device)


def make(asked: dict[str, Any], setting: Setting, device: torch.device) -> Peer:
    """Build the side that is `asked` for. BigGAN-PyTorch saves its weights to the folder `save`, or loads those of `load`."""
    torch.manual_seed(0)
    if asked["side"] == "ours":
        return Ours(asked["mode"], asked["keys"], asked["init"], setting)
    half = asked["mode"] == "half"
    if asked["side"] == "studiogan":
        return studiogan(Path(asked["checkout"]), setting, mixed_precision=half)
    peer = BigGANPyTorch(Path(asked["checkout"]), setting, device, noise_for(setting, device), half)
    for name, network in (("G", peer.g), ("D", peer.d)):
        if asked["save"]:
            torch.save(network.state_dict(), Path(asked["save"], f"{name}.pth"))
        if asked.get("load"):
            network.load_state_dict(torch.load(Path(asked["load"], f"{name}.pth")))
    return peer


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # originals and libraries print
    asked = json.loads(sys.stdin.readline())
    setting = Setting(**{k: tuple(v) if isinstance(v, list) else v for k, v in asked["setting"].items()})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peer = make(asked, setting, device)
    x, y = reals(setting, device)
    print("ready", file=answers)
    for line in sys.stdin:
        torch.backends.cudnn.allow_tf32 = line.strip() != "exact"
        began = time.perf_counter()
        losses = peer.update(x, y)  # reads its losses, and so waits for a GPU
        answer = {"seconds": time.perf_counter() - began, "threads": torch.get_num_threads(), "losses": losses}
        if device.type == "cuda":
            answer["memory"] = torch.cuda.max_memory_allocated()
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
