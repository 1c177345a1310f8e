import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schedule import OptimConfig, ema_decay, lr_scale, make_optimizer


def test_the_learning_rate_rises_holds_and_falls() -> None:
    config = OptimConfig(warmup=100, decay_from=600)
    scales = [lr_scale(config, images, 1000) for images in (0, 49, 99, 100, 600, 700, 800, 1000, 1200)]
    assert scales == pytest.approx([0.01, 0.5, 1, 1, 1, 0.75, 0.5, 0, 0])


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_the_default_is_constant(images: int, total: int) -> None:
    assert lr_scale(OptimConfig(), images, total) == 1


@given(warmup=st.integers(0, 500), decay_from=st.none() | st.integers(0, 2000), images=st.integers(0, 999))
def test_no_step_of_a_run_of_1000_images_leaves_0_to_1(warmup: int, decay_from: int | None, images: int) -> None:
    scale = lr_scale(OptimConfig(warmup=warmup, decay_from=decay_from), images, 1000)
    assert 0 < scale <= 1


@given(st.sampled_from([32, 64, 256, 2048]))
def test_an_average_forgets_half_in_its_half_life_at_any_batch(batch: int) -> None:
    config = OptimConfig(ema_half_life=4096)
    weight = 1.0
    for step in range(4096 // batch):
        weight *= ema_decay(config, (step + 1) * batch, batch)
    assert weight == pytest.approx(0.5)


def test_the_default_average_is_the_papers() -> None:
    assert ema_decay(OptimConfig(), 0, 2048) == pytest.approx(0.9999, abs=2e-6)


def test_before_its_start_the_average_is_the_generator() -> None:
    config = OptimConfig(ema_start=1000)
    assert ema_decay(config, 999, 64) == 0
    assert ema_decay(config, 1000, 64) > 0.99


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_optimizers_move_by_the_learning_rate(optimizer: str) -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    before = network.weight.item()
    made = make_optimizer(OptimConfig(optimizer=optimizer), network, 0.25)  # type: ignore[arg-type]
    network.weight.sum().backward()
    made.step()
    assert before - network.weight.item() == pytest.approx(0.25, rel=1e-4)
