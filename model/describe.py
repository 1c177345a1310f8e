"""What a configuration's networks consist of, and what they cost: counted on tensors without memory or values.

Counted is the network as it is written, whichever way is quicker in training (`model.resample`): in eval mode there is one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from .config import ModelConfig
from .networks import build_discriminator, build_generator


@dataclass(frozen=True)
class Layer:
    """One row of a table: a layer or a block."""

    name: str
    kind: str
    shape: tuple[int, ...]
    """Of its output for one image."""
    parameters: int
    flops: int


@dataclass(frozen=True)
class Description:
    """A network, its layers in the order in which an image passes them."""

    parameters: int
    flops: int
    """Of a forward for one image: convolutions and matrix products, a multiplication and an addition counted as 2."""
    layers: list[Layer]


def describe(config: ModelConfig) -> tuple[Description, Description]:
    """G and D. Takes a second or two at any size: nothing is allocated or computed."""
    # Spectral norm has no parameters, and its work is that of a micro-step, not of an image.
    config = replace(config, g_spectral=False, d_spectral=False)
    # Not the meta device itself: autocast, which D turns off for its head, does not know it.
    with FakeTensorMode():
        z, y = torch.empty(1, config.latent_dim), torch.zeros(1, dtype=torch.int64)
        x = torch.empty(1, config.channels, config.resolution, config.resolution)
        return describe_network(build_generator(config).eval(), z, y), describe_network(
            build_discriminator(config).eval(), x, y
        )


def describe_network(network: nn.Module, *inputs: Tensor) -> Description:
    """What one forward on `inputs` (of one image) shows."""
    shapes: dict[str, tuple[int, ...]] = {}
    rows = dict(_rows(network))
    for name, module in rows.items():
        module.register_forward_hook(lambda _module, _args, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    layers = [
        Layer(name, type(rows[name]).__name__, shape, _parameters(rows[name]), flops.get(f"{type(network).__name__}.{name}", 0))
        for name, shape in shapes.items()
    ]
    return Description(_parameters(network), counter.get_total_flops(), layers)


@dataclass(frozen=True)
class TrainingCost:
    """FLOPs of the two optimiser steps, divided by the images of their global batch."""

    d_step: int
    """A fake without gradients; D forward and backward on it and on a real image."""
    g_step: int
    """A fake through D, and back to G's weights: those of D are frozen."""

    def per_image(self, d_steps: int) -> float:
        """For each real image that D sees, at `d_steps` D steps for each G step."""
        return self.d_step + self.g_step / d_steps


def training_cost(config: ModelConfig, recompute: bool = False) -> TrainingCost:
    """What the steps of `pipeline.engine.steps` cost, without penalties and augmentation; with blocks that backward computes
    again.

    A backward is counted as what autograd computes: no gradient of images and latents in the first layers.
    """
    config = replace(config, g_spectral=False, d_spectral=False)
    with FakeTensorMode():
        g, d = build_generator(config).eval(), build_discriminator(config).eval()
        g.recompute = d.recompute = recompute
        z, y = torch.empty(1, config.latent_dim), torch.zeros(1, dtype=torch.int64)
        x = torch.empty(1, config.channels, config.resolution, config.resolution)
        with FlopCounterMode(display=False) as d_step:
            with torch.no_grad():
                fake = g(z, y)
            d(torch.cat((x, fake)), torch.cat((y, y))).sum().backward()
        d.requires_grad_(False)
        with FlopCounterMode(display=False) as g_step:
            d(g(z, y), y).sum().backward()
    return TrainingCost(d_step.get_total_flops(), g_step.get_total_flops())


def _rows(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The network's children; of a list or dictionary of layers, its members."""
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from ((f"{name}.{key}", member) for key, member in child.named_children())
        else:
            yield name, child


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
