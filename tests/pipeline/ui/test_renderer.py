"""What the page draws is what `generate` and `walks` draw, whatever was drawn before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.sampling import draw, generate, walks
from pipeline.generation.load import load_generator
from pipeline.ui import renderer
from pipeline.ui.renderer import Point, Renderer, painter_of
from tests.support.saved_run import save_run, short_standing_statistics


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("painter") / "run"
    save_run(folder, shards, mode="off")
    return folder


@pytest.fixture
def ours(run: Path, monkeypatch: pytest.MonkeyPatch) -> Renderer:
    short_standing_statistics(monkeypatch)
    return painter_of(load_generator(run))


@pytest.mark.long
def test_samples_are_those_of_a_generator_that_never_drew_others(ours: Renderer, run: Path) -> None:
    labels = [0, 3, 3, 1]
    wanted = {
        truncation: generate(
            load_generator(run, truncation=truncation).generator, torch.tensor(labels), seed=5, truncation=truncation
        )
        for truncation in (None, 0.5, 0.8)
    }
    for truncation in (0.5, None, 0.8, 0.5, 0.8, None):
        assert torch.equal(ours.samples(labels, 5, truncation), wanted[truncation]), truncation
    assert (wanted[None].int() - wanted[0.5].int()).abs().max() > 10
    assert ours.classes == ("bars", "blob", "checks", "stripes") and ours.images == 4096
    assert ours.weights_sha256 == load_generator(run).weights_sha256


def test_one_sample_is_the_same_alone(ours: Renderer) -> None:
    many = ours.samples([0, 1, 2, 3], 7, 0.7).int()
    for i in range(4):
        assert (ours.sample(Point(i, 7, i), 0.7).int() - many[i]).abs().max() <= 1  # sums of another batch


def test_a_walk_between_samples_of_one_seed_is_that_of_the_command(ours: Renderer, run: Path) -> None:
    generator = load_generator(run, truncation=0.9).generator
    z, weights = walks(generator, torch.tensor([2, 0]), 5, seed=4, truncation=0.9)
    assert torch.equal(ours.walk(Point(2, 4, 0), Point(0, 4, 1), 5, 0.9), draw(generator, z, weights))


def test_a_walk_begins_and_ends_at_samples_of_any_seeds(ours: Renderer) -> None:
    a, b = Point(1, 11, 3), Point(2, 12, 40)
    images = ours.walk(a, b, 6, None).int()
    assert images.shape == (6, 3, 32, 32)
    ends = [ours.sample(point, None).int() for point in (a, b)]
    assert all((images[place] - end).abs().max() <= 1 for place, end in zip((0, -1), ends, strict=True))
    assert all((images[2] - end).abs().max() > 3 for end in ends)


def test_few_truncations_stay_in_memory_and_all_are_right(ours: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer, "_KEPT", 3)
    before = {t: ours.samples([0, 1], 0, t) for t in (None, 0.3, 0.6, 0.9)}
    assert all(torch.equal(ours.samples([0, 1], 0, t), images) for t, images in before.items())


@pytest.mark.parametrize("rows", [1, 2])
def test_an_import_is_truncated_as_the_sample_command_does_it(ours: Renderer, run: Path, rows: int) -> None:
    trained = load_generator(run)
    state = trained.generator.state_dict()
    recorded = {name: torch.stack([tensor] * rows) for name, tensor in state.items() if name.endswith((".mean", ".var"))}
    imported = replace(trained, recorded=recorded | {"truncations": torch.linspace(0.5, 1, rows)})
    how = {"truncation": 0.6, "method": "truncated-normal" if rows == 1 else "scaled-truncated-normal"}
    page, labels = painter_of(imported), torch.tensor([2, 0])
    assert torch.equal(page.samples([2, 0], 4, 0.6), generate(trained.generator, labels, seed=4, **how))
    z, weights = walks(trained.generator, labels, 5, seed=4, **how)
    assert torch.equal(page.walk(Point(2, 4, 0), Point(0, 4, 1), 5, 0.6), draw(trained.generator, z, weights))
