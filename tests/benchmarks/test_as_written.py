"""What is measured with convolutions as they are written, or with cuDNN's search, is that."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.arms import step
from benchmarks.support.as_written import convolve_as_written
from benchmarks.support.gpu_parts import TRIALS
from model import resample, spectral
from model.spectral import SNConv2d, SpectralNorm
from pipeline.errors import UserError


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "ENOUGH", resample.ENOUGH)
    monkeypatch.setattr(spectral, "OUTWEIGHS", spectral.OUTWEIGHS)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)


def test_kernels_are_of_3x3_and_weights_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    convolve_as_written()
    layer, memory = SNConv2d(64, 8, 3, 1e-4, resize="down"), []
    whole = SpectralNorm.normalised_weight
    monkeypatch.setattr(SpectralNorm, "normalised_weight", lambda *args: memory.append(args[1:]) or whole(*args))
    layer(torch.randn(1, 64, 4, 4))  # a weight of many times what it makes
    layer(torch.randn(1, 64, 64, 64))  # enough places for a kernel of 4x4
    assert memory == [(spectral.CHANNELS_LAST,)] * 2


@pytest.mark.parametrize("trial", [{}, *TRIALS.values()])
def test_a_trial_reaches_what_it_switches(trial: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "start_workers", lambda: SimpleNamespace(device=torch.device("cpu")))
    enough = resample.ENOUGH
    with pytest.raises(UserError):  # by then it has switched
        step.measure({"source": "/nowhere.yaml", "overrides": [], "micro_batch": 1} | trial)
    assert torch.backends.cudnn.benchmark is ("search" in trial)
    assert (enough != resample.ENOUGH) is ("plain" in trial)


def test_trials_switch_something() -> None:
    assert {key for trial in TRIALS.values() for key in trial} == {"search", "plain"}
