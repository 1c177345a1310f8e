"""Batch norm by samples: groups inside a batch, and standing statistics. Across ranks: tests/pipeline/test_engines.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batchnorm import BatchNorm, set_group, standing_statistics
from model.biggan import Generator, ModelConfig
from model.latents import Stream, latents, random_labels


def normalised(x: torch.Tensor, eps: float) -> torch.Tensor:
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0, keepdim=True)
    return ((x - mean) / (var + eps).sqrt()).float()


@settings(max_examples=20, deadline=None)
@given(group=st.integers(1, 6), groups=st.integers(1, 4), offset=st.floats(-50, 50))
def test_each_group_is_normalised_by_itself(group: int, groups: int, offset: float) -> None:
    x = torch.randn(group * groups, 3, 4, 4) * 2 + offset
    layer = BatchNorm(3, 1e-4)
    set_group(layer, group)
    expected = torch.cat([normalised(part, 1e-4) for part in x.split(group)])
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)


def test_eval_without_statistics_shows() -> None:
    layer = BatchNorm(3, 1e-4).eval()
    assert layer(torch.randn(2, 3, 4, 4)).isnan().all()


def test_standing_statistics_are_those_of_the_pooled_batches() -> None:
    torch.manual_seed(0)
    g = Generator(ModelConfig(32, 4, channels=1, ch=8, shared_dim=8, z_chunk=4))
    batches = [
        (latents(0, Stream.STANDING, i * 16, 16, g.z_dim), random_labels(0, Stream.STANDING, i * 16, 16, 4)) for i in range(3)
    ]
    seen: list[torch.Tensor] = []
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
        standing_statistics(Generator(ModelConfig(32, 4, channels=1, ch=8, shared_dim=8, z_chunk=4)), [])
