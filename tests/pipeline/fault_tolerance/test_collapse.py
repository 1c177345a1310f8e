"""Signs of collapse: each is raised when it appears, and only then."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.networks import build_discriminator, build_generator
from pipeline.fault_tolerance import collapse
from pipeline.fault_tolerance.collapse import Past, Signs, diversity, top_singular_values

NO_LAYERS = nn.Identity()
SMALL = ModelConfig(32, 4, channels=1, ch=4, shared_dim=8, z_dim=16)


def report(loss: float, real: float = 3.0, fake: float = -3.0, norms: tuple[float, float] = (1.0, 1.0)) -> dict[str, float]:
    gradients = dict(zip(("grad_norm/d", "grad_norm/g"), norms, strict=True))
    return {"loss/d": loss, "d/real": real, "d/fake": fake, "d/sign_real": 1.0, "d/sign_fake": -1.0} | gradients


@pytest.mark.parametrize(("loss", "undecided"), [("hinge", 2.0), ("non-saturating", 1.386), ("minimax", 1.386)])
def test_a_d_that_is_sure_is_said_once_until_it_doubts_again(loss: str, undecided: float) -> None:
    signs, raised = Signs(loss), []
    for share in (1.0, 0.06, 0.04, 0.0, float("nan"), 0.04, 0.3):
        raised.append(signs.of_report(report(share * undecided), NO_LAYERS, NO_LAYERS)[1])
    assert [len(alarms) for alarms in raised] == [0, 0, 1, 0, 0, 1, 0]
    assert "D is sure of real and fake (loss 0.0" in raised[2][0] and "D(real) - D(fake) 6.00" in raised[2][0]


# (D's loss, its gradient norm, that of G) by report. The first series is from a training with rates of 0.2.
ALIVE = [(201.927, 602.026, 113.458), (85.96, 135.632, 0.0)]
DEAD = (2.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("series", "alarms"),
    [
        ([*ALIVE, *[DEAD] * 12, (1.9, 0.3, 0.2), *[DEAD] * 3], [4, 17]),
        ([*ALIVE, DEAD, DEAD, (1.9, 0.3, 0.2), DEAD, DEAD], []),  # not three in a row
        ([(0.0, 0.0, 1.3)] * 6, [0]),  # D is sure, as in another alarm: G still has a gradient
        ([(1.2 + i / 10, 1e-5, 1e-5) for i in range(6)], []),  # something moves: nothing is dead
        ([(1.5, 1e-3, 2e-4)] * 6, []),  # small is not dead: scaled losses, a warm-up
        ([(float("nan"), float("nan"), float("nan"))] * 6, []),  # skipped updates are the concern of `health`
    ],
)
def test_dead_networks_are_an_alarm_after_three_reports(series: list[tuple[float, float, float]], alarms: list[int]) -> None:
    signs, raised = Signs("hinge"), {}
    for i, (loss, d, g) in enumerate(series):
        if said := signs.of_report(report(loss, norms=(d, g)), NO_LAYERS, NO_LAYERS)[1]:
            raised[i] = said
    assert list(raised) == alarms
    assert all("both networks are dead" in said[0] for i, said in raised.items() if series[i] == DEAD)


def test_wasserstein_has_no_loss_at_which_d_is_done() -> None:
    assert Signs("wasserstein").of_report(report(-50.0), NO_LAYERS, NO_LAYERS)[1] == []


def test_an_exploding_layer_of_g_is_named() -> None:
    torch.manual_seed(0)
    g, d, signs = build_generator(SMALL), build_discriminator(SMALL), Signs("hinge")
    for _ in range(6):
        values, alarms = signs.of_report(report(1.0), g, d)
        assert alarms == []
    assert values == pytest.approx({f"sigma/{n}/{place}": 1.0 for n in "gd" for place in ("first", "max")}, rel=1e-3)
    with torch.no_grad():
        g.seed.weight.mul_(2.5)  # type: ignore[union-attr, operator]
    values, alarms = signs.of_report(report(1.0), g, d)
    assert values["sigma/g/first"] == values["sigma/g/max"] == pytest.approx(2.5, rel=1e-3)
    assert [alarm.split(",")[0] for alarm in alarms] == ["sigma/g/first", "sigma/g/max"]


def test_the_past_is_a_median_that_nothing_spoils() -> None:
    past = Past()
    assert [past.ratio(value) for value in (1.0, 100.0, 1.0)] == [1.0, 1.0, 1.0]  # too few
    for value in (float("nan"), float("inf"), 1.0):
        past.ratio(value)
    assert past.ratio(3.0) == 3.0


def test_top_singular_values_are_those_of_every_normalised_layer() -> None:
    torch.manual_seed(1)
    g, d = build_generator(SMALL), build_discriminator(SMALL)
    for parameter in itertools.chain(g.parameters(), d.parameters()):
        nn.init.normal_(parameter)
    found = top_singular_values(g, d)
    assert len({key.rsplit("/", 1)[0] for key in found}) == len(collapse._spectral(g)) + len(collapse._spectral(d))
    for key, network in (("g", g), ("d", d)):
        for name, layer in collapse._spectral(network).items():
            exact = torch.linalg.svdvals(layer.matrix().detach())[:3]
            got = [found[f"singular/{key}/{name}/{i}"] for i in range(len(exact))]
            torch.testing.assert_close(torch.tensor(got), exact, rtol=0.02, atol=0)


def sheet(within: float, between: float) -> Tensor:
    """8 rows x 2 classes: colours that differ by `within` in a class and by `between` of the classes."""
    numbers = torch.Generator().manual_seed(0)
    images = 128 + within * torch.randn(8, 2, 3, 4, 4, generator=numbers)
    images[:, 1] += between
    return images.clamp(0, 255).to(torch.uint8)


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    images = sheet(20, 60)
    x = images.flatten(2).double() / 127.5
    pairs = list(itertools.combinations(range(8), 2))
    of_class = [(x[a, k] - x[b, k]).square().mean().sqrt() for a, b in pairs for k in (0, 1)]
    whole = [(a - b).square().mean().sqrt() for a, b in itertools.combinations(x.flatten(0, 1), 2)]
    expected = torch.stack([torch.stack(of_class).mean(), torch.stack(whole).mean()]).float()
    torch.testing.assert_close(diversity(images), expected)


def test_classes_that_become_one_image_each_raise_an_alarm_of_their_own() -> None:
    class Alone:
        device = torch.device("cpu")

        @staticmethod
        def sum(values: list[Tensor]) -> list[float]:
            return [float(value) for value in values]

    signs = Signs("hinge")
    for _ in range(5):
        assert signs.of_samples(sheet(20, 60), NO_LAYERS, NO_LAYERS, Alone())[1] == []  # type: ignore[arg-type]
    _, alarms = signs.of_samples(sheet(2, 60), NO_LAYERS, NO_LAYERS, Alone())  # type: ignore[arg-type]
    assert len(alarms) == 1 and alarms[0].startswith("diversity/class, the mean distance of two samples")
