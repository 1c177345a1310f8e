from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from torch.utils import data as torch_data

from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import load_manifest
from pipeline.data.webdataset import Samples


def ours(uri: Path, count: int, **options: Any) -> list[tuple[Any, int]]:
    with DataLoader(DataConfig(uri=str(uri)), load_manifest(str(uri)), seed=3, **options) as stream:
        batches = list(islice(stream, count))
    return [(x.permute(1, 2, 0).numpy(), int(y)) for b in batches for x, y in zip(b.images, b.labels, strict=True)]


SHARE = {"global_batch": 64, "micro_batch": 16, "rank": 1, "world_size": 2, "position": 128}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_webdataset_pipeline_gives_the_streams_batches(shards: Path, workers: int) -> None:
    samples = Samples(uri=str(shards), seed=3, **SHARE)
    data = webdataset.DataPipeline(samples, webdataset.decode("rgb8"), webdataset.to_tuple("png", "cls"))
    loader = torch_data.DataLoader(data, batch_size=16, num_workers=workers)
    theirs = [pair for images, labels in islice(loader, 7) for pair in zip(images.numpy(), labels.tolist(), strict=True)]
    for (image, label), (wanted, known) in zip(theirs, ours(shards, 7, **SHARE), strict=True):
        np.testing.assert_array_equal(image, wanted)
        assert label == known


def test_the_fluid_interface_and_the_keys(shards: Path) -> None:
    fluid = webdataset.compat.FluidWrapper(Samples(uri=str(shards), global_batch=256, micro_batch=256))
    keys = [key for (key,) in islice(fluid.to_tuple("__key__"), 256)]
    assert sorted(keys) == [f"{i:09d}" for i in range(256)]
