"""What the comparison of quality says of rows, and that its plain way is plain."""

import sys

import pytest
import torch
from torch import Tensor

from benchmarks import quality
from benchmarks.arms import quality as quality_arm
from jobs import cli
from model import resample, spectral
from model.layers import SelfAttention


def rows(way: str, *pairs: tuple[float, float]) -> list[dict[str, object]]:
    return [{"way": way, "seed": i, "accuracy": accuracy, "FID": fid} for i, (accuracy, fid) in enumerate(pairs)]


def test_a_difference_counts_in_standard_errors_and_only_for_the_worse() -> None:
    plain = rows(quality.PLAIN, (0.90, 20.0), (0.92, 22.0), (0.88, 24.0))
    found = quality.compare(plain + rows("fp32", (0.90, 24.0), (0.92, 26.0), (0.88, 22.0)))
    error = ((4.0 + 4.0) / 3) ** 0.5
    assert found["fp32"] == pytest.approx({"accuracy": 0.9, "accuracy, errors": 0.0, "FID": 24.0, "FID, errors": -2 / error})
    assert quality.good(found)
    assert not quality.good(quality.compare(plain + rows("bf16", (0.90, 28.0), (0.92, 30.0), (0.88, 26.0))))
    assert not quality.good(quality.compare(plain + rows("bf16", (0.80, 20.0), (0.82, 22.0), (0.78, 24.0))))
    assert quality.good(quality.compare(plain + rows("bf16", (0.99, 2.0), (0.98, 3.0), (0.97, 1.0))))


@pytest.mark.parametrize("way", ["plain", "quick"])
def test_the_plain_way_has_neither_kernels_of_4x4_nor_fused_attention(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "ENOUGH", resample.ENOUGH)
    monkeypatch.setattr(spectral, "OUTWEIGHS", spectral.OUTWEIGHS)
    seen: dict[str, object] = {}

    def main(words: list[str]) -> int:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            SelfAttention(32, 1e-6)(torch.randn(2, 32, 16, 16))
        seen.update(words=words, pays=resample.pays(torch.empty(1, 1, 64, 64), 0.5), most=max(t.numel() for t in kept))
        return 0

    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(sys, "argv", ["", way, "fashion-mnist", "seed=1"])
    assert quality_arm.main() == 0
    pairs = 2 * 256 * 64
    assert seen["words"] == ["train", "fashion-mnist", "seed=1"]
    assert seen["pays"] is (way == "quick") and (seen["most"] == pairs) == (way == "plain")


def test_one_seed_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--seeds", "0"])
    with pytest.raises(SystemExit) as stopped:
        quality.main()
    assert stopped.value.code == 2 and "--seeds: one seed has no spread; type two or more" in capsys.readouterr().err
