import pytest
import torch
from torch import nn

from model.ema import EMA, decay_per_step


def set_to(network: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)


def test_the_average_is_the_formulas() -> None:
    network = nn.Linear(3, 2)
    set_to(network, 1.0)
    ema = EMA(dict(network.named_parameters()))
    expected = 1.0
    for value, decay in ((5.0, 0.9), (-2.0, 0.5), (3.0, 0.0), (7.0, 0.99)):
        set_to(network, value)
        ema.update(dict(network.named_parameters()), decay)
        expected = decay * expected + (1 - decay) * value
        for average in ema.averages.values():
            torch.testing.assert_close(average, torch.full_like(average, expected))
    assert network.weight.unique().item() == 7  # the network itself is left alone


def test_averages_are_fp32_copies_of_the_parameters_only() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).bfloat16()
    ema = EMA(dict(network.named_parameters()))
    assert set(ema.averages) == {name for name, _ in network.named_parameters()}
    assert {average.dtype for average in ema.averages.values()} == {torch.float32}


def test_loading_takes_over_every_average() -> None:
    one, other = (EMA(dict(nn.Linear(3, 2).named_parameters())) for _ in range(2))
    other.load(one.averages)
    for name, average in one.averages.items():
        assert torch.equal(other.averages[name], average)
        assert other.averages[name] is not average
    with pytest.raises(KeyError):
        other.load({"weight": one.averages["weight"]})


def test_half_the_weight_is_gone_after_the_half_life() -> None:
    assert decay_per_step(1000, 10) ** 100 == pytest.approx(0.5)
    assert decay_per_step(0, 10) == 0
