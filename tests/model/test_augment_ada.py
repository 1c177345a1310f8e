"""ADA, against its paper's definition applied to one image at a time in numpy, and its controller."""

import math
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from model.augment import ADA_UNIFORMS, ada, next_p
from tests.support.noise import draw, images

Array = NDArray[np.float64]
channels = pytest.mark.parametrize("channels", [1, 3])

# Columns of u: first whether each transform happens, then how.
WHETHER = {
    name: column
    for column, name in enumerate(
        ("before", "after", "hue", "pixels", "mirror", "flip", "quarters", "scale", "stretch", "brightness", "contrast",
         "saturation", "fraction")
    )
}  # fmt: skip
HOW = {
    name: 13 + column
    for column, name in enumerate(
        ("before", "after", "hue", "right", "down", "mirror", "flip", "quarters", "scale", "stretch", "brightness", "contrast",
         "saturation", "fraction right", "fraction down")
    )
}  # fmt: skip


def only(transform: str, n: int = 1, **how: float) -> Tensor:
    """Uniforms [n, ADA_UNIFORMS] with which at p = 0.5 nothing but `transform` happens."""
    u = torch.full((n, ADA_UNIFORMS), 0.75, dtype=torch.float64)
    u[:, WHETHER[transform]] = 0.25
    for name, value in how.items():
        u[:, HOW[name]] = value
    return u


def move(right: float, down: float) -> Array:
    return np.array([[1, 0, right], [0, 1, down], [0, 0, 1]], np.float64)


def enlarge(across: float, down: float) -> Array:
    return np.diag([across, down, 1])


def turn(angle: float) -> Array:
    """Clockwise as seen: y points down."""
    return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])


def appendix_b(x: Array, u: list[float], p: float) -> Array:
    """The paper's pipeline on one image [C, s, s]: matrices of pixels from the centre, then of homogeneous colours."""
    size = x.shape[1]

    def on(name: str) -> bool:
        return u[WHETHER[name]] < (1 - math.sqrt(1 - p) if name in ("before", "after") else p)

    def uniform(name: str, low: float, high: float) -> float:
        return low + (high - low) * u[HOW[name]]

    def lognormal(name: str, deviation: float) -> float:
        return math.exp(NormalDist(0, deviation * math.log(2)).inv_cdf(u[HOW[name]]))

    g = np.eye(3)
    if on("mirror"):
        g = enlarge(1 - 2 * (u[HOW["mirror"]] >= 0.5), 1) @ g
    if on("quarters"):
        g = turn(math.pi / 2 * math.floor(4 * u[HOW["quarters"]])) @ g
    if on("pixels"):
        g = move(*(round(size * uniform(axis, -0.125, 0.125)) for axis in ("right", "down"))) @ g
    if on("scale"):
        g = enlarge(lognormal("scale", 0.2), lognormal("scale", 0.2)) @ g
    if on("before"):
        g = turn(uniform("before", -math.pi, math.pi)) @ g
    if on("stretch"):
        g = enlarge(lognormal("stretch", 0.2), 1 / lognormal("stretch", 0.2)) @ g
    if on("after"):
        g = turn(uniform("after", -math.pi, math.pi)) @ g
    if on("fraction"):
        g = move(*(size * NormalDist(0, 0.125).inv_cdf(u[HOW[f"fraction {axis}"]]) for axis in ("right", "down"))) @ g

    c, v = np.eye(4), np.array([1, 1, 1, 0]) / math.sqrt(3)
    grey_axis = np.outer(v, v)
    if on("brightness"):
        c[:3, 3] += NormalDist(0, 0.2).inv_cdf(u[HOW["brightness"]])
    if on("contrast"):
        c = np.diag([lognormal("contrast", 0.5)] * 3 + [1]) @ c
    if on("flip") and u[HOW["flip"]] >= 0.5:
        c = (np.eye(4) - 2 * grey_axis) @ c
    if on("hue"):  # Rodrigues' rotation around v
        angle, cross = uniform("hue", -math.pi, math.pi), np.zeros((4, 4))
        cross[:3, :3] = np.cross(np.eye(3), v[:3])
        c = (np.eye(4) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross) @ c
    if on("saturation"):
        c = (grey_axis + (np.eye(4) - grey_axis) * lognormal("saturation", 1)) @ c

    margin = 20 * size
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin)), "symmetric")
    centre, back, y = (size - 1) / 2, np.linalg.inv(g), np.empty((3, size, size))
    for row in range(size):
        for column in range(size):
            across, down = (back @ (column - centre, row - centre, 1))[:2] + centre + margin
            j, i = math.floor(across), math.floor(down)
            cell = padded[:, i : i + 2, j : j + 2]
            value = np.array([1 - down + i, down - i]) @ cell @ np.array([1 - across + j, across - j])
            y[:, row, column] = (c @ (*np.broadcast_to(value, 3), 1))[:3]
    return y[: len(x)]  # of grey, all three are the same


@channels
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), p=st.sampled_from([0.3, 0.7, 1.0]))
def test_ada_is_the_papers_pipeline(channels: int, seed: int, p: float) -> None:
    x, u = images(seed, 2, channels, 8, 8).double(), draw(seed + 1, 2, ADA_UNIFORMS)
    for y, image, row in zip(ada(x, u, p), x.numpy(), u.tolist(), strict=True):
        np.testing.assert_allclose(y, appendix_b(image, row, p), atol=1e-7)


@channels
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 4))
def test_ada_at_0_is_nothing(channels: int, seed: int, n: int) -> None:
    x = images(seed, n, channels, 24, 24)
    assert torch.equal(ada(x, draw(seed + 1, n, ADA_UNIFORMS), 0.0), x)


def test_an_image_to_which_nothing_happens_is_left_bit_for_bit() -> None:
    x, u = images(0, 2, 3, 24, 24), draw(1, 2, ADA_UNIFORMS)
    u[0, :13] = 0.6
    u[1, :13] = 0.4
    y = ada(x, u, 0.5)
    assert torch.equal(y[0], x[0]) and not torch.allclose(y[1], x[1], atol=0.1)


@channels
@pytest.mark.parametrize("size", [32, 256])
def test_blitting_moves_pixels_unchanged(channels: int, size: int) -> None:
    x = images(0, 1, channels, size, size)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    mirrored = ada(x, only("mirror", mirror=0.9), 0.5)
    close(mirrored, x.flip(3))
    close(ada(mirrored, only("mirror", mirror=0.9), 0.5), x)
    close(ada(x, only("mirror", mirror=0.1), 0.5), x)
    for quarters in range(4):
        close(ada(x, only("quarters", quarters=(quarters + 0.5) / 4), 0.5), x.rot90(-quarters, (2, 3)))
    eighth = size // 8
    moved = ada(x, only("pixels", right=1 - 1e-9, down=0.5), 0.5)
    close(moved[..., eighth:], x[..., :-eighth])
    close(moved[..., :eighth], x[..., :eighth].flip(3))


@pytest.mark.parametrize("transform", WHETHER)
def test_each_transform_happens_with_probability_p(transform: str) -> None:
    """Rotation has two chances, which add up to p. Half of the flips and a quarter of the quarter turns are none."""
    n, p = 4000, 0.4
    x = images(0, 1, 3, 8, 8).expand(n, -1, -1, -1)
    u, random = only(transform, n), draw(1, n, ADA_UNIFORMS)
    changing = ["before", "after"] if transform in ("before", "after") else [transform]
    for name in changing:
        u[:, WHETHER[name]] = random[:, WHETHER[name]]
    u[:, 13:] = random[:, 13:]
    changed = ((ada(x, u, p) - x).flatten(1).abs().amax(1) > 1e-5).double().mean()
    # A translation of less than half a pixel of 8 rounds to none: half of each axis.
    share = {"mirror": 0.5, "flip": 0.5, "quarters": 0.75, "pixels": 0.75}.get(transform, 1.0)
    assert abs(changed - share * p) < 0.03  # four standard deviations


def test_the_controller_goes_from_0_to_1_in_one_ramp() -> None:
    p = 0.0
    for _ in range(500):
        assert p < 1
        p = next_p(p, 0.7, 1000)
    assert p == pytest.approx(1) and next_p(p, 0.7, 1000) == 1
    assert next_p(0.5, 0.6, 1000) == 0.5
    assert next_p(0.5, 0.59, 1000) == pytest.approx(0.498)
    assert next_p(0.5, 0.3, 100, target=0.2, ramp=1000) == pytest.approx(0.6)


@given(p=st.floats(0, 1), sign=st.floats(-1, 1), batch=st.integers(0, 10**7))
def test_p_stays_a_probability(p: float, sign: float, batch: int) -> None:
    assert 0 <= next_p(p, sign, batch) <= 1
