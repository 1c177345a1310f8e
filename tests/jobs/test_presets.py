"""The presets: whole, with the published networks and the receipt that a header has to be."""

import contextlib
import functools
import io
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipeline.config import load_config
from pipeline.engine.batch import plan_batch

# BigGAN-PyTorch's networks have all of these. compare_gan asserts the two at 128 px too; its D of 98,635,298 at 256 px and of
# 98,801,378 at 512 px lack the shortcut's convolution in the last block, where inputs equal outputs.
PUBLISHED = {
    "biggan-64": (70_239_108, 45_500_449),
    "biggan-128": (70_433_988, 87_982_370),
    "biggan-256": (82_097_604, 99_225_890),
    "biggan-512": (82_468_068, 99_401_282),
    "biggan-deep-64": (49_583_876, 20_869_633),
    "biggan-deep-128": (50_244_484, 34_590_210),
    "biggan-deep-256": (55_736_708, 38_247_426),
    "biggan-deep-512": (56_019_780, 38_301_122),
    "cifar10": (4_304_387, 4_207_361),
}
IMAGENET = [name for name in PUBLISHED if name != "cifar10"]


@functools.cache
def described(name: str) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["describe", name, "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_numbers_of_parameters(name: str) -> None:
    found = described(name)
    assert (found["generator"]["parameters"], found["discriminator"]["parameters"]) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_is_a_receipt(name: str) -> None:
    """Command, hardware, hours, FID; and the GFLOP in it are what `biggan describe` counts."""
    config = load_config(name)
    text = resources.files("pipeline.presets").joinpath(f"{name}.yaml").read_text()
    header = " ".join(line[2:].strip() for line in text.splitlines() if line.startswith("# "))
    assert config.data.uri
    place = Path(config.data.uri).relative_to(Path.cwd())
    assert re.search(rf"biggan shard \S+ {place}( --resolution \d+)? && biggan train {name} Hardware", header)
    assert f"Hardware: {'1 GPU' if config.processes == 1 else '8 GPUs of 80 GB'}" in header
    assert re.search(r"Expected FID(, untruncated: published \d|: the paper has none).* Not yet run here\.", header)
    hours = re.search(r"Expected: (\d+) hours if", header)
    assert hours
    if name in IMAGENET:
        said = re.search(r"reaches (\d+) TFLOP/s .*\(([\d,]+) GFLOP for each", header)
        assert said
        flops = described(name)["training"]["flops_per_image"]
        assert said[2] == f"{flops / 1e9:,.0f}"
        assert int(hours[1]) == round(flops * config.total_images / (8 * 1e12 * int(said[1])) / 3600)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_presets_are_the_papers(name: str) -> None:
    config = load_config(name)
    _, *deep, resolution = name.split("-")
    assert (config.run, config.data.uri) == (f"runs/{name}", str(Path(f"shards/imagenet-{resolution}/train").absolute()))
    model = config.model
    assert (model.resolution, model.num_classes, model.shared_dim, model.hierarchical) == (int(resolution), 1000, 128, True)
    assert model.generator == model.discriminator == ("biggan-deep" if deep else "biggan")
    assert model.ch == (128 if deep else 96)
    assert model.bn_eps == model.sn_eps == 1e-4 and model.d_spectral and model.g_spectral
    z = {"64": 120, "128": 120, "256": 140, "512": 160}
    assert model.latent_dim == (128 if deep else z[resolution])
    optim, slow = config.optim, bool(deep) and int(resolution) >= 256
    assert (optim.g_lr, optim.d_lr) == ((2.5e-5, 2.5e-5) if slow else (5e-5, 2e-4))
    assert (optim.betas, optim.eps, optim.warmup, optim.decay_from) == ((0.0, 0.999), 1e-8, 0, None)
    assert (config.batch.global_batch, config.batch.d_steps) == (2048, 2)
    assert (config.objective.loss, config.objective.ortho) == ("hinge", 1e-4)
    assert config.total_images == 165_000 * 2 * 2048


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_average_is_0_9999_a_g_step(name: str) -> None:
    config = load_config(name)
    images = config.batch.global_batch * config.batch.d_steps
    assert config.optim.ema_half_life == pytest.approx(images * math.log(0.5) / math.log(0.9999), rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_batch_fits_the_hardware_of_the_header(name: str) -> None:
    config = load_config(name)
    plan = plan_batch(config.batch, config.processes or 8)
    held = plan.world_size * plan.micro_batch
    assert plan.norm_group == held == plan.global_batch // plan.accumulation  # as near to all 2,048 as it gets


@pytest.mark.parametrize("name", PUBLISHED)
def test_intervals_are_whole_g_steps(name: str) -> None:
    config = load_config(name)
    images = config.batch.global_batch * config.batch.d_steps
    for every in (config.total_images, config.checkpoint.every, config.log_every, config.sample_every):
        assert every % images == 0 and every <= config.total_images
