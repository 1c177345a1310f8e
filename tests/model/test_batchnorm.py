"""Batch norm by samples: groups inside a batch and over real ranks, and standing statistics."""

import multiprocessing
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.batchnorm import BatchNorm, batch_norms, set_group, standing_statistics
from model.biggan import Generator
from model.config import ModelConfig
from model.latents import RandomStream, latents, random_labels
from model.networks import build_discriminator, build_generator

MODEL = ModelConfig(32, 4, channels=1, ch=8, shared_dim=8, z_dim=16)
SHARES = {1: (12,), 2: (5, 7), 4: (1, 5, 2, 4)}
"""How many of 12 samples each rank holds, by the number of ranks."""
NETWORKS = [("biggan", 1), ("transposed", 3), ("strided", 1), ("strided", 3)]


def normalised(x: Tensor, eps: float) -> Tensor:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


@settings(max_examples=20)
@given(group=st.integers(1, 6), groups=st.integers(1, 4), offset=st.floats(-50, 50), eps=st.sampled_from([1e-5, 1e-4]))
def test_each_group_is_normalised_by_itself(group: int, groups: int, offset: float, eps: float) -> None:
    x = torch.randn(group * groups, 3, 4, 4).double() * 0.01 + offset  # a variance of 1e-4, so that eps counts
    layer = BatchNorm(3, eps)
    set_group(layer, group)
    expected = torch.cat([normalised(part, eps) for part in x.split(group)])
    torch.testing.assert_close(layer(x), expected, rtol=1e-8, atol=1e-8)


def test_eval_without_statistics_shows() -> None:
    layer = BatchNorm(3, 1e-4).eval()
    assert layer(torch.randn(2, 3, 4, 4)).isnan().all()


def test_standing_statistics_are_those_of_the_pooled_batches() -> None:
    torch.manual_seed(0)
    g = Generator(MODEL)
    # Unequal batches: each sample counts the same.
    bounds = ((0, 16), (16, 16), (32, 5))
    batches = [
        (latents(0, RandomStream.STANDING, start, n, MODEL.latent_dim), random_labels(0, RandomStream.STANDING, start, n, 4))
        for start, n in bounds
    ]
    seen: list[Tensor] = []
    first = g.blocks[0].bn1.norm
    hook = first.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    standing_statistics(g, batches)
    hook.remove()
    var, mean = torch.var_mean(torch.cat(seen).double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(first.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.var.double(), var, rtol=1e-5, atol=1e-6)
    assert not g.training
    one, many = g(batches[0][0][:1], batches[0][1][:1]), g(*batches[0])
    torch.testing.assert_close(one[0], many[0], rtol=1e-4, atol=1e-5)  # a sample does not depend on its neighbours


def test_standing_statistics_need_samples() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        standing_statistics(Generator(MODEL), [])


def network(name: str, channels: int) -> nn.Module:
    torch.manual_seed(0)
    names = {"discriminator" if name == "strided" else "generator": name}
    config = ModelConfig(32, 4, channels, ch=2, shared_dim=3, z_dim=8, g_attention=(), **names)  # type: ignore[arg-type]
    return (build_discriminator(config) if name == "strided" else build_generator(config)).double()


def inputs(name: str, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """z [12, 2, 8] or images [12, 2, C, 32, 32], labels [12, 2] and weights of the outputs; of two kinds, real and fake."""
    numbers = torch.Generator().manual_seed(1)
    shape = (channels, 32, 32)
    x = torch.randn(12, 2, *(shape if name == "strided" else (8,)), generator=numbers, dtype=torch.float64)
    x[:, 1] = x[:, 1] * 3 - 1
    y = torch.randint(4, (12, 2), generator=numbers)
    return x, y, torch.randn(12, 2, *(() if name == "strided" else shape), generator=numbers, dtype=torch.float64)


def trained(name: str, channels: int, mine: slice, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """A forward of all samples of one kind and then all of the other, and its gradients."""
    layers, (x, y, weight) = network(name, channels), (part[mine] for part in inputs(name, channels))
    set_group(layers, len(x), group)
    x.requires_grad_()
    both, labels = x.transpose(0, 1).flatten(0, 1), y.mT.flatten()
    out = layers(both, labels).unflatten(0, (2, -1)).transpose(0, 1)
    (out * weight).sum().backward()
    assert x.grad is not None
    # As one vector: what stands before a batch norm has biases whose own gradients are rounding around 0.
    parameters = torch.cat([p.grad.flatten() for p in layers.parameters() if p.grad is not None])
    return {"out": out.detach(), "x": x.grad, "parameters": parameters}


def standing(name: str, channels: int, mine: slice, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    layers, (x, y, _) = network(name, channels), (part[mine] for part in inputs(name, channels))
    standing_statistics(layers, [(x[:, kind], y[:, kind]) for kind in range(2)], group)
    assert not layers.training and {layer.process_group for layer in batch_norms(layers)} == {None}
    return {key: value for key, value in layers.state_dict().items() if key.endswith((".norm.mean", ".norm.var"))}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_across_ranks_in_bf16_it_is_as_good_and_keeps_its_result_alone(device: str) -> None:
    torch.manual_seed(0)
    x = (torch.randn(6, 5, 8, 8, device=device) * 3 + 2).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    slope = torch.randn(6, 5, 8, 8, device=device).bfloat16()
    exact = x.detach().double().requires_grad_()
    expected = normalised(exact, 1e-4)
    (gradient,) = torch.autograd.grad(expected, exact, slope.double())
    layer, kept = BatchNorm(5, 1e-4), []
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        set_group(layer, 6, dist.group.WORLD)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = layer(x)
        (found,) = torch.autograd.grad(y, x, slope)
    finally:
        dist.destroy_process_group()
    assert y.dtype == found.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=2**-8)  # half a unit in the last place is 2^-9
    torch.testing.assert_close(found.double(), gradient, rtol=2**-7, atol=2**-7)
    assert [t.dtype for t in kept if t.numel() == x.numel()] == [torch.bfloat16]


def one_rank(rank: int, folder: str) -> None:
    """The part of one of four ranks: alone, as one of two, as one of four."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    results: dict[str, Any] = {}
    for world, share in SHARES.items():
        group = dist.new_group(list(range(world)))
        if rank < world:
            mine = slice(sum(share[:rank]), sum(share[: rank + 1]))
            for name, channels in NETWORKS:
                results[f"{world} {name} {channels}"] = trained(name, channels, mine, group)
                if name != "strided":
                    results[f"{world} {name} {channels} standing"] = standing(name, channels, mine, group)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_rank, args=(rank, str(folder))) for rank in range(4)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.long
@pytest.mark.parametrize("world", SHARES)
@pytest.mark.parametrize(("name", "channels"), NETWORKS)
def test_ranks_of_unequal_size_train_as_one_process(one_thread: None, ranks: Any, name: str, channels: int, world: int) -> None:
    found = [ranks[rank][f"{world} {name} {channels}"] for rank in range(world)]
    for key, value in trained(name, channels, slice(None), None).items():
        parts = [result[key] for result in found]
        whole = torch.stack(parts).sum(0) if key == "parameters" else torch.cat(parts)
        assert error(whole, value) < 1e-12, key


@pytest.mark.parametrize("world", SHARES)
@pytest.mark.parametrize(("name", "channels"), [pair for pair in NETWORKS if pair[0] != "strided"])
def test_ranks_share_their_standing_statistics(one_thread: None, ranks: Any, name: str, channels: int, world: int) -> None:
    found = [ranks[rank][f"{world} {name} {channels} standing"] for rank in range(world)]
    for key, value in standing(name, channels, slice(None), None).items():
        assert error(found[0][key], value) < 1e-12, key
        assert all(torch.equal(result[key], found[0][key]) for result in found), key
