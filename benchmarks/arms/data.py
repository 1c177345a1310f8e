"""One arm of `benchmarks.data` in a process of its own: `python -m benchmarks.arms.data ARM WHERE`, a line of JSON at the end.

An arm warms up with a whole epoch, waits until nobody works, reads the CPU time of itself and of all its descendants,
takes an epoch, waits again and reads again. So what was read ahead before the first reading is read ahead again at the
second, workers' start is nobody's cost, and no sample is decoded that is not counted.
"""

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch
from torch import Tensor

from benchmarks.others import loaders
from benchmarks.others.loaders import BATCH, CROP, MEAN, STD
from benchmarks.support.photos import SIZE, image_files
from pipeline.data.loader import DataConfig, DataLoader, MicroBatch
from pipeline.data.manifest import load_manifest

THREADS = 2  # that decode, as many as the others have workers
SKIPPED = 8  # batches that the wall rate leaves out: some find a full read-ahead, some none
RESUME_EPOCH = 3.7  # where the resumed stream stands


def cpu_seconds() -> float:
    """Return user and system time of this process and all its descendants, including those that have ended."""
    total = 0.0
    for process in (this := psutil.Process(), *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # its parent has its time now
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def settled_cpu_seconds(deadline: float = 5.0, quiet: float = 0.25) -> float:
    """Wait until read-ahead stops (under a twentieth of a core for `quiet` seconds), and return `cpu_seconds`."""
    end, before = time.monotonic() + deadline, cpu_seconds()
    while time.monotonic() < end:
        time.sleep(quiet)
        now = cpu_seconds()
        if now - before < quiet / 20:
            return now
        before = now
    return before


def measured(epoch: Callable[[], Iterable[Tensor]], warm_up: Callable[[], Iterable[Tensor]] | None = None) -> dict[str, float]:
    """Measure one epoch of batches [m, ...] after one of `warm_up` (default: the same); samples/s from batch 9 on."""
    for _ in (warm_up or epoch)():
        pass
    before, samples, later, began = settled_cpu_seconds(), 0, 0, 0.0
    for number, images in enumerate(epoch()):
        samples += len(images)
        if number == SKIPPED:
            began = time.perf_counter()
        elif number > SKIPPED:
            later += len(images)
    rate = later / (time.perf_counter() - began)
    return {"samples": samples, "cpu_s": settled_cpu_seconds() - before, "per_second": rate}


def peer(name: str, where: str, transform: loaders.Transform, cache: Path) -> dict[str, float]:
    """One of the other loaders, each batch copied from the worker's shared memory to a buffer of this process, as
    DataLoader's `pin_memory` does: ours is there already. Where it fills a cache, the measured epoch finds it empty.
    """
    caches = (cache / str(number) for number in itertools.count())

    def loader() -> Iterable[Any]:
        (fresh := next(caches)).mkdir()
        return loaders.LOADERS[name](where, transform, fresh)

    staging = torch.empty(0)

    def images(batches: Iterable[Any]) -> Iterator[Tensor]:
        nonlocal staging
        for images, _ in batches:
            if not len(staging):
                staging = torch.empty_like(images)
            staging[: len(images)].copy_(images)
            yield staging[: len(images)]

    first = loader()
    if where.startswith("s3://"):
        _checked(images(first), transform)
        del first  # and its workers
        second = loader()
        return measured(lambda: images(second), warm_up=list)
    return measured(lambda: images(first), warm_up=lambda: _checked(images(first), transform))


def _checked(batches: Iterable[Tensor], transform: loaders.Transform) -> Iterable[Tensor]:
    """Yield all batches. Raises SystemExit for a batch of another type or shape."""
    wanted = (torch.float32, (3, CROP, CROP)) if transform is loaders.recipe else (torch.uint8, (CROP, CROP, 3))
    for images in batches:
        if (images.dtype, images.shape[1:]) != wanted:
            raise SystemExit(f"benchmarks.data: a batch of {images.dtype} {tuple(images.shape)}")
    return ()


def ours(
    where: str, finish: Callable[[MicroBatch], Tensor], crop: int | None = CROP, threads: int = THREADS, flip: bool = True
) -> dict[str, float]:
    """Measure our data loader; its consumer finishes the batches on the CPU, in this thread."""
    uri = f"{where}/shards"
    manifest = load_manifest(uri)
    config = DataConfig(uri=uri, crop=crop, flip=flip, decode_threads=threads)
    shape: dict[str, Any] = {"seed": 0, "global_batch": BATCH, "micro_batch": BATCH, "rank": 0, "world_size": 1}
    with DataLoader(config, manifest, mirror=True, **shape) as stream:
        return measured(lambda: (finish(batch) for batch in itertools.islice(stream, manifest.samples // BATCH)))


class Finish:
    """Finish a batch as the others' transforms finish one cropped and mirrored image: for float32, normalise it.

    The floats lie in the same memory every time, as the staging buffers of a training step do, and in the stream's own
    order of axes.
    """

    def __init__(self, normalise: bool) -> None:
        self._normalise, self._floats = normalise, torch.empty(0)

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Return uint8 or float32 [m, 3, 224, 224]."""
        if not self._normalise:
            return batch.images
        if not len(self._floats):
            self._floats = torch.empty_like(batch.images, dtype=torch.float32)
        for image, normal in zip(batch.images, self._floats, strict=True):
            normal.copy_(image).div_(255).sub_(MEAN[:, None, None]).div_(STD[:, None, None])
        return self._floats


def bare(where: str) -> dict[str, float]:
    """Measure the decoder alone, in one thread, from bytes in memory into an existing batch."""
    files = [path.read_bytes() for path, _ in image_files(Path(where) / "images")]
    batch = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)

    def epoch() -> Iterator[Tensor]:
        for first in range(0, len(files), BATCH):
            chosen = files[first : first + BATCH]
            for data, pixels in zip(chosen, batch, strict=False):
                simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
            yield torch.from_numpy(batch[: len(chosen)])

    return measured(epoch)


def resume(uri: str) -> dict[str, float]:
    """Return the seconds from imported modules to the first batch, in the middle of an epoch."""
    imports = time.time() - psutil.Process().create_time()
    began = time.perf_counter()
    manifest = load_manifest(uri)
    position = int(manifest.samples * RESUME_EPOCH) // BATCH * BATCH
    shape: dict[str, Any] = {"seed": 0, "global_batch": BATCH, "micro_batch": BATCH, "rank": 0, "world_size": 1}
    with DataLoader(DataConfig(uri=uri), manifest, position=position, **shape) as stream:
        batch = next(stream)
        seconds = time.perf_counter() - began
        read = stream.bytes_read
    if int(batch.positions.min()) != position or len(batch.images) != BATCH:
        raise SystemExit("benchmarks.data: the resumed stream does not stand where it was put")
    return {"resume_s": seconds, "imports_s": imports, "samples": manifest.samples, "mib_read": read / 2**20}


def pack(name: str, where: str) -> dict[str, float]:
    """Write the set in the form of one of the other loaders, whole or not at all."""
    unfinished = Path(where) / f"{name}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    loaders.PACKERS[name](Path(where) / "images", unfinished)
    unfinished.rename(Path(where) / name)
    return {}


def run(arm: str, where: str, cache: Path) -> dict[str, float]:
    """Measure the arm called GROUP/NAME on the set at `where`."""
    group, name = arm.split("/")
    transform = loaders.recipe if group == "recipe" else loaders.same_decoder
    if group == "resume":
        return resume(where)
    if name == "bare":
        return bare(where)
    if group == "stack":
        return ours(where, lambda batch: batch.images, crop=None, threads=int(name.removeprefix("ours")), flip=False)
    if name == "ours":
        return ours(where, Finish(normalise=group == "recipe"))
    if loaders.torchvision_is_missing():
        loaders.stub_torchvision()
    return pack(name, where) if group == "pack" else peer(name, where, transform, cache)


def main() -> None:
    """Measure the arm and print its figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.arms.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arm", help="GROUP/NAME, as in benchmarks.data")
    parser.add_argument("where", help="folder or address of the set")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in DataLoader's workers; more only spin here
    with tempfile.TemporaryDirectory() as cache:
        print(json.dumps(run(args.arm, args.where, Path(cache))), flush=True)


if __name__ == "__main__":
    main()
