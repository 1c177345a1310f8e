"""Batch norm over real ranks, and two ZeRO engines against plain autograd."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.batchnorm import BatchNorm, set_group
from model.biggan import Generator
from model.config import ModelConfig
from model.latents import Stream, latents, random_labels
from pipeline.batch import BatchConfig, plan_batch
from pipeline.engines import ZeroConfig, share_batch_norm

RANKS, MICRO, PAIR = 4, 3, 6
MODEL = ModelConfig(32, 4, channels=1, ch=8, shared_dim=8, z_dim=16)


def inputs() -> tuple[Tensor, Tensor]:
    """x [12, 5, 4, 4] with a mean far from 0, where one-pass variances lose their digits, and weights for its gradient."""
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(RANKS * MICRO, 5, 4, 4, generator=numbers) * 2 + torch.tensor([0.0, 3, -30, 300, 1])[None, :, None, None]
    return x, torch.randn(x.shape, generator=numbers)


def generator() -> tuple[Generator, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    network = Generator(MODEL)
    n = RANKS * MICRO
    z, y = latents(0, Stream.G_STEP, 0, n, MODEL.latent_dim), random_labels(0, Stream.G_STEP, 0, n, 4)
    return network, z, y, torch.randn(n, 1, 32, 32)


def through_norm(layer: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_(True)
    out = layer(x)
    (out * weight).sum().backward()
    assert x.grad is not None
    return {"out": out.detach(), "grad": x.grad}


def through_generator(network: Generator, z: Tensor, y: Tensor, weight: Tensor) -> dict[str, Tensor]:
    z = z.clone().requires_grad_(True)
    images = network(z, y)
    (images * weight).sum().backward()
    assert z.grad is not None
    return {"images": images.detach(), "grad_z": z.grad}


def one_rank(rank: int, folder: str) -> None:
    """The part of one of four ranks, in two batch-norm groups of two ranks each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    plan = plan_batch(BatchConfig(RANKS * MICRO, PAIR, MICRO), RANKS)
    mine = slice(rank * MICRO, (rank + 1) * MICRO)
    results: dict[str, Any] = {}

    x, weight = inputs()
    layer = BatchNorm(5, 1e-4)
    share_batch_norm(layer, plan, rank)
    results["norm"] = through_norm(layer, x[mine], weight[mine])
    # Groups of 1 + 5: the last rank of a pair holds more samples.
    bounds = (rank // 2 * PAIR, rank // 2 * PAIR + 1, rank // 2 * PAIR + PAIR)
    uneven = slice(bounds[rank % 2], bounds[rank % 2 + 1])
    set_group(layer, None, layer.process_group)
    results["uneven"] = through_norm(layer, x[uneven], weight[uneven])
    results["bf16"] = through_norm(layer, x[mine].bfloat16(), weight[mine])

    network, z, y, weights = generator()
    share_batch_norm(network, plan, rank)
    results["generator"] = through_generator(network, z[mine], y[mine], weights[mine])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_rank, args=(rank, str(folder))) for rank in range(RANKS)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * RANKS
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def together(ranks: list[dict[str, dict[str, Tensor]]], case: str) -> dict[str, Tensor]:
    return {key: torch.cat([result[case][key] for result in ranks]) for key in ranks[0][case]}


@pytest.fixture
def alone() -> dict[str, Tensor]:
    """The same groups of 6 in one process, in float64."""
    x, weight = inputs()
    layer = BatchNorm(5, 1e-4)
    set_group(layer, PAIR)
    return through_norm(layer, x.double(), weight.double())


@pytest.mark.parametrize("case", ["norm", "uneven"])
def test_a_group_over_ranks_is_normalised_as_in_one_process(ranks: Any, alone: dict[str, Tensor], case: str) -> None:
    found = together(ranks, case)
    for key, value in alone.items():
        torch.testing.assert_close(found[key].double(), value, rtol=1e-4, atol=1e-4)
    assert found["out"].dtype == torch.float32


def test_statistics_over_ranks_are_kept_in_fp32_under_bf16(ranks: Any) -> None:
    x, weight = inputs()
    layer = BatchNorm(5, 1e-4)
    set_group(layer, PAIR)
    expected = through_norm(layer, x.bfloat16().double(), weight.double())
    found = together(ranks, "bf16")
    assert found["out"].dtype == found["grad"].dtype == torch.bfloat16
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value, rtol=2**-7, atol=2e-2)


def test_the_groups_are_pairs_of_neighbours_and_no_others(ranks: Any) -> None:
    out = together(ranks, "norm")["out"]
    for pair in out.split(PAIR):
        var, mean = torch.var_mean(pair.double(), (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        torch.testing.assert_close(var, torch.ones_like(var), rtol=1e-3, atol=0)
    assert (out[:MICRO].mean((0, 2, 3)).abs() > 1e-3).any()  # not by the micro-batch


def test_a_generator_over_ranks_is_the_one_of_one_process(ranks: Any) -> None:
    network, z, y, weights = generator()
    set_group(network, PAIR)
    expected = through_generator(network, z, y, weights)
    for key, value in together(ranks, "generator").items():
        assert float((value - expected[key]).norm() / expected[key].norm()) < 1e-4, key


def test_what_deepspeed_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient_clipping=-1"):
        ZeroConfig(gradient_clipping=-1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_engines_equal_plain_autograd_and_one_process_equals_two(tmp_path: Path) -> None:
    """`python -m benchmarks.equality`: ZeRO 1 and 2 against autograd within 1e-6, 2 ranks against 1 within 1e-5."""
    command = [sys.executable, "-m", "benchmarks.equality", "--stages", "1,2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"] is True and found["benchmark"] == "equality"
    limits = {row["case"]: row["limit"] for row in found["rows"] if "limit" in row}
    assert limits["ZeRO-1, 2 ranks, sgd"] == limits["ZeRO-2, 2 ranks, sgd"] == 1e-6
    assert limits["1 rank, sgd"] == 1e-5
    for row in found["rows"]:
        if limit := row.get("limit"):
            assert max(row["G"], row["D"]) <= limit < row["moved"] / 30
