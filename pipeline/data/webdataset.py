"""Our order for users of webdataset: encoded samples as its dictionaries, for its `.decode`, `.map` and `.to_tuple`.

samples = Samples("s3://bucket/train", global_batch=2048, micro_batch=64, rank=rank, world_size=ranks)
data = webdataset.DataPipeline(samples, webdataset.decode("rgb"), webdataset.to_tuple("jpg;png;webp", "cls"))
loader = torch.utils.data.DataLoader(data, batch_size=64, num_workers=4)
"""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.data.encoded import Encoded
from pipeline.data.loader import DataConfig
from pipeline.data.manifest import load_manifest
from pipeline.data.order import Order
from pipeline.data.quarantine import BadSampleError, Quarantine, candidates
from pipeline.data.reader import Reader
from pipeline.data.sampler import RankSampler, SamplePlan
from pipeline.errors import DataError

_AHEAD = 4  # micro-batches whose runs are asked for before they are wanted


@dataclass(kw_only=True)
class Samples(IterableDataset[dict[str, Any]]):
    """Endless samples of one rank: `__key__`, `__url__`, the image under its kind (jpg, png or webp), `cls`.

    They come in the order of `pipeline.data.loader.DataLoader` for the same arguments: each once per epoch, as a function of
    (seed, position) alone. The workers of a DataLoader take whole micro-batches in turn, so that with
    batch_size=micro_batch their number changes nothing. To resume, give what all ranks have consumed as `position`.
    """

    uri: str
    seed: int = 0
    global_batch: int = 64
    micro_batch: int = 64
    rank: int = 0
    world_size: int = 1
    position: int = 0
    bad_fraction: float = DataConfig.bad_fraction

    def __iter__(self) -> Iterator[dict[str, Any]]:
        manifest = load_manifest(self.uri)
        order = Order(manifest.shards, self.seed)
        share = RankSampler(self.global_batch, self.micro_batch, self.rank, self.world_size)
        quarantine = Quarantine(int(self.bad_fraction * manifest.samples), samples=manifest.samples)
        reader = Reader(self.uri, manifest, order, capacity=share.open_runs(order, _AHEAD))
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = itertools.islice(share.plans(order, self.position), first, None, step)
        expected: deque[SamplePlan] = deque()
        try:
            for plan in mine:
                reader.expect(plan.samples)
                expected.append(plan)
                if len(expected) > _AHEAD:
                    for sample in expected.popleft().samples.tolist():
                        yield _as_dictionary(reader, _good(reader, quarantine, sample))
        finally:
            reader.close()


def _good(reader: Reader, quarantine: Quarantine, sample: int) -> Encoded:
    for candidate in candidates(reader.order, sample):
        try:
            return reader.image(candidate)
        except BadSampleError as bad:
            quarantine.add(bad)
    raise DataError(f"sample {sample} cannot be used, nor any that could stand in for it: restore the shards")


def _as_dictionary(reader: Reader, encoded: Encoded) -> dict[str, Any]:
    data = bytes(encoded.data)
    kind = {b"\xff\xd8": "jpg", b"\x89P": "png"}.get(data[:2], "webp")
    key, label = reader.files.key(encoded.sample), str(encoded.label).encode()
    return {"__key__": key, "__url__": encoded.shard, kind: data, "cls": label}
