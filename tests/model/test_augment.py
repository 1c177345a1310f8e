"""Augmentations, against their papers' definitions applied to one image at a time in numpy."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from model.augment import (
    ADA_UNIFORMS,
    CONSISTENCY_UNIFORMS,
    DIFF_AUGMENT_UNIFORMS,
    ada,
    consistency_transform,
    diff_augment,
)
from tests.support.noise import draw, images

Array = NDArray[np.float64]

AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "diff_augment": (partial(diff_augment, policy=("color", "translation", "cutout")), DIFF_AUGMENT_UNIFORMS),
    "ada": (partial(ada, p=0.5), ADA_UNIFORMS),
    "consistency": (consistency_transform, CONSISTENCY_UNIFORMS),
}
every = pytest.mark.parametrize("name", AUGMENTATIONS)
channels = pytest.mark.parametrize("channels", [1, 3])


# What all of them promise.


@every
@channels
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_dtype_stay(name: str, channels: int, size: int, dtype: torch.dtype) -> None:
    transform, uniforms = AUGMENTATIONS[name]
    x, u = images(0, 3, channels, size, size), draw(1, 3, uniforms)
    y = transform(x.to(dtype), u)
    assert y.shape == x.shape and y.dtype == dtype and not torch.equal(y, x.to(dtype))
    torch.testing.assert_close(y.float(), transform(x.to(dtype).float(), u), rtol=0.03, atol=0.03)


@every
def test_autocast_changes_nothing(name: str) -> None:
    transform, uniforms = AUGMENTATIONS[name]
    x, u = images(0, 4, 3, 32, 32), draw(1, 4, uniforms)
    with torch.autocast("cpu", torch.bfloat16):
        y = transform(x, u)
    assert torch.equal(y, transform(x, u))


@every
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), cut=st.integers(0, 5), channels=st.sampled_from([1, 3]))
def test_a_sample_does_not_depend_on_its_batch(name: str, seed: int, n: int, cut: int, channels: int) -> None:
    transform, uniforms = AUGMENTATIONS[name]
    x, u = images(seed, n, channels, 16, 16), draw(seed + 1, n, uniforms)
    parts = [transform(a, b) for a, b in zip(x.tensor_split([cut]), u.tensor_split([cut]), strict=True)]
    torch.testing.assert_close(transform(x, u), torch.cat(parts), rtol=1e-5, atol=1e-6)


@every
def test_gradients_against_finite_differences(name: str) -> None:
    transform, uniforms = AUGMENTATIONS[name]
    x, u = images(0, 2, 1, 8, 8).double().requires_grad_(), draw(1, 2, uniforms)
    assert torch.autograd.gradcheck(lambda x: transform(x, u), (x,))


@every
def test_every_sample_gets_a_gradient(name: str) -> None:
    transform, uniforms = AUGMENTATIONS[name]
    x, u = images(0, 16, 3, 16, 16).requires_grad_(), draw(1, 16, uniforms)
    (gradient,) = torch.autograd.grad(transform(x, u).square().sum(), x)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().sum(1) > 0).all()


@every
def test_every_uniform_decides_something(name: str) -> None:
    transform, uniforms = AUGMENTATIONS[name]
    x, u = images(0, 1, 3, 32, 32), torch.full((1, uniforms), 0.2, dtype=torch.float64)
    u[:, 13:] = 0.8  # ADA: everything happens, and by no parameter of 0
    for column in range(uniforms):
        other = u.clone()
        other[:, column] = 1 - u[:, column]
        assert not torch.allclose(transform(x, u), transform(x, other), atol=1e-3), f"column {column} changes nothing"


# DiffAugment.


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), channels=st.sampled_from([1, 3]))
def test_color_is_brightness_then_saturation_then_contrast(seed: int, channels: int) -> None:
    x, u = images(seed, 2, channels, 8, 8), draw(seed + 1, 2, DIFF_AUGMENT_UNIFORMS)
    for y, image, (b, s, c) in zip(diff_augment(x, u, ("color",)), x.double().numpy(), u[:, :3].tolist(), strict=True):
        image = image + (b - 0.5)
        image = np.stack([image.mean(0) + 2 * s * (plane - image.mean(0)) for plane in image])
        image = image.mean() + (c + 0.5) * (image - image.mean())
        np.testing.assert_allclose(y, image, atol=1e-5)


@pytest.mark.parametrize("size", [32, 512])
def test_translation_moves_by_every_whole_pixel_up_to_an_eighth(size: int) -> None:
    """Ends included, evenly, along both axes by themselves; what comes in is 0."""
    shifts = 2 * (size // 8) + 1
    middle = torch.full((shifts,), 0.5, dtype=torch.float64)
    steps = (torch.arange(shifts, dtype=torch.float64) + 0.5) / shifts
    u = draw(0, shifts, DIFF_AUGMENT_UNIFORMS)
    x = images(1, 1, 1, size, size) + 3  # nowhere 0
    for columns, axis in (((steps, middle), 0), ((middle, steps), 1)):
        u[:, 3:5] = torch.stack(columns, 1)
        for i in {0, 1, shifts // 2, shifts - 2, shifts - 1}:
            by = i - size // 8
            expected = np.zeros((size, size))
            source, target = (slice(max(-by, 0), size - max(by, 0)), slice(max(by, 0), size - max(-by, 0)))
            index = (slice(None),) * axis
            expected[(*index, target)] = x[0, 0].numpy()[(*index, source)]
            np.testing.assert_array_equal(diff_augment(x, u[i : i + 1], ("translation",))[0, 0], expected)


@settings(max_examples=20)
@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_cutout_is_a_square_of_half_the_size_around_any_place(down: float, across: float) -> None:
    u = torch.tensor([[0.5] * 5 + [down, across]], dtype=torch.float64)
    y = diff_augment(torch.ones(1, 3, 32, 32), u, ("cutout",))
    centre = [math.floor(v * 33) for v in (down, across)]
    expected = np.ones((3, 32, 32))
    expected[:, max(centre[0] - 8, 0) : centre[0] + 8, max(centre[1] - 8, 0) : centre[1] + 8] = 0
    np.testing.assert_array_equal(y[0], expected)


def test_the_policy_is_followed_in_its_order() -> None:
    x, u = images(0, 2, 3, 32, 32), draw(1, 2, DIFF_AUGMENT_UNIFORMS)
    assert torch.equal(diff_augment(x, u, ()), x)
    assert torch.equal(diff_augment(x, u, ("cutout", "color")), diff_augment(diff_augment(x, u, ("cutout",)), u, ("color",)))
    assert not torch.allclose(diff_augment(x, u, ("cutout", "color")), diff_augment(x, u, ("color", "cutout")))
    with pytest.raises(KeyError, match="cutuot"):
        diff_augment(x, u, ("cutuot",))  # type: ignore[arg-type]


# Consistency.


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_consistency_mirrors_then_shifts_the_reflected_image(seed: int) -> None:
    x, u = images(seed, 2, 3, 16, 16), draw(seed + 1, 2, CONSISTENCY_UNIFORMS)
    for y, image, (mirror, down, across) in zip(consistency_transform(x, u), x.numpy(), u.tolist(), strict=True):
        image = np.pad(image[:, :, ::-1] if mirror < 0.5 else image, ((0, 0), (2, 2), (2, 2)), "reflect")
        top, left = 4 - math.floor(down * 5), 4 - math.floor(across * 5)
        np.testing.assert_array_equal(y, image[:, top : top + 16, left : left + 16])


def test_mirroring_twice_is_nothing() -> None:
    x, u = images(0, 1, 3, 32, 32), torch.tensor([[0.1, 0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(consistency_transform(x, u), x.flip(3))
    assert torch.equal(consistency_transform(consistency_transform(x, u), u), x)
