"""The configuration of the networks: the published defaults, and what cannot be built."""

from dataclasses import asdict
from typing import Any

import pytest
import torch

from model.config import ModelConfig, from_saved
from model.networks import build_discriminator
from model.sizes import SIZES


def test_defaults_are_the_published_ones() -> None:
    assert [ModelConfig(r, 10).latent_dim for r in SIZES] == [80, 120, 120, 140, 160]
    assert [ModelConfig(r, 10, generator="biggan-deep").latent_dim for r in SIZES] == [128] * 5
    assert ModelConfig(64, 10, hierarchical=False).latent_dim == ModelConfig(64, 10, generator="transposed").latent_dim == 128
    assert [ModelConfig(r, 10).g_attention_at for r in SIZES] == [(), (64,), (64,), (128,), (64,)]
    deep = [ModelConfig(r, 10, generator="biggan-deep", discriminator="biggan-deep") for r in SIZES]
    assert [config.g_attention_at for config in deep] == [(), (64,), (64,), (64,), (64,)]
    assert [config.d_attention_at for config in deep] == [ModelConfig(r, 10).d_attention_at for r in SIZES]
    assert deep[4].d_attention_at == (64,) and deep[1].d_attention_at == ()
    plain = ModelConfig(512, 10, generator="transposed", discriminator="strided")
    assert plain.g_attention_at == plain.d_attention_at == ()
    assert plain.g_channels == [768, 384, 192, 96, 96, 96, 96, 96] and plain.d_channels == [96, 192, 384, 768, 768, 768, 768]


def test_widths() -> None:
    config = ModelConfig(32, 10, ch=8, d_ch=16, max_channels=24, g_widths=(8, 4, 2, 1))
    assert config.g_channels == [24, 24, 16, 8] and config.d_channels == [24] * 4
    stem = {"d_attention": (16,), "d_widths": (1, 2, 2, 2), "ch": 4, "discriminator": "biggan-deep"}
    assert ModelConfig(32, 10, **stem).d_channels == [4, 8, 8, 8]  # type: ignore[arg-type]
    assert (ModelConfig(32, 10).d_sizes, ModelConfig(32, 10, d_widths=(1, 2, 4, 8)).d_sizes) == ([16, 8], [16, 8, 4])
    assert ModelConfig(32, 10, discriminator="strided").d_sizes == [16, 8, 4]
    assert ModelConfig(64, 10).g_sizes == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 48}, "resolution=48: must be one of 32, 64, 128, 256, 512; the nearest is 32"),
        ({"resolution": 400}, "the nearest is 512"),
        ({"ch": 0}, "ch=0: must be at least 1"),
        ({"d_ch": 0}, "d_ch=0"),
        ({"max_channels": 0}, "max_channels=0"),
        ({"z_dim": 0}, "z_dim=0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"shared_dim": -1}, "shared_dim=-1: must be at least 1, or 0"),
        (
            {"resolution": 256, "z_dim": 128},
            "z_dim=128: must split into 7 equal parts at 256 px: set model.z_dim=126 or model.z_dim=133",
        ),
        ({"z_dim": 3}, "z_dim=3: must split into 4 equal parts at 32 px: set model.z_dim=4"),
        ({"g_attention": (32, 7)}, r"g_attention=7: no such size in G; it has \[8, 16, 32\], the nearest is 8"),
        ({"d_attention": (32,)}, r"d_attention=32: no such size in D; it has \[16, 8\], the nearest is 16"),
        ({"g_attention": (32,), "ch": 1}, "g_attention=32: attention needs a width of at least 8, and ch=1 makes it 4"),
        ({"d_attention": (8,), "d_widths": (2, 1, 2, 2), "ch": 4}, "d_attention=8: .* makes it 4"),
        (  # the stem's width is no stage's
            {"d_attention": (8,), "d_widths": (1, 1, 1, 2), "ch": 4, "discriminator": "biggan-deep"},
            "d_attention=8: .* makes it 4",
        ),
        ({"d_halvings": 5}, "d_halvings=5: must be 1 to 4"),
        ({"d_halvings": 2, "discriminator": "strided"}, "none for a strided D"),
        ({"generator": "biggan-deep", "shared_dim": 0}, "generator=biggan-deep: needs shared_dim of at least 1"),
        ({"generator": "biggan-deep", "hierarchical": False}, "hierarchical=true"),
        ({"generator": "biggan-deep", "g_widths": (2, 4, 2, 1)}, r"g_widths=\[192, 384, 192, 96\]: .* cannot grow"),
        ({"discriminator": "biggan-deep", "d_widths": (1, 2, 1, 2)}, r"d_widths=\[96, 192, 96, 192\]: .* cannot shrink"),
        ({"generator": "biggan-deep", "g_widths": (8, 4, 2, 1), "ch": 3}, "ch=3: generator=biggan-deep needs widths of at"),
        ({"discriminator": "biggan-deep", "d_ch": 3, "d_widths": (1, 1, 1, 1)}, "discriminator=biggan-deep needs widths"),
        ({"g_widths": (4, 4)}, r"g_widths=\[4, 4\]: must be 4 numbers of at least 1 at 32 px"),
        ({"d_widths": (4, 4, 4, 0)}, r"d_widths=\[4, 4, 4, 0\]: must be 4 numbers of at least 1"),
        ({"discriminator": "strided", "d_widths": (1, 2, 4, 8)}, r"d_widths=\[1, 2, 4, 8\]: must be 3 numbers"),
        ({"output_width": 2}, "output_width=2: must be at least channels=3"),
    ],
)
def test_impossible_networks_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"resolution": 32, "num_classes": 3} | settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("resolution", SIZES)
@pytest.mark.parametrize("unit", [1, 2])
def test_widths_typed_or_left_out_are_the_same_discriminator(resolution: int, unit: int) -> None:
    """Also in another unit of ch, as in imports of odd widths."""
    row = SIZES[resolution].d_widths
    left_out = ModelConfig(resolution, 10, d_ch=32)
    typed = ModelConfig(resolution, 10, d_ch=32 // unit, d_widths=tuple(unit * width for width in row))
    assert (typed.d_channels, typed.d_sizes) == (left_out.d_channels, left_out.d_sizes)
    with torch.device("meta"):
        shapes = [{name: t.shape for name, t in build_discriminator(c).state_dict().items()} for c in (left_out, typed)]
    assert shapes[0] == shapes[1]


def test_what_earlier_versions_saved_is_the_same_network() -> None:
    def saved(**fields: Any) -> dict[str, Any]:  # as JSON has it
        both = {"resolution": 32, "num_classes": 10, "ch": 64, "shared_dim": 0, "hierarchical": False, "d_widths": None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in (both | fields).items()}

    def count(config: ModelConfig) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build_discriminator(config).parameters())

    # Then, typed widths meant three halvings at 32 px, and what is saved now says how many.
    assert count(from_saved(saved(d_widths=(4, 4, 4, 4)))) == 4_273_153
    assert count(from_saved(saved(d_widths=(4, 4, 4, 4), d_halvings=None))) == count(from_saved(saved())) == 4_207_361
    old = from_saved(saved(d_widths=(4, 4, 4, 4)))
    assert from_saved(asdict(old)) == old and old.d_halvings == 3
    for same in ({"d_widths": (1, 2, 4, 8)}, {"resolution": 64, "d_widths": (1, 1, 1, 1, 1)}, {"discriminator": "strided"}):
        assert from_saved(saved(**same)) == ModelConfig(**saved() | same)
