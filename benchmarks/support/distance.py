"""Measure how far two networks are apart."""

from torch import Tensor


def distance(a: dict[str, Tensor], b: dict[str, Tensor], network: str) -> float:
    """Return |a - b| / |b| over all tensors whose names begin with `network` and a dot."""
    keys = [key for key in b if key.startswith(f"{network}.")]
    difference = sum((a[key].double() - b[key].double()).square().sum() for key in keys)
    return float((difference / sum(b[key].double().square().sum() for key in keys)) ** 0.5)
