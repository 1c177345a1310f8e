"""What `biggan describe` prints, and how it counts."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from jobs.cli import main
from model import resample
from model.batchnorm import set_group
from model.config import ModelConfig
from model.describe import Layer, describe_network
from model.latents import RandomStream
from model.layers import SelfAttention
from model.networks import build_discriminator, build_generator
from pipeline.config import load_config
from pipeline.engine.batch import BatchConfig, plan_batch
from pipeline.engine.objective import Objective, ObjectiveConfig
from pipeline.engine.ranks import Ranks
from pipeline.engine.steps import d_step, fakes, g_step
from tests.support.mistakes import refusal
from tests.support.plain_engine import Plain

PARTS = ("generator", "discriminator")


def described(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["describe", *argv, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


class Small(nn.Module):
    """A convolution, a strided one and a linear layer, each of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5 * 4 * 4, 7)
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 2, stride=2, bias=False)])
        self.never = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.convs[1](F.relu(self.convs[0](x)))).flatten(1))


@pytest.mark.long
def test_a_small_network_against_a_hand_count() -> None:
    found = describe_network(Small(), torch.empty(1, 3, 8, 8))
    # A convolution: 2 x inputs x kernel x outputs x places.
    assert found.layers == [  # in the order of the forward, not of the definition
        Layer("convs.0", "Conv2d", (6, 8, 8), 3 * 6 * 9 + 6, 2 * 3 * 9 * 6 * 64),
        Layer("convs.1", "Conv2d", (5, 4, 4), 6 * 5 * 4, 2 * 6 * 4 * 5 * 16),
        Layer("linear", "Linear", (7,), 80 * 7 + 7, 2 * 80 * 7),
    ]
    assert (found.parameters, found.flops) == (168 + 120 + 567, 20_736 + 3_840 + 1_120)


@pytest.mark.long
def test_attention_and_upsampling_against_a_hand_count(capsys: pytest.CaptureFixture[str]) -> None:
    """The only layers whose work is not that of their weights at the output's size."""
    found = described(capsys, "fashion-mnist", "model.g_attention=[32]")
    layers = {layer["name"]: layer for layer in found["generator"]["layers"]}
    c, n = 16, 32 * 32  # ch x the last width, at 32 x 32
    projections = 2 * n * (c * c // 8 * 2 + c * c // 2 * 2)
    assert layers["attention.2"]["flops"] == projections + 2 * n * (n // 4) * (c // 8 + c // 2)
    assert layers["attention.2"]["shape"] == [16, 32, 32]
    # 32 -> 16 channels to 32 x 32: two 3x3 convolutions there, the shortcut at 16 x 16, four gains and biases from 32 + 16.
    convolutions = 2 * n * 9 * (32 * 16 + 16 * 16) + 2 * n // 4 * 32 * 16
    assert layers["blocks.2"]["flops"] == convolutions + 2 * 48 * 2 * (32 + 16)


NETWORKS = {
    "biggan": [],
    "unshared": ["model.shared_dim=0", "model.hierarchical=false"],
    "unconditional": ["model.num_classes=1"],
    "deep": ["model.generator=biggan-deep", "model.discriminator=biggan-deep", "model.d_attention=[16]"],
    "older": [
        *("model.generator=transposed", "model.g_widths=null"),
        *("model.discriminator=strided", "model.d_widths=null", "model.d_condition=concat"),
    ],
}


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_the_rows_add_up_to_the_totals(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = described(capsys, "fashion-mnist", "model.g_attention=[16]", *NETWORKS[name])
    for part in PARTS:
        network = found[part]
        for total in ("parameters", "flops"):
            assert network[total] == sum(layer[total] for layer in network["layers"]) > 0
        assert type(network["parameters"]) is type(network["flops"]) is int
    assert found["generator"]["layers"][-1]["shape"] == [1, 32, 32]


@pytest.mark.long
@pytest.mark.parametrize("d_steps", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_counted_as_what_the_steps_compute(
    name: str, d_steps: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pipeline.engine.steps` itself on real tensors, with spectral norm, penalties aside; and a count by hand."""
    monkeypatch.setattr(resample, "ENOUGH", float("inf"))
    arguments = ["fashion-mnist", "model.g_attention=[16]", *NETWORKS[name], f"batch.d_steps={d_steps}"]
    found = described(capsys, *arguments)
    config = load_config(arguments[0], arguments[1:])
    counted = step_flops(config.model)
    assert found["training"] == {
        "d_steps": d_steps,
        "flops_per_image": counted[0] + counted[1] / d_steps,
        "d_step": counted[0],
        "g_step": counted[1],
    }


def step_flops(model: ModelConfig) -> list[float]:
    """FLOPs an image of a real D step and a real G step of two micro-batches of two."""
    plan, ranks = plan_batch(BatchConfig(4, 2, 2), 1), Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    g, d = Plain(build_generator(model)), Plain(build_discriminator(model))
    for network in (g.module, d.module):
        set_group(network, 2)
        for layer in network.modules():
            if isinstance(layer, SelfAttention):
                layer.eval()  # products of all pairs, as the formula has them
    objective = Objective(ObjectiveConfig(), plan, ranks, 0)
    pair = (torch.zeros(2, model.channels, model.resolution, model.resolution), torch.zeros(2, dtype=torch.int64))
    draw = fakes(model, plan, ranks, seed=0, stream=RandomStream.D_STEP, position=0)
    counts = []
    for step in (
        lambda: d_step(g, d, [pair] * 2, draw, objective, position=0),
        lambda: g_step(g, d, draw, objective, position=0),
    ):  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as counter:
            step()
        counts.append(counter.get_total_flops() / 4)
    return counts


def test_training_of_a_small_network_against_a_hand_count(capsys: pytest.CaptureFixture[str]) -> None:
    """A backward is twice a forward, but for the gradients of latents and images, and of the weights of a frozen D."""
    found = described(capsys, "fashion-mnist")
    g, d = (found[part]["flops"] for part in PARTS)
    rows = {row["name"]: row["flops"] for part in PARTS for row in found[part]["layers"]}
    first_conv, shortcut = 2 * 9 * 16 * 32 * 32, 2 * 1 * 16 * 16 * 16  # of D's first block, 1 -> 16 channels at 32 x 32
    assert found["training"]["d_step"] == g + 2 * (3 * d - first_conv - shortcut)
    assert found["training"]["g_step"] == 3 * g - rows["seed"] + 2 * d


@pytest.mark.long
def test_the_tables_say_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = described(capsys, "fashion-mnist")
    assert main(["describe", "fashion-mnist"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for part in PARTS:
        start = next(i for i, line in enumerate(lines) if line.startswith(part))
        assert lines[start].split() == [part, "kind", "output", "parameters", "MFLOP"]
        for line, layer in zip(lines[start + 1 :], found[part]["layers"], strict=False):
            name, kind, *shape, parameters, megaflop = line.split()
            assert (name, kind, shape) == (layer["name"], layer["kind"], " x ".join(map(str, layer["shape"])).split())
            assert (parameters, megaflop) == (f"{layer['parameters']:,}", f"{layer['flops'] / 1e6:,.2f}")
    assert "223,809 parameters" in lines[-3] and "305,649 parameters" in lines[-2] and "GFLOP" in lines[-1]


@pytest.mark.long
def test_the_published_form_costs_more(capsys: pytest.CaptureFixture[str]) -> None:
    """42.45 and 21.94 GFLOP were counted for BigGAN-128: with shortcuts at the larger size and spectral norm's work."""
    found = described(capsys, "biggan-128")
    g, d = [1536, 1536, 768, 384, 192, 96], [96, 192, 384, 768, 1536]
    g_shortcuts = sum(2 * i * o * size**2 for (i, o), size in zip(pairwise(g), (8, 16, 32, 64, 128), strict=True))
    d_shortcuts = sum(2 * i * o * size**2 for (i, o), size in zip(pairwise(d), (64, 32, 16, 8), strict=True))
    for part, shortcuts, published in (("generator", g_shortcuts, 42.45), ("discriminator", d_shortcuts, 21.94)):
        network = found[part]
        # sigma is a product with a vector, 2 FLOPs a weight, and W / sigma is one more.
        counted = network["flops"] + 0.75 * shortcuts + 3 * network["parameters"]
        assert counted / 1e9 == pytest.approx(published, abs=0.01)


def test_mistakes_are_one_line_with_the_configurations_exit_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for argv, says in (
        (["biggan-129"], "presets are"),
        (["biggan-128", "model.chh=64"], "did you mean model.ch?"),
        (["biggan-128", "model.resolution=100"], "the nearest is"),
        ([str(tmp_path / "absent.yaml")], "absent.yaml"),
    ):
        code, line = refusal(capsys, "describe", *argv)
        assert code == 78 and says in line
