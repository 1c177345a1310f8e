from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.optim import OptimConfig, batch_scale, ema_decay, lr_scale, make_optimizer


def test_the_learning_rate_rises_holds_and_falls() -> None:
    config = OptimConfig(warmup=100, decay_from=600)
    scales = [lr_scale(config, images, 1000, 10) for images in (0, 40, 80, 90, 100, 600, 700, 800, 1000, 1200)]
    assert scales == pytest.approx([0.1, 0.5, 0.9, 1, 1, 1, 0.75, 0.5, 0, 0])


@given(warmup=st.integers(1, 10_000), batch=st.integers(1, 512))
def test_the_first_step_of_a_warm_up_is_no_loss_and_its_last_is_exactly_whole(warmup: int, batch: int) -> None:
    config = OptimConfig(warmup=warmup)
    steps = -(-warmup // batch)
    scales = [lr_scale(config, step * batch, 10**9, batch) for step in range(steps + 1)]
    assert scales[0] >= min(1, batch / warmup) and scales == sorted(scales)
    assert scales[-2:].count(1.0) == len(scales[-2:]) and all(scale < 1 for scale in scales[:-2])


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.integers(1, 512))
def test_the_default_is_constant(images: int, total: int, batch: int) -> None:
    assert lr_scale(OptimConfig(), images, total, batch) == 1


@given(st.integers(0, 500), st.none() | st.integers(0, 2000), st.integers(0, 999), st.integers(1, 300))
def test_no_step_of_a_run_of_1000_images_leaves_0_to_1(warmup: int, decay_from: int | None, images: int, batch: int) -> None:
    scale = lr_scale(OptimConfig(warmup=warmup, decay_from=decay_from), images, 1000, batch)
    assert 0 < scale <= 1


@given(batch=st.integers(1, 8192), lr_batch=st.integers(1, 8192), images=st.integers(0, 2000))
def test_a_rule_scales_the_whole_schedule(batch: int, lr_batch: int, images: int) -> None:
    plain = lr_scale(OptimConfig(warmup=500, decay_from=900), images, 3000, batch)
    for rule, power in (("linear", 1.0), ("sqrt", 0.5)):
        config = OptimConfig(warmup=500, decay_from=900, lr_scaling=rule, lr_batch=lr_batch)  # type: ignore[arg-type]
        assert lr_scale(config, images, 3000, batch) == pytest.approx(plain * (batch / lr_batch) ** power)
        assert batch_scale(config, lr_batch) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_scaling": "sqrt"}, "lr_scaling=sqrt needs optim.lr_batch, and vice versa: set optim.lr_batch=BATCH"),
        ({"lr_batch": 256}, "set optim.lr_scaling=linear or optim.lr_scaling=sqrt"),
        ({"lr_scaling": "linear", "lr_batch": 0}, "lr_batch=0: must be at least 1"),
    ],
)
def test_a_rule_and_its_batch_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OptimConfig(**settings)


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
