"""Samples of shards as a reader gives them, and batches as a stream does."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.loader import DataConfig, DataLoader, MicroBatch
from pipeline.data.manifest import load_manifest
from pipeline.data.order import Order
from pipeline.data.reader import Reader


def open_reader(uri: Path | str, **options: Any) -> Reader:
    manifest = load_manifest(str(uri))
    return Reader(str(uri), manifest, Order(manifest.shards, 0), **{"capacity": 50} | options)


def images(uri: Path | str, **options: Any) -> list[bytes]:
    """All of them, in a random order, back in theirs."""
    found = open_reader(uri, **options)
    try:
        order = np.random.default_rng(0).permutation(found.manifest.samples)
        found.expect(order)
        read = {int(i): found.image(int(i)) for i in order}
        assert all(one.sample == i for i, one in read.items())
        return [read[i].data for i in range(len(read))]
    finally:
        found.close()


def stream(uri: Path | str, **options: Any) -> DataLoader:
    data = {name: options.pop(name) for name in list(options) if name in DataConfig.__dataclass_fields__}
    place = {"seed": 1, "global_batch": 96, "micro_batch": 96, "rank": 0, "world_size": 1, "position": 0} | options
    return DataLoader(DataConfig(uri=str(uri), **data), load_manifest(str(uri)), **place)


def take(count: int, uri: Path | str, **options: Any) -> list[MicroBatch]:
    with stream(uri, **options) as batches:
        return list(islice(batches, count))


def joined(batches: list[MicroBatch], field: str) -> torch.Tensor:
    return torch.cat([getattr(batch, field) for batch in batches])
