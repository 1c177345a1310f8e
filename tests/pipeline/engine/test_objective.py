"""The objective: each term with its weight, randomness by place, and a state that all ranks share."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model import regularizers
from model.config import ModelConfig
from model.losses import LOSSES
from model.networks import build_discriminator, build_generator
from pipeline.engine.batch import BatchConfig, BatchPlan, plan_batch
from pipeline.engine.objective import Objective, ObjectiveConfig, ObjectiveState, ortho_weights
from pipeline.engine.ranks import Ranks

MODEL = ModelConfig(32, 3, channels=3, ch=4, d_ch=8, shared_dim=4, z_dim=16, d_attention=(16,))
LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('store')}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def d() -> nn.Module:
    torch.manual_seed(0)
    network = build_discriminator(MODEL)
    for layer in network.modules():
        if hasattr(layer, "gamma"):
            nn.init.ones_(layer.gamma)  # attention takes part
    return network


def pictures(seed: int, n: int = 4) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def objective(micro_batch: int = 4, state: ObjectiveState | None = None, **settings: Any) -> Objective:
    plan = plan_batch(BatchConfig(4, 1, micro_batch), 1)
    return Objective(
        ObjectiveConfig(**settings), plan, Ranks(rank=0, world_size=1, device=torch.device("cpu")), seed=0, state=state
    )


def d_loss(d: nn.Module, made: Objective, position: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    return made.d_loss(d, (pictures(1), LABELS), (pictures(2), LABELS.flip(0)), position, 0)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_without_penalties_it_is_the_adversarial_loss(d: nn.Module, loss: str) -> None:
    made = objective(loss=loss)
    found, _ = d_loss(d, made)
    real, fake = d(pictures(1), LABELS), d(pictures(2), LABELS.flip(0))
    torch.testing.assert_close(found, LOSSES[loss].d(real, fake), rtol=1e-4, atol=1e-5)
    x = pictures(3)
    torch.testing.assert_close(made.g_loss(d, (x, LABELS), 0, 0)[0], LOSSES[loss].g(d(x, LABELS)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "name", "weight"),
    [
        ({"r1": 2.0, "r1_every": 5}, "r1", 5.0),
        ({"lecam": 0.3}, "lecam", 0.3),
        ({"cr": 7.0}, "cr", 7.0),
        ({"cr_fake": 4.0}, "cr_fake", 4.0),
    ],
)
def test_a_penalty_is_added_with_its_weight(d: nn.Module, settings: dict[str, float], name: str, weight: float) -> None:
    plain, _ = d_loss(d, objective())
    found, values = d_loss(d, objective(state=ObjectiveState(ema_real=0.5, ema_fake=-0.25), **settings))
    assert values[f"penalty/{name}"] > 0
    torch.testing.assert_close(found - plain, weight * values[f"penalty/{name}"], rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_all_penalties_at_once_and_their_gradient(d: nn.Module) -> None:
    """Against finite differences: R1's double backward goes through attention, spectral norm and the projection."""
    made = objective(r1=1.0, r1_every=1, lecam=0.3, cr=1.0, cr_fake=1.0, augment="diffaugment")
    network = build_discriminator(MODEL).double()
    network.load_state_dict({name: tensor.double() for name, tensor in d.state_dict().items()})
    real, fake = (pictures(1).double(), LABELS), (pictures(2).double(), LABELS)
    made.d_loss(network, real, fake, 0, 0)[0].backward()
    for weight in (network.blocks[1].conv1.weight, network.attention["0"].query.weight, network.embed.weight):
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
        step, ends = 1e-9, []  # the slope of a network of ReLUs jumps: a larger step would cross some of the places
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * step * direction)
            ends.append(made.d_loss(network, real, fake, 0, 0)[0].detach())
            with torch.no_grad():
                weight.sub_(sign * step * direction)
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((weight.grad * direction).sum(), slope, rtol=1e-3, atol=1e-4)


def test_r1_comes_every_so_many_steps(d: nn.Module) -> None:
    made = objective(r1=1.0, r1_every=3)
    came = []
    for _ in range(7):
        came.append("penalty/r1" in d_loss(d, made)[1])
        made.after_d_step(skipped=False)
    assert came == [True, False, False] * 2 + [True]


def test_orthogonal_regularisation_is_a_gradient_of_its_own() -> None:
    torch.manual_seed(0)
    g = build_generator(MODEL)
    for weight in ortho_weights(g):
        nn.init.normal_(weight)
    assert "shared.weight" not in {name for name, p in g.named_parameters() if any(p is w for w in ortho_weights(g))}
    penalty = regularizers.orthogonal(ortho_weights(g))
    penalty.mul(1e-4).backward()
    slopes, values = objective(ortho=1e-4).g_penalty(g)
    assert len(slopes) == len(ortho_weights(g))
    for weight, slope in slopes.items():
        torch.testing.assert_close(slope, weight.grad)
    torch.testing.assert_close(values, {"penalty/ortho": penalty.detach()})
    assert objective().g_penalty(g) == ({}, {})


@pytest.mark.parametrize("settings", [{"augment": "diffaugment"}, {"augment": "ada"}, {"cr": 1.0, "cr_fake": 1.0}])
def test_what_d_sees_depends_on_the_place_and_not_on_micro_batches(settings: dict[str, Any]) -> None:
    def seen(micro_batch: int, position: int = 40) -> list[Tensor]:
        made, parts = objective(micro_batch, ObjectiveState(ada_p=0.9), **settings), []

        def record(x: Tensor, y: Tensor) -> Tensor:
            parts.append(torch.stack(x.split(micro_batch)))
            return x.mean((1, 2, 3))

        for i in range(4 // micro_batch):
            part = slice(i * micro_batch, (i + 1) * micro_batch)
            made.d_loss(record, (pictures(1)[part], LABELS[part]), (pictures(2)[part], LABELS[part]), position, i)
            made.g_loss(record, (pictures(3)[part], LABELS[part]), position, i)
        return [torch.cat(parts[0::2], 1), torch.cat(parts[1::2], 1)]

    for whole, split, elsewhere in zip(seen(4), seen(2), seen(4, 44), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-5, atol=1e-5)
        if len(whole) != 1 or "augment" in settings:
            assert not torch.allclose(whole, elsewhere)
    if "augment" in settings:
        real, fake = seen(4)[0]
        assert not torch.equal(real, pictures(1)) and not torch.equal(fake, pictures(2))


def test_the_state_follows_what_d_said(d: nn.Module) -> None:
    made = objective(lecam=0.1, lecam_half_life=4, augment="ada", ada_ramp=40, ada_target=-0.5)
    _, first = d_loss(d, made)
    reported = made.after_d_step(skipped=False)
    assert made.state.d_steps == 1
    assert made.state.ema_real == pytest.approx(first["d/real"].item(), rel=1e-5)  # the first sets the anchor
    assert made.state.ada_p == pytest.approx(0.1) == float(reported["ada/p"])  # 4 of 40 images, above the target
    before = made.state
    _, second = d_loss(d, made, 4)
    made.after_d_step(skipped=False)
    assert made.state.ema_fake == pytest.approx((before.ema_fake + second["d/fake"].item()) / 2, rel=1e-5)
    assert ObjectiveState(**json.loads(json.dumps(asdict(made.state)))) == made.state  # exact, so a resume is
    before = made.state
    made.d_loss(lambda x, y: x.mean((1, 2, 3)) * float("nan"), (pictures(1), LABELS), (pictures(2), LABELS), 8, 0)
    assert made.after_d_step(skipped=True) == {} and made.state == before
    d_loss(d, made, 12)  # what was skipped is not in the next step's mean
    made.after_d_step(skipped=False)
    assert made.state.ema_real == made.state.ema_real


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    made = Objective(
        ObjectiveConfig(lecam=0.1, augment="ada"),
        BatchPlan(4, 2, 1, 2, 2),
        Ranks(rank=rank, world_size=2, device=torch.device("cpu")),
        seed=0,
    )
    part = slice(rank * 2, rank * 2 + 2)
    real, fake = ((pictures(seed)[part], LABELS[part]) for seed in (1, 2))
    made.d_loss(lambda x, y: x.mean((1, 2, 3)) + 0.1, real, fake, 0, 0)
    made.after_d_step(skipped=False)
    Path(folder, str(rank)).write_text(json.dumps(asdict(made.state)))
    dist.destroy_process_group()


@pytest.mark.long
def test_ranks_agree_on_the_state(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), 2)
    found = [ObjectiveState(**json.loads((tmp_path / str(rank)).read_text())) for rank in range(2)]
    assert found[0] == found[1]
    made = objective(lecam=0.1, augment="ada")
    d_loss(lambda x, y: x.mean((1, 2, 3)) + 0.1, made)  # type: ignore[arg-type]
    made.after_d_step(skipped=False)
    assert found[0].ema_real == pytest.approx(made.state.ema_real, rel=1e-5)
    assert found[0] == replace(made.state, ema_real=found[0].ema_real, ema_fake=found[0].ema_fake)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r1": -1.0}, "r1=-1.0: must not be negative"),
        ({"r1_every": 0}, "r1_every=0"),
        ({"ada_target": 1.0}, "ada_target=1.0"),
        ({"augment": "diffaugment", "policy": ()}, "policy"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
