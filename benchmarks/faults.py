"""Read a data set through a store that fails by a seeded plan, and compare what arrives with the files on disk.

    python -m benchmarks.faults --plans 20 --seed 0

Each plan serves two epochs of small shards over HTTP. The table has its requests, its faults of each kind, and the images that
a substitute replaced. It also says whether the hash of all images, labels, sample ids and positions equals that of the disk.
"""

import argparse
import hashlib
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.servers.faults import FAULTS, Plan, serve_with_faults
from benchmarks.support.patterns import pack_patterns
from benchmarks.support.report import report
from pipeline.data import shard_files
from pipeline.data.loader import DataConfig, DataLoader
from pipeline.data.manifest import load_manifest
from pipeline.storage import object_stores

_BATCH = 64


def digest(uri: str, batches: int) -> tuple[str, int]:
    """Return the hash of everything that a data loader gives, and the number of images that replaced damaged ones."""
    found, bad = hashlib.sha256(), 0
    with DataLoader(
        DataConfig(uri=uri), load_manifest(uri), seed=1, global_batch=_BATCH, micro_batch=_BATCH, rank=0, world_size=1
    ) as stream:
        for batch in islice(stream, batches):
            for field in (batch.images, batch.labels, batch.samples, batch.positions):
                found.update(field.contiguous().numpy().tobytes())
            bad += int((~batch.valid).sum())
    return found.hexdigest()[:16], bad


def main() -> None:
    """Measure and report, as the module says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first plan; the next plans count up (default: 0)")
    args = parser.parse_args()
    object_stores.REQUEST_SECONDS, stall = 2.0, 3.0
    with tempfile.TemporaryDirectory() as folder:
        uri = pack_patterns(Path(folder), classes=4, images=250)
        manifest = load_manifest(uri)
        batches = 2 * manifest.samples // _BATCH
        wanted, _ = digest(uri, batches)
        rows: list[dict[str, Any]] = []
        for seed in range(args.seed, args.seed + args.plans):
            plan = Plan(seed, stall=stall)
            server = serve_with_faults(Path(uri), plan)
            began = time.perf_counter()
            try:
                found, bad = digest(f"http://127.0.0.1:{server.server_port}", batches)
            except Exception as error:  # a plan that ends the stream is a result, too
                found, bad = f"{type(error).__name__}: {error}"[:120], -1
            server.shutdown()
            server.server_close()
            rows.append(
                {"seed": seed, "requests": plan.requests}
                | {fault: plan.faults[fault] for fault in FAULTS}
                | {"substitutes": bad, "seconds": round(time.perf_counter() - began, 1), "equal": found == wanted}
            )
            print(f"plan {seed}: {sum(plan.faults.values())} faults, {rows[-1]['seconds']} s, {found}", flush=True)
    figures = {
        "plans": len(rows),
        "faults": {fault: sum(row[fault] for row in rows) for fault in FAULTS},
        "equal": sum(row["equal"] for row in rows),
        "samples": batches * _BATCH,
        "patience": shard_files.PATIENCE,
    }
    report("faults", rows, figures, all(row["equal"] for row in rows))


if __name__ == "__main__":
    main()
