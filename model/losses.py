"""GAN objectives on discriminator logits [n], float32. Each returns the mean over its samples, to be minimised."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Loss:
    """What D and what G minimise."""

    d: Callable[[Tensor, Tensor], Tensor]
    """Logits of real and of fake images [n] each -> []."""
    g: Callable[[Tensor], Tensor]
    """Logits of fake images [n] -> []."""


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (BigGAN, section 3; Lim & Ye, arXiv 1705.02894)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_g(fake: Tensor) -> Tensor:
    """-E[D(G(z))]."""
    return -fake.mean()


# log D and log(1 - D) of a probability D = sigmoid(logit) are infinite where the sigmoid rounds to 0 or 1 (at a logit of 17 in
# float32); -softplus(-logit) and -softplus(logit) are the same without the detour.


def minimax_d(real: Tensor, fake: Tensor) -> Tensor:
    """-E[log D(x)] - E[log(1 - D(G(z)))], D = sigmoid(logit) (Goodfellow et al., arXiv 1406.2661, equation 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_g(fake: Tensor) -> Tensor:
    """E[log(1 - D(G(z)))] (the same equation). Its gradient vanishes where D is sure of its no."""
    return -F.softplus(fake).mean()


def non_saturating_g(fake: Tensor) -> Tensor:
    """-E[log D(G(z))] (the same paper, section 3)."""
    return F.softplus(-fake).mean()


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """E[D(G(z))] - E[D(x)] (Arjovsky et al., arXiv 1701.07875, equation 3); D must be Lipschitz, here by spectral norm."""
    return fake.mean() - real.mean()


LOSSES = {
    "hinge": Loss(hinge_d, hinge_g),
    "minimax": Loss(minimax_d, minimax_g),
    "non-saturating": Loss(minimax_d, non_saturating_g),
    "wasserstein": Loss(wasserstein_d, hinge_g),  # G's part is the same
}
