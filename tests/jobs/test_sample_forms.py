"""What `biggan sample` writes besides a sheet of classes, and where it finds a generator."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.cli import main
from model.batchnorm import BatchNorm
from model.config import ModelConfig
from model.latents import RandomStream, latents
from model.networks import build_generator
from model.sampling import generate, walks
from pipeline.checkpoint import format, pruning
from pipeline.checkpoint.format import Progress, network_tensors
from pipeline.generation.load import load_generator, recorded_at

pytestmark = pytest.mark.usefixtures("quick")
MODEL = ModelConfig(32, 4, channels=3, ch=2, shared_dim=4, z_dim=16)


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint as `biggan import` makes it: no run, no names, statistics of three truncations."""
    torch.manual_seed(0)
    g = build_generator(MODEL)
    parts = {"generator": network_tensors(g), "ema": {name: p.detach() for name, p in g.named_parameters()}}
    parts["ema_vectors"] = {name: t for name, t in parts["generator"].items() if name.endswith((".u", ".v"))}
    parts["statistics"] = {"truncations": torch.tensor([0.0, 0.5, 1.0])}
    for name, layer in g.named_modules():
        if isinstance(layer, BatchNorm):
            parts["statistics"][f"{name}.mean"] = torch.randn(3, len(layer.mean))
            parts["statistics"][f"{name}.var"] = torch.rand(3, len(layer.var)) + 0.5
    uri = str(tmp_path_factory.mktemp("imported") / "biggan")
    pruning.save(uri, Progress(), parts, {"model": asdict(MODEL), "classes": None, "source": {}}, keep=2)
    return uri


def test_recorded_statistics_are_mixed_by_truncation(imported: str) -> None:
    recorded = format.newest(imported).tensors("statistics")  # type: ignore[union-attr]
    table = recorded["output_bn.norm.mean"]
    for truncation, wanted in (
        (0.5, table[1]),
        (0.6, 0.8 * table[1] + 0.2 * table[2]),
        (0.125, 0.75 * table[0] + 0.25 * table[1]),
        (3.0, table[2]),
        (None, table[2]),
    ):
        torch.testing.assert_close(recorded_at(recorded, truncation)["output_bn.norm.mean"], wanted)


def test_imported_weights_are_sampled_with_their_own_statistics_and_vectors(imported: str) -> None:
    """Not one power iteration is added: sigma is part of what the original computes."""
    found = load_generator(imported, truncation=0.5)
    saved = format.newest(imported).tensors("generator")  # type: ignore[union-attr]
    state = found.generator.state_dict()
    assert all(torch.equal(state[name], saved[name]) for name in state if name.endswith((".u", ".v")))
    assert found.classes == ("0", "1", "2", "3") and not found.named
    anew = load_generator(imported, truncation=0.5, standing=16)
    assert not torch.allclose(anew.generator.output_bn.norm.mean, found.generator.output_bn.norm.mean, atol=0.1)


def test_latents_are_truncated_as_the_source_of_recorded_statistics_did(imported: str, tmp_path: Path) -> None:
    """Statistics of several truncations belong to T times a normal within -2..2, and those of a run to -T..T."""
    command = ["sample", imported, str(tmp_path / "o.png"), "--per-class", "1", "--truncation", "0.5"]
    drawn = []
    for words in ([], ["--truncation-method", "scaled-truncated-normal"], ["--truncation-method", "truncated-normal"]):
        assert main([*command, *words]) == 0
        drawn.append(pixels(tmp_path / "o.png"))
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_a_checkpoint_is_found_by_each_of_its_names(imported: str, tmp_path: Path) -> None:
    drawn = []
    for source in (imported, f"{imported}/0000000000", f"{imported}/"):
        assert main(["sample", source, str(tmp_path / "o.png"), "--per-class", "1", "--classes", "2,0"]) == 0
        drawn.append(pixels(tmp_path / "o.png"))
    assert drawn[0].shape == (32, 64, 3)
    assert all(np.array_equal(drawn[0], other) for other in drawn)


def test_statistics_of_a_run_belong_to_the_truncation(registered_run: Path) -> None:
    whole, cut = (load_generator(str(registered_run), truncation=t).generator for t in (None, 0.2))
    assert float(cut.blocks[0].bn1.norm.var.mean()) < 0.2 * float(whole.blocks[0].bn1.norm.var.mean())


def test_a_truncation_sheet_has_a_row_for_each(registered_run: Path, tmp_path: Path) -> None:
    run, options = str(registered_run), ["--classes", "bars,blob"]
    sheet, row = tmp_path / "sheet.webp", tmp_path / "row.png"
    assert main(["sample", run, str(sheet), "--layout", "truncation", "--truncations", "0.3,none", *options]) == 0
    assert main(["sample", run, str(row), "--truncation", "0.3", "--per-class", "1", *options]) == 0
    with Image.open(sheet) as image:
        assert image.format == "WEBP" and image.size == (64, 64)
        found = np.asarray(image.convert("L")).astype(np.int64)
    assert abs(found[:32] - pixels(row)).max() <= 1
    assert abs(found[:32] - found[32:]).max() > 10


def test_an_interpolation_begins_and_ends_with_what_the_labels_draw(imported: str, tmp_path: Path) -> None:
    out = tmp_path / "o.png"
    options = ["--layout", "interpolation", "--per-class", "2", "--steps", "5", "--seed", "3", "--classes", "1,3"]
    assert main(["sample", imported, str(out), *options]) == 0
    found = pixels(out)
    assert found.shape == (2 * 32, 5 * 32, 3)
    g = load_generator(imported).generator
    ends = generate(g, torch.tensor([1, 3, 1, 3]), seed=3).permute(0, 2, 3, 1).numpy().astype(np.int64)
    for row in range(2):
        assert abs(found[row * 32 : row * 32 + 32, :32] - ends[2 * row]).max() <= 1
        assert abs(found[row * 32 : row * 32 + 32, -32:] - ends[2 * row + 1]).max() <= 1
    _, weights = walks(g, torch.tensor([1, 3]), 5, seed=3)
    torch.testing.assert_close(weights[2], torch.tensor([0, 0.5, 0, 0.5]))


@pytest.mark.parametrize("batch", ["3", "64"])
def test_a_set_is_the_same_as_npz_and_as_a_folder_in_any_batch(imported: str, tmp_path: Path, batch: str) -> None:
    options = ["--count", "7", "--seed", "2", "--batch", batch, "--truncation", "0.5", "--truncation-method", "scaled-normal"]
    assert main(["sample", imported, str(tmp_path / "set.npz"), *options]) == 0
    assert main(["sample", imported, f"{tmp_path}/set/", *options]) == 0
    with np.load(tmp_path / "set.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (7, 32, 32, 3) and images.dtype == np.uint8 and labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    for i, label in enumerate(labels):
        assert abs(pixels(tmp_path / "set" / str(label) / f"{i:06d}.png") - images[i].astype(np.int64)).max() <= 1
    g = load_generator(imported, truncation=0.5).generator
    z = latents(2, RandomStream.SAMPLES, 0, 7, dim=16, truncation=0.5, method="scaled-normal")
    with torch.no_grad():
        wanted = ((g(z, torch.from_numpy(labels)) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert abs(images - wanted).max() <= 1


def test_a_grid_of_random_classes_depends_on_the_seed(registered_run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        argv = ["sample", str(registered_run), str(tmp_path / f"{name}.png"), "--layout", "grid", "--seed", seed]
        assert main([*argv, "--per-class", "2"]) == 0
    a, b, c = (pixels(tmp_path / f"{name}.png") for name in "abc")
    assert a.shape == (2 * 32, 10 * 32) and np.array_equal(a, b) and not np.array_equal(a, c)
