"""Activation checkpointing: the same numbers from fewer kept activations."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.networks import Discriminator, Generator, build_discriminator, build_generator
from model.regularizers import gradient_penalty

SMALL: dict[str, Any] = {"resolution": 32, "num_classes": 3, "channels": 1, "ch": 8, "shared_dim": 6, "z_dim": 8}
KINDS = [("biggan", "biggan"), ("biggan-deep", "biggan-deep"), ("transposed", "strided")]
LABELS = torch.tensor([0, 1, 2, 0])


def networks(generator: str, discriminator: str) -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    places = {"g_attention": (16,), "d_attention": (8,)}
    config = ModelConfig(**SMALL, **places, generator=generator, discriminator=discriminator)  # type: ignore[arg-type]
    pair = build_generator(config), build_discriminator(config)
    for network in pair:
        for layer in network.attention.values():
            nn.init.ones_(layer.gamma)
    return pair


def kept(g: Generator, d: Discriminator, recompute: bool, bf16: bool = False) -> tuple[int, list[Tensor]]:
    """Bytes of activations that a G step keeps for backward, and its output and gradients."""
    g.recompute = d.recompute = recompute
    parameters = [*g.parameters(), *d.parameters()]
    own = {p.untyped_storage().data_ptr() for p in parameters}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = d(g(z, LABELS), LABELS)
    return sum(sizes.values()), [logits.detach(), *torch.autograd.grad(logits.square().sum(), parameters)]


@pytest.mark.long
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("generator", "discriminator"), KINDS)
def test_the_same_gradients_from_fewer_activations(generator: str, discriminator: str, bf16: bool) -> None:
    g, d = networks(generator, discriminator)
    (all_of_it, wanted), (inputs, found) = (kept(g, d, recompute, bf16) for recompute in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert inputs < 0.7 * all_of_it


def test_each_block_runs_twice_and_only_where_something_learns() -> None:
    g, _ = networks("biggan", "biggan")
    g.recompute, calls = True, []
    g.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    z = torch.randn(4, 8)
    with torch.no_grad():
        g(z, LABELS)
    assert len(calls) == 1
    g(z, LABELS).sum().backward()
    assert len(calls) == 3


def test_a_penalty_on_the_gradient_goes_through_recomputed_blocks() -> None:
    _, d = networks("biggan", "biggan")
    x, found = torch.rand(4, 1, 32, 32), []
    for recompute in (False, True):
        d.recompute = recompute
        images = x.clone().requires_grad_()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            penalty = gradient_penalty(d(images, LABELS), images)
        found.append([penalty, *torch.autograd.grad(penalty, [p for p in d.parameters() if p.dim() > 1], allow_unused=True)])
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_blocks_give_the_same_gradients_and_are_compiled_once() -> None:
    g, d = networks("biggan", "biggan")
    _, wanted = kept(g, d, recompute=False)
    for network in (g, d):  # G's first, D's first and last: a CPU takes seconds to compile one
        network.blocks, blocks = network.blocks[::3], network.blocks
        network.compile_blocks()
        network.blocks = blocks
    _, found = kept(g, d, recompute=False)
    whole, other = (torch.cat([part.flatten() for part in parts]) for parts in (wanted, found))
    assert float((whole - other).norm()) <= 1e-3 * float(whole.norm())
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    _, again = kept(g, d, recompute=False)
    assert compiled > 0 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    _, recomputed = kept(g, d, recompute=True)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(found, again, recomputed, strict=True))
