"""Signs of a GAN that collapses, from what a report or a sheet of samples holds anyhow (BigGAN, section 4).

There the singular values of some of G's layers grow all along and explode at the collapse; D has learnt the training images
by heart by then, and samples of a class become one. Rates that are far too high kill both networks instead: D says the same
of everything, no gradient is left, and no number moves any more. Most signs are measured against the run's own past, or
against a D that has not decided anything yet; an alarm is raised when a sign appears, and again only after it has gone.
"""

import statistics
from collections import deque

import torch
from torch import Tensor, nn

from model.losses import LOSSES
from model.spectral import SpectralNorm, singular_values
from pipeline.engine.ranks import Ranks
from pipeline.images.floats import HALF_RANGE

SURE = 0.05
"""D is sure when its loss is below this share of that of a D which says 0 to everything."""
DEAD, STILL = 1e-4, 1e-3
"""Networks are dead when both gradient norms are below the first and D's loss stays within this share of itself."""
DEAD_REPORTS = 3
"""In a row, after which that is an alarm: where D is sure for a moment, only its own gradient vanishes."""
GROWTH, LOSS = 2.0, 0.5
"""Against the median of the last `_PAST` values: a singular value has exploded above, diversity is gone below."""
_PAST, _ENOUGH = 10, 4


class Past:
    """The last values of one number."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_PAST)

    def ratio(self, value: float) -> float:
        """`value` over the median of those before it; 1 while there are few, or where that is 0."""
        before = statistics.median(self._values) if len(self._values) >= _ENOUGH else 0.0
        if abs(value) < float("inf"):  # and no NaN
            self._values.append(value)
        return value / before if before else 1.0


class Signs:
    """What a run's collapse looks for; the same on all ranks. `loss`: a key of `model.losses.LOSSES`."""

    def __init__(self, loss: str):
        zero = torch.zeros(1)
        self._undecided = float(LOSSES[loss].d(zero, zero))  # 0 for wasserstein, which D can lower without end
        self._past: dict[str, Past] = {}
        self._raised: set[str] = set()
        self._dead, self._still_at = 0, 0.0

    def of_report(self, values: dict[str, float], g: nn.Module, d: nn.Module) -> tuple[dict[str, float], list[str]]:
        """Metrics and alarms from a report's means and the singular values that spectral norm has at hand."""
        sigma = _sigmas(g, d)
        return sigma, [*self._margin(values), *self._died(values), *self._grown(sigma)]

    def of_samples(self, images: Tensor | None, g: nn.Module, d: nn.Module, ranks: Ranks) -> tuple[dict[str, float], list[str]]:
        """Metrics and alarms from a sheet, uint8 [rows, columns, C, r, r] with a class per column, which only rank 0 has."""
        there = diversity(images) if images is not None else torch.zeros(2)
        agreed = ranks.sum([value.to(ranks.device) for value in there])
        spread = dict(zip(("diversity/class", "diversity/all"), agreed, strict=True))
        return spread | top_singular_values(g, d), self._shrunk(spread)

    def _margin(self, values: dict[str, float]) -> list[str]:
        margin = values["d/real"] - values["d/fake"]
        text = (
            f"D is sure of real and fake (loss {values['loss/d']:.3f}, D(real) - D(fake) {margin:.2f}, E[sign D] "
            f"{values['d/sign_real']:.2f} and {values['d/sign_fake']:.2f}): G hardly learns any more; D has learnt the images "
            "by heart, or G has collapsed"
        )
        return self._raise("sure", text, self._undecided > 0 and values["loss/d"] < SURE * self._undecided)

    def _died(self, values: dict[str, float]) -> list[str]:
        d, g, loss = values["grad_norm/d"], values["grad_norm/g"], values["loss/d"]
        if not (d < DEAD and g < DEAD):  # nor with NaN, of skipped updates
            self._dead = 0
        elif self._dead and abs(loss - self._still_at) <= STILL * max(1.0, abs(self._still_at)):
            self._dead += 1
        else:
            self._dead, self._still_at = 1, loss
        text = (
            f"both networks are dead: in {DEAD_REPORTS} reports their gradient norms were {d:.3g} (D) and {g:.3g} (G), and D's "
            f"loss stayed at {loss:.3f}; learning rates are too high, or D's layers have died"
        )
        return self._raise("dead", text, self._dead >= DEAD_REPORTS)

    def _grown(self, sigma: dict[str, float]) -> list[str]:
        alarms = []
        for key, value in sigma.items():
            ratio = self._past.setdefault(key, Past()).ratio(value)
            text = f"{key}, a largest singular value, is {value:.3g}, {ratio:.1f} times its past: spectra explode at a collapse"
            alarms += self._raise(key, text, ratio > GROWTH)
        return alarms

    def _shrunk(self, spread: dict[str, float]) -> list[str]:
        alarms = []
        for key, value in spread.items():
            ratio = self._past.setdefault(key, Past()).ratio(value)
            text = f"{key}, the mean distance of two samples, is {value:.3f}, {ratio:.0%} of its past: samples become alike"
            alarms += self._raise(key, text, ratio < LOSS)
        return alarms

    def _raise(self, key: str, text: str, now: bool) -> list[str]:
        new = now and key not in self._raised
        (self._raised.add if now else self._raised.discard)(key)
        return [text] if new else []


def diversity(images: Tensor) -> Tensor:
    """Mean root-mean-square distance of two images [2], in -1..1: of one class, and of any; uint8 [rows, columns, C, r, r]."""
    x = images.flatten(2).float() / HALF_RANGE
    size = x.shape[2] ** 0.5
    of_class = torch.stack([torch.pdist(column).mean() for column in x.unbind(1)]).mean()
    return torch.stack([of_class, torch.pdist(x.flatten(0, 1)).mean()]) / size


def _spectral(network: nn.Module) -> dict[str, SpectralNorm]:
    named = network.named_modules()
    return {name: layer for name, layer in named if isinstance(layer, SpectralNorm) and layer.sn_eps is not None}


@torch.no_grad()
def _sigmas(g: nn.Module, d: nn.Module) -> dict[str, float]:
    """Of G's first layer, where the paper saw it first, and the largest of all layers of each network."""
    found: dict[str, Tensor] = {}
    for key, network in (("g", g), ("d", d)):
        if layers := list(_spectral(network).values()):
            sigmas = torch.stack([layer.sigma() for layer in layers])
            found |= {f"sigma/{key}/first": sigmas[0], f"sigma/{key}/max": sigmas.max()}
    return {key: float(value) for key, value in found.items()}


def top_singular_values(g: nn.Module, d: nn.Module) -> dict[str, float]:
    """sigma_0, sigma_1 and sigma_2 of every spectral layer, as in the paper's figure 3."""
    found = {}
    for key, network in (("g", g), ("d", d)):
        for name, layer in _spectral(network).items():
            for i, value in enumerate(singular_values(layer.matrix()).tolist()):
                found[f"singular/{key}/{name}/{i}"] = value
    return found
