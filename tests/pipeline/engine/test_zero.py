"""Batch norm over real ranks, and two ZeRO engines against plain autograd."""

import json
import math
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.batchnorm import BatchNorm, set_group
from model.biggan import Generator
from model.config import ModelConfig
from model.ema import EMA
from model.latents import RandomStream, latents, random_labels
from pipeline.engine import zero
from pipeline.engine.batch import BatchConfig, plan_batch
from pipeline.engine.ranks import Ranks
from pipeline.engine.zero import Engine, ZeroConfig, share_batch_norm
from tests.support.ranks import on_ranks

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
    z, y = latents(0, RandomStream.G_STEP, 0, n, MODEL.latent_dim), random_labels(0, RandomStream.G_STEP, 0, n, 4)
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


@pytest.mark.long
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_clipping": -1}, "gradient_clipping=-1"),
        ({"offload": "optimizer", "stage": 0}, "set zero.stage=1"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroConfig(**settings)


WAYS = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"), (3, "optimizer")]


class Small(nn.Module):
    """Parameters whose sizes two ranks cannot share evenly, on either side of what stays whole at stage 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 11), nn.Linear(11, 1)
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())[:, 0] * self.gamma


def trained(way: tuple[int, str], clipping: float, poisons: tuple[int | None, ...]) -> dict[str, Any]:
    """Small after a step of two micro-batches for each of `poisons`: the rank whose second gradient is NaN, or None."""
    from deepspeed.accelerator import get_accelerator

    torch.manual_seed(0)
    network, rank = Small(), dist.get_rank()
    optimizer = torch.optim.Adam(network.parameters(), 0.1, (0.5, 0.9), fused=True)
    engine = Engine(network, optimizer, ZeroConfig(*way, clipping), 2, bf16=False)  # type: ignore[arg-type]
    ema, updates, waits = EMA(engine.parts()), [], Mock()
    for step, poison in enumerate(poisons):
        for micro_step in range(2):
            place = (step - poisons[:step].count(0) - poisons[:step].count(1)) * 2 + micro_step
            x = torch.randn(4, 7, generator=torch.Generator().manual_seed(place))[2 * rank : 2 * rank + 2]
            with patch.object(type(get_accelerator()), "synchronize", waits):
                loss = engine(x).square().mean() / 2
            engine.backward(loss * float("nan") if micro_step == 1 and poison == rank else loss)
        updates.append(engine.step())
        if not updates[-1].skipped:
            ema.update(engine.parts(), 0.5)
    whole = engine.whole(ema.averages)
    shares = engine.part(whole)
    with engine.gathered():
        parameters = {name: p.detach().clone() for name, p in network.named_parameters()}
    for name, share in shares.items():  # a share's padding belongs to nobody
        size = max(0, min(share.numel(), parameters[name].numel() - rank * share.numel())) if way[0] == 3 else share.numel()
        assert torch.equal(share.flatten()[:size], ema.averages[name].flatten()[:size])
    norms, skipped = [float(update.norm) for update in updates], [update.skipped for update in updates]
    return {"parameters": parameters, "ema": whole, "norms": norms, "skipped": skipped, "waits": waits.call_count}


def one_of_two(ranks: Ranks, folder: str) -> None:
    zero.PERSISTENT = 8
    results = {}
    for way in WAYS:
        results[way] = {
            "untouched": trained(way, 0.0, (None, None)),
            "poisoned": trained(way, 0.0, (None, 1, 0, None)),
            "longer": trained(way, 0.0, (None,) * 4),
            "clipped": trained(way, 0.05, (None, None)),
        }
    torch.save(results, f"{folder}/{ranks.rank}.pt")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[int, str], Any]]:
    """What two ranks found, at every stage."""
    folder = tmp_path_factory.mktemp("pair")
    on_ranks(2, one_of_two, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def plain(clipping: float) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Small by torch alone: parameters, averages, norms of the gradients."""
    torch.manual_seed(0)
    network = Small()
    optimizer = torch.optim.Adam(network.parameters(), 0.1, (0.5, 0.9), fused=True)
    ema, norms = EMA(dict(network.named_parameters())), []
    for step in range(2):
        optimizer.zero_grad()
        for place in (2 * step, 2 * step + 1):
            x = torch.randn(4, 7, generator=torch.Generator().manual_seed(place))
            (network(x).square().mean() / 2).backward()
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), clipping or float("inf"))))
        optimizer.step()
        ema.update(dict(network.named_parameters()), 0.5)
    return {name: p.detach() for name, p in network.named_parameters()}, ema.averages, norms


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("case", "clipping"), [("untouched", 0.0), ("clipped", 0.05)])
def test_two_ranks_train_and_clip_as_torch_does(pair: Any, way: tuple[int, str], case: str, clipping: float) -> None:
    parameters, averages, norms = plain(clipping)
    for found in (ranks[way][case] for ranks in pair):
        torch.testing.assert_close(found["parameters"], parameters, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["ema"], averages, rtol=1e-5, atol=1e-6)
        assert found["norms"] == pytest.approx(norms, rel=1e-5) and min(norms) > 0.1
        assert found["skipped"] == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_that_is_not_finite_on_one_rank_is_no_step_on_any(pair: Any, way: tuple[int, str]) -> None:
    for found in (ranks[way] for ranks in pair):
        poisoned, untouched = found["poisoned"], found["untouched"]
        assert poisoned["skipped"] == [False, True, True, False]
        assert [math.isfinite(norm) for norm in poisoned["norms"]] == [True, False, False, True]
        for part in ("parameters", "ema"):  # Adam's moments and its count of steps decide the last step
            assert all(torch.equal(tensor, untouched[part][name]) for name, tensor in poisoned[part].items())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_forward_does_not_wait_for_the_device(pair: Any, way: tuple[int, str]) -> None:
    """As DeepSpeed's timers do from the third step on."""
    assert [ranks[way]["longer"]["waits"] for ranks in pair] == [0, 0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_engines_at_every_stage_equal_plain_autograd(tmp_path: Path) -> None:
    """`python -m benchmarks.equality` for two ranks; `benchmarks/results/equality.json` is the whole table.

    Three rounds, of SGD: rounding may do anything to Adam, and is only reported there.
    """
    command = [sys.executable, "-m", "benchmarks.equality", "--ranks", "2", "--rounds", "3", "--optimizers", "sgd"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"] is True and found["benchmark"] == "equality"
    rows = [row for row in found["rows"] if row.get("precision") == "fp32"]
    assert {row["stage"] for row in rows} == {0, 1, 2, 3} and len(rows) == 4 * 4 + 3
    assert all(max(row["G"], row["D"], row["EMA"]) <= 1e-5 < row["moved"] / 10 for row in rows)
