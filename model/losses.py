"""GAN objectives on discriminator outputs [n]. Each returns the mean over its samples."""

from torch import Tensor
from torch.nn import functional as F


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (BigGAN, section 3; Lim & Ye, arXiv 1705.02894)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor) -> Tensor:
    """-E[D(G(z))]."""
    return -fake.mean()
