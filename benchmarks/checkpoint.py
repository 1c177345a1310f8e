"""`python -m benchmarks.checkpoint`: measure how long a save stops training, and how fast it is stored.

BigGAN-128 trains in 2 processes with ZeRO-1 in fp32: 158 M parameters (ch=96), their moments and the EMA. The table has:

- the seconds that a step waits for a save, beside the seconds of a step of one image per rank, the shortest step there is;
- the bytes stored per second, beside those of plain files of the same sizes;
- the same with a store that takes 100 MB/s from each rank. The first save must not wait there. A second save right after it
  must wait for the first.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.support import workers
from benchmarks.support.report import report
from model.latents import RandomStream
from pipeline import storage
from pipeline.checkpoint import format, rank_files
from pipeline.checkpoint.fencing import take_fence
from pipeline.checkpoint.format import Progress
from pipeline.checkpoint.retention import CheckpointConfig
from pipeline.checkpoint.saver import Saver
from pipeline.config import load_config
from pipeline.engine.batch import plan_batch
from pipeline.engine.ranks import Ranks, start_workers
from pipeline.engine.steps import d_step, fakes, g_step
from pipeline.training.train_state import TrainState

RANKS, SLOW = 2, 100e6
OPTIONS = [f"batch.{option}" for option in ("global_batch=2", "micro_batch=1", "norm_group=2", "d_steps=1")]
OPTIONS += ["precision=fp32", "zero.stage=1"]


def measure(folder: Path) -> None:
    """Measure on one rank; rank 0 writes the figures to folder/figures.json."""
    ranks = start_workers()
    config = load_config("biggan-128", OPTIONS)
    plan = plan_batch(config.batch, ranks.world_size)
    learner = TrainState(config, plan, ranks)
    g, d, objective = learner.g, learner.d, learner.objective

    def train() -> None:
        real = torch.randn(1, 3, 128, 128), torch.zeros(1, dtype=torch.long)
        d_step(
            g,
            d,
            iter([real]),
            fakes(config.model, plan, ranks, seed=0, stream=RandomStream.D_STEP, position=0),
            objective,
            position=0,
        )
        g_step(g, d, fakes(config.model, plan, ranks, seed=0, stream=RandomStream.G_STEP, position=0), objective, position=0)
        learner.ema.update(g.parts(), 0.999)

    def save(saver: Saver, images: int) -> None:
        saver.save(Progress(images), learner.slices(), {})

    train()  # Adam's moments come with the first step
    figures: dict[str, Any] = {"step": _slowest(ranks, train)}
    with Saver(CheckpointConfig(every=1, max_loss=10), take_fence(str(folder / "ours"), ranks), ranks, 0) as saver:
        figures["stall, first save"] = _slowest(ranks, lambda: save(saver, 1))  # allocates its buffers
        figures["stored, first save"] = _slowest(ranks, saver.check)
        figures["stall"] = _slowest(ranks, lambda: save(saver, 2))
        figures["stored"] = figures["stall"] + _slowest(ranks, saver.check)
        save(saver, 3)
        figures["step while storing"] = _slowest(ranks, train)
    found = format.newest(str(folder / "ours"))
    assert found
    figures["bytes"] = sum(row.bytes for row in found.files.values())
    own = [row.bytes for name, row in found.files.items() if f"rank{ranks.rank:05d}" in name]
    figures["plain files"] = _slowest(ranks, lambda: _plain(folder / "plain" / str(ranks.rank), own))
    if ranks.main:
        rank_files.remove(found.uri, found.files)
    with Saver(CheckpointConfig(every=1, max_loss=10), take_fence(str(folder / "slow"), ranks), ranks, 0) as saver:
        _slow_down()
        figures["stall, slow store"] = _slowest(ranks, lambda: save(saver, 1))
        figures["stall behind a save, slow store"] = _slowest(ranks, lambda: save(saver, 2))
    if ranks.main:
        figures["parameters"] = sum(p.numel() for e in (g, d) for p in e.module.parameters())
        (folder / "figures.json").write_text(json.dumps(figures))


def _slowest(ranks: Ranks, action: Any) -> float:
    """Return the seconds that `action` takes on the slower rank."""
    dist.barrier()
    began = time.perf_counter()
    action()
    seconds = torch.tensor(time.perf_counter() - began)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds)


def _plain(folder: Path, sizes: Iterable[int]) -> None:
    for i, size in enumerate(sizes):
        storage.write_bytes(str(folder / str(i)), bytes(size))


def _slow_down() -> None:
    """Make each file take as long, from now on, as a store of `SLOW` bytes per second would."""
    write = storage.write_chunks

    def slowly(uri: str, chunks: Iterable[bytes | memoryview]) -> None:
        def paced() -> Iterable[bytes | memoryview]:
            for chunk in chunks:
                time.sleep(len(chunk) / SLOW)
                yield chunk

        write(uri, paced())

    storage.write_chunks = slowly


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write, 7 GB (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="biggan-checkpoint-", dir=args.folder) as name:
        folder = Path(name)
        workers.run(measure, folder, ranks=RANKS, log=folder / "log")
        seconds = json.loads((folder / "figures.json").read_text())
    size, parameters = seconds.pop("bytes"), seconds.pop("parameters")
    ok = max(seconds["stall"], seconds["stall, slow store"]) < seconds["step"]
    rate, plain = (size / seconds[key] / 1e6 for key in ("stored", "plain files"))
    rows = [{"what": what, "seconds": value} for what, value in seconds.items()]
    rows += [{"what": "stored", "MB/s": rate}, {"what": "plain files", "MB/s": plain}]
    figures = {"parameters": parameters, "bytes": size, "ranks": RANKS, "seconds": {k: round(v, 3) for k, v in seconds.items()}}
    figures |= {"MB/s": round(rate, 1), "MB/s of plain files": round(plain, 1), "slow store, MB/s for each rank": SLOW / 1e6}
    report("checkpoint", rows, figures, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
