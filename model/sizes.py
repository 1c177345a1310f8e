"""The published sizes of BigGAN, by resolution."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One resolution of BigGAN and BigGAN-deep (appendix B, tables 4 to 9). Widths are multiples of `ch`.

    G's first width is that of the 4 x 4 seed. D's first is that of its first block, in BigGAN-deep that of its stem; stages
    from `d_keep` on keep their size.
    """

    g_widths: tuple[int, ...]
    d_widths: tuple[int, ...]
    d_keep: int
    z_dim: int
    g_attention: tuple[int, ...] = ()
    d_attention: tuple[int, ...] = ()


SIZES = {
    32: Sizes(g_widths=(4, 4, 4, 4), d_widths=(4, 4, 4, 4), d_keep=2, z_dim=80),
    64: Sizes(g_widths=(16, 16, 8, 4, 2), d_widths=(1, 2, 4, 8, 16), d_keep=4, z_dim=120, g_attention=(64,)),
    128: Sizes(
        g_widths=(16, 16, 8, 4, 2, 1),
        d_widths=(1, 2, 4, 8, 16, 16),
        d_keep=5,
        z_dim=120,
        g_attention=(64,),
        d_attention=(64,),
    ),
    256: Sizes(
        g_widths=(16, 16, 8, 8, 4, 2, 1),
        d_widths=(1, 2, 4, 8, 8, 16, 16),
        d_keep=6,
        z_dim=140,
        g_attention=(128,),
        d_attention=(64,),
    ),
    512: Sizes(
        g_widths=(16, 16, 8, 8, 4, 2, 1, 1),
        d_widths=(1, 1, 2, 4, 8, 8, 16, 16),
        d_keep=7,
        z_dim=160,
        g_attention=(64,),
        d_attention=(64,),
    ),
}
UNSPLIT_Z = 128
"""Latent values where z is not split."""
