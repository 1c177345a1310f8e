"""Networks with imported weights, and their outputs for the inputs that the original got."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from benchmarks.support import foreign_checkpoints
from model.networks import build_discriminator, build_generator
from model.spectral import power_iteration
from pipeline.checkpoint.importers import studiogan
from pipeline.checkpoint.importers.convert import Imported

N, KEPT = 2, 200
"""Samples of a case; numbers of each output that `some` keeps."""

Outputs = dict[str, Tensor]
"""By network and mode, such as `G eval`."""


def inputs(name: str, z_dim: int, classes: int, resolution: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the arguments of G and of D in case `name`: latents [N, z_dim] or images, and labels [N]."""
    z, y, x = foreign_checkpoints.inputs(name, N, z_dim, classes, resolution)
    return {"G": (z, y), "D": (x, y)}


def imported_outputs(name: str, imported: Imported, modes: Iterable[str]) -> Outputs:
    """Build our networks with the imported weights, and return their outputs in each of `modes`."""
    outputs = {}
    for which, network in imported_networks(imported).items():
        for mode in sorted(modes):  # eval first: what training does to the vectors stays
            with torch.no_grad():
                outputs[f"{which} {mode}"] = forward(name, imported, which, network.train(mode == "train"))
    return outputs


def imported_networks(imported: Imported) -> dict[str, nn.Module]:
    """Build G, and D if there is one, in float64 with the imported weights."""
    found = {"G": build_generator(imported.config)}
    if imported.discriminator:
        found["D"] = build_discriminator(imported.config)
    for which, tensors in zip(found, (imported.generator, imported.discriminator), strict=False):
        found[which].double().load_state_dict(tensors)
    return found


def forward(name: str, imported: Imported, which: str, network: nn.Module) -> Tensor:
    """Call G or D with the inputs of case `name`; in training mode as the original project does."""
    if network.training and imported.source["format"] == studiogan.NAME:
        power_iteration(network)  # torch's spectral norm makes one before each forward in training mode
    config = imported.config
    return network(*inputs(name, config.z_dim, config.num_classes, config.resolution)[which])


def some(output: Tensor) -> Tensor:
    """Return at most KEPT numbers from all over an output."""
    return output.flatten()[:: max(1, output.numel() // KEPT)][:KEPT].clone()
