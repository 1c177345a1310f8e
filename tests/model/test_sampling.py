"""Images of a generator: a sample belongs to its seed, number and class, and mixtures of classes begin and end at classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batchnorm import standing_statistics
from model.biggan import class_weights
from model.config import ModelConfig
from model.latents import RandomStream, latents, random_labels
from model.networks import Generator, build_generator
from model.sampling import draw, full_precision, generate, walks

BIGGAN = ModelConfig(resolution=32, num_classes=4, ch=4, shared_dim=8)
CONFIGS = {
    "biggan": BIGGAN,
    "biggan-deep": ModelConfig(resolution=32, num_classes=4, ch=8, shared_dim=8, generator="biggan-deep", z_dim=16),
    "transposed": ModelConfig(resolution=32, num_classes=4, ch=4, generator="transposed", z_dim=16),
    "by class": ModelConfig(resolution=32, num_classes=4, ch=4, shared_dim=0),
}


def built(config: ModelConfig) -> Generator:
    """Random weights with standing statistics."""
    torch.manual_seed(0)
    generator = build_generator(config)
    for name, parameter in generator.named_parameters():
        if "gain" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)  # else classes hardly differ yet
    z, y = latents(0, RandomStream.STANDING, 0, 32, config.latent_dim), random_labels(0, RandomStream.STANDING, 0, 32, 4)
    standing_statistics(generator, [(z, y)])
    return generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return built(BIGGAN)


def far(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest difference in steps of 1/255."""
    return int((a.int() - b.int()).abs().max())


@settings(max_examples=10)
@given(batch=st.integers(1, 9), start=st.integers(0, 8))
def test_a_sample_depends_on_its_number_and_not_on_the_batch(generator: Generator, batch: int, start: int) -> None:
    labels = torch.arange(9) % 4
    whole = generate(generator, labels, seed=1, truncation=0.7, method="scaled-normal")
    assert far(whole, generate(generator, labels, seed=1, truncation=0.7, method="scaled-normal", batch=batch)) <= 1
    rest = generate(generator, labels[start:], seed=1, start=start, truncation=0.7, method="scaled-normal")
    assert far(whole[start:], rest) <= 1


def test_seed_truncation_and_method_count(generator: Generator) -> None:
    labels = torch.zeros(2, dtype=torch.long)
    base = generate(generator, labels, seed=1)
    assert base.shape == (2, 3, 32, 32) and base.dtype == torch.uint8
    others = [generate(generator, labels, seed=2), generate(generator, labels, seed=1, truncation=0.5)]
    others.append(generate(generator, labels, seed=1, truncation=0.5, method="scaled-truncated-normal"))
    assert all(far(base, other) > 5 for other in others) and far(others[1], others[2]) > 5
    assert generate(generator, labels[:0], seed=1).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_hot_weights_are_labels_and_a_walk_joins_two_samples(name: str) -> None:
    generator = built(CONFIGS[name])
    labels = torch.tensor([0, 1, 2, 3])
    z = latents(3, RandomStream.SAMPLES, 0, 4, generator.config.latent_dim)
    with torch.no_grad():
        torch.testing.assert_close(generator(z, class_weights(labels, 4)), generator(z, labels))
    points, weights = walks(generator, labels, 5, seed=3)
    assert points.shape == (10, z.shape[1]) and weights.shape == (10, 4)
    ends = [0, 4, 5, 9]
    assert torch.equal(points[ends], z) and torch.equal(weights[ends], class_weights(labels, 4))
    assert weights[2].tolist() == [0.5, 0.5, 0, 0] and weights[6].tolist() == [0, 0, 0.75, 0.25]
    images = draw(generator, points, weights, batch=3)
    assert far(images[ends], generate(generator, labels, seed=3)) <= 1
    # In between it is another picture, and other than a walk in z or in the class alone.
    with torch.no_grad():
        assert not torch.allclose(generator(points[2:3], weights[2:3]), generator(points[2:3], labels[:1]), atol=1e-3)
        assert not torch.allclose(generator(points[2:3], weights[2:3]), generator(z[:1], weights[2:3]), atol=1e-3)


def test_drawing_is_fp32_whatever_the_caller_set(generator: Generator) -> None:
    labels = torch.arange(4)
    wanted = generate(generator, labels, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wanted, generate(generator, labels, seed=0))
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), full_precision(torch.device("cpu")):
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 == before
    assert torch.is_grad_enabled()


@pytest.mark.gpu
def test_cpu_and_cuda_draw_the_same(generator: Generator) -> None:
    labels = torch.arange(16) % 4
    ours = generate(generator, labels, seed=1)
    z = latents(1, RandomStream.SAMPLES, 0, 16, generator.config.latent_dim)
    seen: list[torch.Tensor] = []
    copy = built(BIGGAN).cuda().eval()
    copy.load_state_dict(generator.state_dict())
    handle = copy.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu()))
    theirs = generate(copy, labels, seed=1)
    handle.remove()
    assert torch.equal(torch.cat(seen), z)
    assert far(ours, theirs) <= 1
