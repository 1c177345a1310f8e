import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.data.dataset import load_data
from pipeline.data.loader import DataConfig, DataLoader, MicroBatch, PartConfig, load_all
from pipeline.data.manifest import dump_manifest, load_manifest
from pipeline.errors import ConfigError
from pipeline.packing.pack import PackConfig, pack
from pipeline.packing.sources.detect import open_source


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of 32 px in two classes, one of which the patterns have too."""
    folder = tmp_path_factory.mktemp("colours")
    for label, name in enumerate(("red", "stripes")):
        (folder / "src" / name).mkdir(parents=True)
        for i in range(15):
            Image.new("RGB", (32, 32), (200, 10 * i, 100 * label)).save(folder / "src" / name / f"{i}.png")
    (source,) = open_source(str(folder / "src"))
    pack(source, str(folder / "dst"), PackConfig(resolution=32), lambda _: None)
    return folder / "dst"


def mixed(shards: Path, colours: Path, weight: float = 1.0) -> DataConfig:
    return DataConfig(mix={"patterns": PartConfig(str(shards), 3.0), "colours": PartConfig(str(colours), weight)})


def take(count: int, config: DataConfig, **options: Any) -> list[MicroBatch]:
    place = {"seed": 1, "global_batch": 64, "micro_batch": 64, "rank": 0, "world_size": 1} | options
    with DataLoader(config, load_data(config), **place) as batches:
        return list(islice(batches, count))


def joined(batches: list[MicroBatch], field: str) -> torch.Tensor:
    return torch.cat([getattr(batch, field) for batch in batches])


def test_a_mixture_is_one_set(shards: Path, colours: Path) -> None:
    data = load_data(mixed(shards, colours))
    assert data.classes == ("bars", "blob", "checks", "stripes", "red")
    assert data.class_counts == (64, 64, 64, 79, 15)
    assert (data.samples, data.resolution, data.channels) == (286, 32, 3)
    other = load_data(mixed(shards, colours, 2.0))
    assert len({data.fingerprint, other.fingerprint, load_manifest(str(shards)).fingerprint}) == 3


@pytest.mark.long
def test_each_part_has_its_share_its_epochs_and_its_labels(shards: Path, colours: Path) -> None:
    batches = take(40, mixed(shards, colours))
    samples, epochs = joined(batches, "samples"), joined(batches, "epochs")
    assert abs((samples >= 256).float().mean().item() - 0.25) < 0.01
    for first, end in ((0, 256), (256, 286)):
        part = (samples >= first) & (samples < end)
        for epoch in range(epochs[part].max().item()):
            seen = samples[part & (epochs == epoch)]
            assert len(seen.unique()) == len(seen)
        # Lanes go from epoch to epoch on their own: the last but one may not be over yet in all of them.
        assert sorted(samples[part & (epochs == 0)].tolist()) == list(range(first, end))
    known_images, known_labels = [], []
    for uri, to in ((shards, (0, 1, 2, 3)), (colours, (4, 3))):
        images, labels = load_all(DataConfig(uri=str(uri)), load_manifest(str(uri)))
        known_images.append(images)
        known_labels.append(torch.tensor(to)[labels])
    assert torch.equal(joined(batches, "images"), torch.cat(known_images)[samples])
    assert torch.equal(joined(batches, "labels"), torch.cat(known_labels)[samples])


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 16), (2, 32), (4, 8)])
def test_ranks_change_nothing_in_a_mixture(shards: Path, colours: Path, world_size: int, micro_batch: int) -> None:
    config = mixed(shards, colours)
    options = {"world_size": world_size, "micro_batch": micro_batch, "position": 128}
    steps = 3 * 64 // (world_size * micro_batch)
    ranks = [take(steps, config, rank=rank, **options) for rank in range(world_size)]
    in_order = [ranks[rank][step] for step in range(steps) for rank in range(world_size)]
    whole = take(5, config)[2:]
    for field in ("images", "labels", "samples", "epochs", "positions"):
        assert torch.equal(joined(in_order, field), joined(whole, field)), field


def test_parts_that_do_not_fit(shards: Path, shards_grey: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.mix.grey has 1 channels and data.mix.rgb 3"):
        load_data(DataConfig(mix={"rgb": PartConfig(str(shards)), "grey": PartConfig(str(shards_grey))}))
    with pytest.raises(ConfigError, match="no shards at nowhere"):
        load_data(DataConfig(mix={"x": PartConfig("nowhere")}))


def named(shards: Path, folder: Path, classes: tuple[str, ...]) -> str:
    """The four classes of the shards with other names."""
    shutil.copytree(shards, folder)
    manifest = replace(load_manifest(str(shards)), classes=classes)
    (folder / "manifest.json").write_bytes(dump_manifest(manifest))
    return str(folder)


def test_classes_of_one_name_in_one_set_stay_two(shards: Path, colours: Path, tmp_path: Path) -> None:
    """ImageNet has two cranes, a bird and a machine."""
    birds = named(shards, tmp_path / "birds", ("tench", "crane", "jay", "crane"))
    data = load_data(DataConfig(mix={"birds": PartConfig(birds), "colours": PartConfig(str(colours))}))
    assert data.classes == ("tench", "crane", "jay", "crane", "red", "stripes")
    assert data.class_counts == (64, 64, 64, 64, 15, 15)
    assert [part.labels for part in data.parts] == [(0, 1, 2, 3), (4, 5)]
    twice = load_data(DataConfig(mix={"one": PartConfig(birds), "two": PartConfig(birds)}))
    assert twice.class_counts == (128,) * 4
    other = named(shards, tmp_path / "other", ("crane", "a", "b", "c"))
    with pytest.raises(ConfigError, match=r"data.mix.one has 2 classes, data.mix.two has 1 class of the name crane"):
        load_data(DataConfig(mix={"one": PartConfig(birds), "two": PartConfig(other)}))
