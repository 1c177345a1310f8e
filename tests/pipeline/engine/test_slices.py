"""What each rank holds, on real DeepSpeed engines: saved at each stage and number of ranks, loaded at each other."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.checkpoint import format
from pipeline.checkpoint.fencing import take_fence
from pipeline.checkpoint.format import Progress
from pipeline.checkpoint.retention import CheckpointConfig
from pipeline.checkpoint.saver import Saver
from pipeline.engine import slices
from pipeline.engine.ranks import Ranks, start_workers
from pipeline.engine.zero import Engine, ZeroConfig
from tests.support.ranks import run_ranks


class Network(nn.Module):
    """Sizes that no number of ranks divides, one value, and a buffer that learns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("u", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).tanh()) * self.gain
        if self.training:
            with torch.no_grad():
                self.u.mul_(0.5).add_(y.mean(0))
        return y * self.u.detach()


def build(stage: int, ranks: Ranks, saved: format.Checkpoint | None) -> Engine:
    network = Network()
    if saved:
        network.load_state_dict(saved.tensors("generator"))
    optimizer = torch.optim.Adam(network.parameters(), 0.05, fused=True)
    engine = Engine(network, optimizer, ZeroConfig(stage), 4, bf16=False)
    if saved:
        slices.load_moments(engine, ranks, partial(saved.fill, "generator_optimizer"))
    return engine


def train(engine: Engine, steps: range) -> None:
    for step in steps:  # every rank sees the same, so the number of ranks makes no difference
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        engine.backward(engine(x).square().mean())
        engine.step()


def parts(engine: Engine, ranks: Ranks) -> dict[str, list[slices.Slice]]:
    return {
        "generator": slices.network(engine, ranks),
        "generator_optimizer": slices.slice_moments(engine, ranks),
        "ema": slices.average(engine.parts(), engine, ranks),
    }


def save_all(folder: Path) -> None:
    """At each stage: a checkpoint after 3 steps, and one after 5."""
    ranks = start_workers()
    for stage in range(4):
        engine = build(stage, ranks, None)
        uri = str(folder / f"stage{stage}")
        with Saver(CheckpointConfig(every=1), take_fence(uri, ranks), ranks, 0) as saver:
            train(engine, range(3))
            saver.save(Progress(3), parts(engine, ranks), {})
            train(engine, range(3, 5))  # while it is being saved
            saver.save(Progress(5), parts(engine, ranks), {})


def load_all(folder: Path, out: Path) -> None:
    """With two ranks each stage goes on from each other's third step, with others from one of them."""
    ranks = start_workers()
    for before in range(4):
        for stage in range(4) if ranks.world_size == 2 else [(before + ranks.world_size) % 4]:
            saved = next(c for c in format.committed(str(folder / f"stage{before}")) if c.images == 3)
            engine = build(stage, ranks, saved)
            uri = str(out / f"{before}{stage}")
            with Saver(CheckpointConfig(every=1), take_fence(uri, ranks), ranks, 3) as saver:
                saver.save(Progress(3), parts(engine, ranks), {})
                train(engine, range(3, 5))
                saver.save(Progress(5), parts(engine, ranks), {})


def tensors(uri: str, images: int) -> dict[str, Tensor]:
    found = next(c for c in format.committed(uri) if c.images == images)
    found.verify()
    return {f"{part}/{name}": t for part in sorted(found.parts) for name, t in found.tensors(part).items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By two ranks."""
    folder = tmp_path_factory.mktemp("slices")
    run_ranks(save_all, folder, ranks=2, log=folder / "log")
    return folder


@pytest.mark.long
def test_every_stage_saves_the_same(saved: Path) -> None:
    wanted = tensors(str(saved / "stage0"), 5)
    names = [name for name, _ in Network().named_parameters()]
    assert set(wanted) == {
        *(f"ema/{name}" for name in names),
        *(f"generator/{name}" for name in [*names, "u"]),
        *(f"generator_optimizer/{key}/{name}" for key in ("exp_avg", "exp_avg_sq") for name in names),
        "generator_optimizer/step",
    }
    assert wanted["generator_optimizer/step"] == 5 and wanted["generator/gain"].shape == (1,)
    # Plain PyTorch, without DeepSpeed.
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 0.05, fused=True)
    for step in range(5):
        optimizer.zero_grad()
        network(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
    plain = {f"generator/{name}": t for name, t in network.state_dict().items()}
    plain |= {
        f"generator_optimizer/{key}/{name}": optimizer.state[p][key]
        for key in ("exp_avg", "exp_avg_sq")
        for name, p in network.named_parameters()
    }
    for stage in range(4):
        found = tensors(str(saved / f"stage{stage}"), 5)
        for name, tensor in plain.items():
            torch.testing.assert_close(found[name], tensor.detach(), rtol=1e-4, atol=1e-6, msg=f"stage {stage} {name}")


@pytest.mark.parametrize("stage", range(4))
def test_both_ranks_write_their_share(saved: Path, stage: int) -> None:
    found = next(format.committed(str(saved / f"stage{stage}")))
    sizes = {name: row.bytes for name, row in found.files.items() if name.startswith("generator_optimizer")}
    assert len(sizes) == 2 and max(sizes.values()) < 1.5 * min(sizes.values())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_stage_goes_on_from_every_other_at_any_number_of_ranks(saved: Path, tmp_path: Path, ranks: int) -> None:
    run_ranks(load_all, saved, tmp_path, ranks=ranks, log=tmp_path / "log")
    for before in range(4):
        at_three, at_five = (tensors(str(saved / f"stage{before}"), images) for images in (3, 5))
        for stage in range(4) if ranks == 2 else [(before + ranks) % 4]:
            again = tensors(str(tmp_path / f"{before}{stage}"), 3)
            assert all(torch.equal(again[name], t) for name, t in at_three.items()), (before, stage)
            gone_on = tensors(str(tmp_path / f"{before}{stage}"), 5)
            for name, tensor in at_five.items():
                if before == stage and ranks == 2:
                    assert torch.equal(gone_on[name], tensor), (stage, name)
                torch.testing.assert_close(gone_on[name], tensor, rtol=1e-4, atol=1e-6, msg=f"{before}->{stage} {name}")
