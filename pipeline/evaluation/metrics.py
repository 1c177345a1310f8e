"""Figures of a set of images against real ones, from what a feature extractor says of both.

Features are fp32 [n, d]; sums over them are float64, pairs of them are taken in blocks, so that 50,000 x 2,048 fit anywhere.
Computed where the features are. Every function raises ValueError for features that are not finite.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

IS_SPLITS = 10
KID_SUBSETS, KID_SUBSET = 100, 1000
"""As in torch-fidelity and the paper."""
PR_K, DC_K = 3, 5
"""Neighbours that make a radius: Kynkäänniemi et al. 2019; Naeem et al. 2020."""
LEAST = {"is": 1000, "kid": KID_SUBSET, "prdc": DC_K + 1, "intra-fid": 50}
"""Images that a figure needs, of each set (of each class for intra-fid); below it is not defined, or mostly chance."""
_BLOCK = 2048
_ROUNDING = 1e-12
"""Squared distances that differ by less than this share of |x|^2 + |y|^2 are equal: the rest is rounding."""


@dataclass(frozen=True)
class Moments:
    """A Gaussian fitted to features."""

    mean: Tensor
    """float64 [d]."""
    covariance: Tensor
    """float64 [d, d], divided by n - 1."""


def moments(features: Tensor) -> Moments:
    """Of features [n, d], in float64. Raises ValueError for fewer than 2 rows."""
    _check(features)
    mean = sum((block.double().sum(0) for block in features.split(_BLOCK)), torch.tensor(0.0)) / len(features)
    squares = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
    for block in features.split(_BLOCK):
        centred = block.double() - mean
        squares.addmm_(centred.T, centred)
    return Moments(mean, squares / (len(features) - 1))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to features a [n, d] and b [m, d] (Heusel et al. 2017, eq. 6), in float64.

    The trace of sqrt(S T) is the sum of the roots of the eigenvalues of R T R, R = sqrt(S): symmetric, hence real
    and accurate even where a covariance is singular, which scipy's sqrtm(S @ T) is not. With S = A'A and T = B'B it is also
    the sum of the singular values of AB', which is smaller where there are fewer images than features.
    """
    if min(len(a), len(b)) <= a.shape[1]:
        return _frechet_of_few(a, b)
    s, t = moments(a), moments(b)
    values, vectors = torch.linalg.eigh(s.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    trace_of_root = torch.linalg.eigvalsh(root @ t.covariance @ root).clamp(min=0).sqrt().sum()
    trace = s.covariance.trace() + t.covariance.trace()
    return float((s.mean - t.mean).square().sum() + trace - 2 * trace_of_root)


def _frechet_of_few(a: Tensor, b: Tensor) -> float:
    for x in (a, b):
        _check(x)
    means = [x.mean(0, dtype=torch.float64) for x in (a, b)]
    roots = [(x.double() - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((a, b), means, strict=True)]
    trace = sum(root.square().sum() for root in roots)
    return float((means[0] - means[1]).square().sum() + trace - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum())


def intra_frechet(a: Tensor, a_labels: Tensor, b: Tensor, b_labels: Tensor) -> dict[int, float]:
    """The Fréchet distance within each class that both have. Intra-FID is the mean over all (Miyato & Koyama 2018)."""
    both = sorted(set(a_labels.tolist()) & set(b_labels.tolist()))
    return {label: frechet_distance(a[a_labels == label], b[b_labels == label]) for label in both}


def inception_score(logits: Tensor) -> tuple[float, float]:
    """(mean, standard deviation) over 10 splits, in order, of exp of the mean divergence KL(p(y|x) | p(y)) of logits [n, K].

    Salimans et al. 2016; whatever classifier gave them. The deviation divides by the number of splits, as usual.
    """
    _check(logits)
    scores = []
    for part in logits.tensor_split(IS_SPLITS):
        logs = part.double().log_softmax(1)
        mean = logs.exp().mean(0)
        scores.append((logs.exp() * (logs - mean.clamp(min=1e-300).log())).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(correction=0))


def kernel_distance(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018): (mean, standard deviation) of the squared MMD over 100 pairs of subsets of 1,000."""
    for x in (a, b):
        _check(x)
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(KID_SUBSETS):
        x, y = (part[torch.randperm(len(part), generator=draw)[:KID_SUBSET].to(part.device)] for part in (a, b))
        found.append(squared_mmd(x, y))
    distances = torch.tensor(found, dtype=torch.float64)
    return float(distances.mean()), float(distances.std(correction=0))


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of the squared MMD of x [n, d] and y [n, d] under the kernel (x'y / d + 1)^3, in float64."""
    x, y = x.double(), y.double()

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T).div_(u.shape[1]).add_(1).pow_(3)

    within = sum(
        (kernel(u, u).sum() - (u.square().sum(1) / u.shape[1] + 1).pow(3).sum()) / (len(u) ** 2 - len(u)) for u in (x, y)
    )
    return float(within - 2 * kernel(x, y).mean())


@dataclass(frozen=True)
class Manifolds:
    """How a set of images and real ones cover each other, by balls around each image that reach its k-th neighbour."""

    precision: float
    """Share of the images inside the ball of some real one, k = 3 (Kynkäänniemi et al. 2019)."""
    recall: float
    """Share of real ones inside the ball of some image."""
    density: float
    """How many real balls hold an image, on average, divided by k = 5 (Naeem et al. 2020)."""
    coverage: float
    """Share of real ones whose ball holds an image."""


def manifolds(real: Tensor, fake: Tensor) -> Manifolds:
    """Of features real [n, d] and fake [m, d]. Both need more than 5 rows."""
    for x in (real, fake):
        _check(x)
    real_radii, fake_radii = radii(real), radii(fake)
    # Copies of images are at the distance of a radius, not just within or without.
    slack = _ROUNDING * sum(max(float(part.double().square().sum(1).max()) for part in x.split(_BLOCK)) for x in (real, fake))
    inside, density = torch.zeros(len(fake), dtype=torch.bool, device=fake.device), 0.0
    recalled, covered = 0, 0
    for start, squares in _squares(real, fake):  # a block of real rows against all fake ones
        mine = slice(start, start + len(squares))
        inside |= (squares <= real_radii[0][mine, None] + slack).any(0)
        recalled += int((squares <= fake_radii[0] + slack).any(1).sum())
        density += int((squares < real_radii[1][mine, None] - slack).sum()) / (DC_K * len(fake))
        covered += int((squares.amin(1) < real_radii[1][mine] - slack).sum())
    return Manifolds(float(inside.double().mean()), recalled / len(real), density, covered / len(real))


def radii(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [n], float64, of each row of x [n, d] to its third and its fifth nearest other row."""
    found = []
    for start, squares in _squares(x, x):
        rows = torch.arange(len(squares), device=x.device)
        squares[rows, start + rows] = torch.inf
        found.append(squares.topk(DC_K, largest=False).values[:, [PR_K - 1, DC_K - 1]])
    third, fifth = torch.cat(found).unbind(1)
    return third, fifth


def _squares(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of squared distances of x to y: (number of the first row, float64 [rows, m]); equal rows are at 0."""
    rows = max(1, _BLOCK * _BLOCK // len(y))
    norms = torch.cat([block.double().square().sum(1) for block in y.split(_BLOCK)])
    for start in range(0, len(x), rows):
        block = x[start : start + rows].double()
        squares = block.square().sum(1)[:, None] + norms
        for column in range(0, len(y), _BLOCK):
            part = squares[:, column : column + _BLOCK]
            rounding = part * _ROUNDING
            part.addmm_(block, y[column : column + _BLOCK].double().T, alpha=-2)
            part.masked_fill_(part < rounding, 0)
        yield start, squares


def _check(features: Tensor) -> None:
    if len(features) < 2 or not features.isfinite().all():
        raise ValueError(f"features must be finite, 2 rows at least; got shape {tuple(features.shape)}")
