"""Weights that are no numbers: what a training that diverged leaves, or a damaged file."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.wording import plural


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Say which tensors have values that are NaN or infinite; empty if all are finite."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    more = f" and {plural(len(names) - 1, 'more tensor')}" if names[1:] else ""
    return f"NaN or infinite values in {names[0]}{more}" if names else ""
