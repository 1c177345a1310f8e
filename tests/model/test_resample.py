"""One convolution of 4x4 in the place of two operations: the same numbers, gradients included, where it is used."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import resample
from model.resample import conv_pooled, pays, upsampled_conv
from model.spectral import SNConv2d


def separate_up(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)


def separate_down(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("fused", "separate"), [(upsampled_conv, separate_up), (conv_pooled, separate_down)])
@pytest.mark.parametrize("size", [(2, 2), (4, 4), (6, 10)])
def test_the_same_numbers_and_gradients(fused, separate, size: tuple[int, int], device: str) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    shapes = ((3, 5, *size), (4, 5, 3, 3), (4,))
    given = [torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True) for shape in shapes]
    one, two = fused(*given), separate(*given)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-13)
    slope = torch.randn_like(two)
    for a, b in zip(torch.autograd.grad(one, given, slope), torch.autograd.grad(two, given, slope), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [upsampled_conv, conv_pooled])
def test_it_can_be_differentiated_twice(fused) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 2, 4, 4), (2, 2, 3, 3), (2,))]
    assert torch.autograd.gradgradcheck(fused, given)


@pytest.mark.parametrize("resize", ["up", "down"])
def test_a_layer_takes_the_quicker_way_in_training_only(resize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = SNConv2d(8, 8, 3, 1e-6, resize=resize)  # type: ignore[arg-type]
    x = torch.randn(8, 8, 32, 32)
    called = []
    for name in ("conv2d", "conv_transpose2d"):
        whole = getattr(F, name)
        monkeypatch.setattr(F, name, lambda *args, whole=whole, **kw: called.append(args[1].shape[-1]) or whole(*args, **kw))
    quick = layer(x)
    plain = layer.eval()(x)
    assert called == [4, 3]
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)
    assert quick.shape == plain.shape == (8, 8, *((64, 64) if resize == "up" else (16, 16)))


def test_few_places_are_not_worth_the_sums() -> None:
    places = resample.ENOUGH
    assert pays(torch.empty(places // 16, 1, 4, 4), 2.0) and not pays(torch.empty(places // 16 - 1, 1, 4, 4), 2.0)
    assert pays(torch.empty(places // 16, 1, 8, 8), 0.5) and not pays(torch.empty(places // 16 - 1, 1, 8, 8), 0.5)


def test_kernels_are_added_up_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample._four(weight, "up"), resample._four(weight, "up").float())
        assert resample._four(weight, "up").dtype == torch.float32
    torch.testing.assert_close(resample._four(weight, "down").sum((2, 3)), weight.sum((2, 3)))


@pytest.mark.parametrize("resize", ["up", "down"])
def test_a_weight_is_in_the_order_that_its_kernel_is_made_from(resize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every forward and backward would copy it."""
    layer, seen = SNConv2d(4, 8, 3, 1e-6, resize=resize), []  # type: ignore[arg-type]
    whole = resample._four
    monkeypatch.setattr(resample, "_four", lambda weight, way: seen.append((weight, whole(weight, way))) or seen[-1][1])
    layer(torch.randn(8, 4, 32, 32))
    ((weight, kernel),) = seen
    rows = weight.permute(resample.MEMORY[resize])  # type: ignore[index]
    first, _, _, last = rows.shape
    assert rows.is_contiguous() and kernel.is_contiguous(memory_format=torch.channels_last)
    assert kernel.shape == (first, last, 4, 4) == ((4, 8, 4, 4) if resize == "up" else (8, 4, 4, 4))
