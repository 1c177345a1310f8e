"""The networks: published sizes, shapes, and what conditions what."""

import pytest
import torch

from model.biggan import Discriminator, Generator, ModelConfig

SMALL = ModelConfig(resolution=32, num_classes=5, channels=1, ch=8, shared_dim=16, z_chunk=4)


@pytest.mark.parametrize(
    ("config", "g", "d"),
    [
        # compare_gan's unit tests assert the first; BigGAN-PyTorch's networks have all of them.
        (ModelConfig(128, 1000), 70_433_988, 87_982_370),
        (ModelConfig(128, 1000, ch=64), 31_978_628, 39_448_258),
        (ModelConfig(64, 1000), 70_239_108, 45_500_449),
        (ModelConfig(64, 1000, ch=64), 31_908_100, 20_566_721),
    ],
)
def test_parameter_counts_are_the_published_ones(config: ModelConfig, g: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda weight: weight)  # minutes of QR that counting does not need
    assert sum(p.numel() for p in Generator(config).parameters()) == g
    assert sum(p.numel() for p in Discriminator(config).parameters()) == d


@pytest.mark.parametrize("resolution", [32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(resolution: int, channels: int) -> None:
    config = ModelConfig(resolution, 5, channels, ch=8, shared_dim=8)
    g, d = Generator(config), Discriminator(config)
    y = torch.tensor([0, 4])
    x = g(torch.randn(2, g.z_dim), y)
    assert x.shape == (2, channels, resolution, resolution) and x.dtype == torch.float32 and x.abs().max() <= 1
    assert d(x, y).shape == (2,)


def test_every_latent_chunk_and_the_class_reach_the_image() -> None:
    torch.manual_seed(0)
    g = Generator(SMALL)
    z, y = torch.randn(4, g.z_dim), torch.tensor([0, 1, 2, 3])
    x = g(z, y)
    assert not torch.equal(x, g(z, y.flip(0)))
    for slot in range(4):
        other = z.clone()
        other[:, slot * 4 : slot * 4 + 4] += 1
        assert not torch.equal(x, g(other, y)), f"chunk {slot} changes nothing"


def test_projection_is_the_only_use_of_the_class_in_d() -> None:
    """D(x, y) = linear(h) + <embed(y), h>: differences between classes are those of the embedding (arXiv 1802.05637)."""
    torch.manual_seed(0)
    d = Discriminator(SMALL)
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    scores = torch.stack([d(x, torch.full((3,), c)) for c in range(5)])
    embedding = d.embed(torch.arange(5))
    # Five logit differences per image come from one feature vector: they lie in the span of the embedding's differences.
    solution = torch.linalg.lstsq(embedding[1:] - embedding[0], (scores[1:] - scores[0])).solution
    torch.testing.assert_close((embedding[1:] - embedding[0]) @ solution, scores[1:] - scores[0], rtol=1e-4, atol=1e-4)


def test_bf16_keeps_logits_and_images_in_fp32() -> None:
    g, d = Generator(SMALL), Discriminator(SMALL)
    y = torch.zeros(2, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        x = g(torch.randn(2, g.z_dim), y)
        assert x.dtype == d(x, y).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 48}, "resolution=48: must be one of 32, 64, 128"),
        ({"resolution": 32, "ch": 0}, "ch=0"),
        ({"resolution": 32, "attention": (32, 7)}, r"attention=\[7\]"),
        ({"resolution": 32, "attention": (32,), "ch": 12}, "multiple of 8"),
        ({"resolution": 32, "g_widths": (4, 4)}, r"g_widths=\[4, 4\]: must be 4 numbers"),
    ],
)
def test_impossible_networks_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(num_classes=3, **settings)  # type: ignore[arg-type]
