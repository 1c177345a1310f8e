"""Loaders side by side: CPU time per sample and samples/s, ours beside webdataset, MosaicML's MDS, litdata and a folder.

    python -m benchmarks.data [--rounds 3] [--samples 8192] [--work DIR] [--quick]

same     JPEG 256 x 256 to shuffled uint8 batches of 64, cropped to 224 and half of them mirrored, all with simplejpeg, each
         loader as it is normally run: ours two threads in the process, the others DataLoader with two workers.
recipe   The others as their documentation shows: Pillow, float32, normalised. Ours makes the same float32 batches of its
         own uint8. Most of the difference is the decoder and the type, which everybody can choose: `same` compares loaders.
stack    Ours without crop and flips (read, check, decode, stack), by one and by two threads, beside the bare decoder.
http, s3 As `same`, from a server that answers 20 ms late.
resume   1,280,000 samples in 1,280 shards, which are one file under many names: seconds from construction to the first
         batch, at a place deep in an epoch, in a fresh process whose imports are reported apart.

CPU time is user + system of the process and all its descendants, over exactly one epoch after another that warms up
(`benchmarks.arms.data` says how read-ahead is kept out of it). Each arm is a fresh process; a round runs all of them, and
the bars compare the medians of the ratios within the rounds. "samples/s per core" is 1 / CPU time: what a core gives
that does nothing else. The wall rates depend on what else the machine does, and a loader that is bounded by latency
shows there only.

What favours whom. Every batch ends in a buffer of the consumer's process that is used again: ours is decoded into it, the
others' come by a copy out of the worker's shared memory, as `pin_memory` makes it. The start of workers and of epochs is
not counted (local sets), or thinly (one epoch of a small set pays what ImageNet's would not notice). Ours checks a crc32c
of each image, the others check nothing. Mirroring is torch's for all (NumPy's is 15 times slower), and uint8 batches lie
in the order of axes that costs each least. The set is in the page cache. From s3 the others fill a cache on disk, which
starts empty in the epoch that is measured, and start their workers within it; a later epoch would find the set on disk,
where ours, without a cache, reads it again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.others.loaders import BATCH, PACKAGES, PACKERS, SHARD_MB, package_version, torchvision_is_missing
from benchmarks.servers.latency import serve
from benchmarks.support.photos import SIZE, make_images
from benchmarks.support.report import report, table
from jobs import cli
from pipeline import storage
from pipeline.data.manifest import MANIFEST, dump_manifest, load_manifest
from pipeline.data.shard_index import index_name

LOCAL = ("ours", "webdataset", "mds", "litdata", "folder")
ARMS = (
    *(f"same/{name}" for name in LOCAL),
    *(f"recipe/{name}" for name in LOCAL),
    *("stack/bare", "stack/ours1", "stack/ours2"),
    *("http/ours", "http/webdataset", "s3/ours", "s3/mds", "s3/litdata"),
    *("resume/local", "resume/http", "resume/s3"),
)
RESUME_SHARDS, RESUME_SHARD = 1280, 1000  # ImageNet's 1.28 M samples
WHY_NOT = (
    {"arm": "http/mds, http/litdata", "note": "no downloader for http://; they read S3 and other stores: see s3"},
    {"arm": "http/folder, s3/folder", "note": "reads files only"},
    {"arm": "s3/webdataset", "note": "has no handler for s3://"},
)


@dataclass(frozen=True)
class Bar:
    """A figure and its upper limit."""

    arm: str
    of: str
    """The arm that it is divided by; empty: seconds from resume to the first batch."""
    at_most: float


BARS = (
    Bar("same/ours", "same/webdataset", 1 / 2),
    Bar("same/ours", "same/mds", 1 / 2.5),
    Bar("same/ours", "same/litdata", 1 / 1.4),
    Bar("stack/ours1", "stack/bare", 1.25),
    Bar("resume/local", "", 1.0),
)

Rounds = Sequence[Mapping[str, Mapping[str, float]]]
"""What each arm that ran measured, for each round."""


def prepare(work: Path, samples: int) -> Path:
    """Return the folder with the set in every form; reuse what an earlier run left there."""
    folder = work / f"bench-{samples}"
    make_images(folder / "images", samples)
    _shards(folder / "images", folder / "shards", SHARD_MB)
    for name in PACKERS:
        if package_version(name) and not (folder / name).exists():
            run_arm(f"pack/{name}", str(folder), {})
    return folder


def prepare_resume(work: Path) -> Path:
    """Make a set of 1.28 M samples with the size of a thousand: many names for one shard."""
    folder = work / "bench-resume"
    make_images(folder / "images", RESUME_SHARD)
    _shards(folder / "images", folder / "one", 1024)
    one = load_manifest(str(folder / "one"))
    (shard,) = one.shards
    (folder / "shards").mkdir(exist_ok=True)
    shards = tuple(replace(shard, name=f"{number:06d}.tar") for number in range(RESUME_SHARDS))
    for name in (part.name for part in shards):
        for source, target in ((shard.name, name), (index_name(shard.name), index_name(name))):
            (folder / "shards" / target).unlink(missing_ok=True)
            os.link(folder / "one" / source, folder / "shards" / target)
    counts = tuple(RESUME_SHARDS * count for count in one.class_counts)
    manifest = replace(one, shards=shards, class_counts=counts)
    storage.write_bytes(str(folder / "shards" / MANIFEST), dump_manifest(manifest))
    return folder / "shards"


def _shards(images: Path, shards: Path, megabytes: int) -> None:
    command = ["shard", str(images), str(shards), "--resolution", str(SIZE), "--shard-size", str(megabytes)]
    if not (shards / MANIFEST).exists() and cli.main(command):
        raise SystemExit("benchmarks.data: `biggan shard` failed")


def run_arm(arm: str, where: str, environment: Mapping[str, str]) -> dict[str, float]:
    """Measure one arm in its own process. Raises RuntimeError with its last output if it fails."""
    command = [sys.executable, "-m", "benchmarks.arms.data", arm, where]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=1800, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        print(f"{arm} failed:\n{done.stderr}", file=sys.stderr)
        raise RuntimeError(words[-1][:120])
    found: dict[str, float] = json.loads(lines[-1])
    return found


def ratio(rounds: Rounds, arm: str, of: str) -> float | None:
    """Return the median of the ratios of CPU time per sample within each round; None if one of the two never ran."""
    pairs = [(cost(found[arm]), cost(found[of])) for found in rounds if arm in found and of in found]
    return median(a / b for a, b in pairs) if pairs else None


def cost(found: Mapping[str, float]) -> float:
    """Return the CPU time per sample in µs."""
    return 1e6 * found["cpu_s"] / found["samples"]


def judged(rounds: Rounds) -> list[dict[str, Any]]:
    """Return the bars: figure, limit, whether it holds. What was not measured does not hold."""
    rows = []
    for bar in BARS:
        seconds = [found[bar.arm]["resume_s"] for found in rounds if bar.arm in found and not bar.of]
        value = ratio(rounds, bar.arm, bar.of) if bar.of else median(seconds) if seconds else None
        name = f"{bar.arm} : {bar.of}" if bar.of else f"{bar.arm}, seconds"
        rows.append({"bar": name, "value": value, "at most": bar.at_most, "ok": value is not None and value <= bar.at_most})
    return rows


def summary(rounds: Rounds, failures: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each arm."""
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        group, name = arm.split("/")
        found = [each[arm] for each in rounds if arm in each]
        row: dict[str, Any] = {"arm": arm}
        if arm in failures:
            row["note"] = failures[arm]
        elif group == "resume":
            row |= {"seconds": median(each["resume_s"] for each in found)}
            row["note"] = (
                f"{median(each['mib_read'] for each in found):.0f} MiB read; imports took "
                f"{median(each['imports_s'] for each in found):.1f} s before"
            )
        else:
            micros = median(map(cost, found))
            row |= {"cpu us/sample": round(micros, 1), "samples/s per core": round(1e6 / micros)}
            row |= {"samples/s, wall": round(median(each["per_second"] for each in found))}
            row["times ours"] = ratio(rounds, arm, f"{group}/ours" if group != "stack" else "stack/bare")
            version = package_version(name) if name in PACKAGES else None
            row["note"] = f"{PACKAGES[name]} {version}" if version else "times the bare decoder" if group == "stack" else ""
            if name in ("mds", "litdata") and torchvision_is_missing():
                row["note"] += ", torchvision stubbed"
        rows.append(row)
    return [*rows, *WHY_NOT]


def measure(work: Path, samples: int, count: int, latency: float) -> tuple[Rounds, dict[str, str]]:
    """Return (rounds, why an arm did not run). The arms of a round run one after another; each round begins at another one."""
    failures = {
        arm: f"not installed: pip install {PACKAGES[name]}"
        for arm, name in ((arm, arm.split("/")[1]) for arm in ARMS)
        if name in PACKAGES and not package_version(name)
    }
    folder, many = prepare(work, samples), prepare_resume(work)
    server = serve(work, latency)
    address = f"http://127.0.0.1:{server.server_port}"
    signed = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }
    environment = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **signed}
    places = {"http": f"{address}/{folder.name}", "s3": f"s3://{folder.name}"}
    resumes = {
        "resume/local": str(many),
        "resume/http": f"{address}/{many.relative_to(work)}",
        "resume/s3": f"s3://{many.relative_to(work)}",
    }
    rounds: list[dict[str, dict[str, float]]] = [{} for _ in range(count)]
    for number, found in enumerate(rounds):
        first = number * len(ARMS) // count
        for arm in ARMS[first:] + ARMS[:first]:
            if arm not in failures:
                where = resumes.get(arm) or places.get(arm.split("/")[0], str(folder))
                try:
                    one = run_arm(arm, where, environment)
                    if not arm.startswith("resume/") and one["samples"] < samples - BATCH:
                        raise RuntimeError(f"gave {one['samples']} of {samples} samples")
                    found[arm] = one
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    failures[arm] = f"failed: {error}"
                print(f"round {number + 1} of {count}: {arm} {failures.get(arm, 'done')}", file=sys.stderr, flush=True)
    server.shutdown()
    return rounds, failures


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm runs (default 3)")
    parser.add_argument("--samples", type=int, default=8192, help="pictures in the set (default 8192)")
    parser.add_argument("--latency", type=float, default=20, metavar="MS", help="of the server's first byte (default 20)")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where the sets are made, and found again (default: temporary)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of 1024 samples: whether everything runs")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.samples = 1, 1024
    if args.rounds < 1 or args.samples < 1024:
        parser.error("--rounds has to be at least 1, --samples at least 1024: CPU time is counted in steps of 10 ms")
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        rounds, failures = measure(work, args.samples, args.rounds, args.latency / 1000)
    bars, rows = judged(rounds), summary(rounds, failures)
    figures = {
        "samples": args.samples,
        "rounds": args.rounds,
        "latency_ms": args.latency,
        "load_before": before,
        "bars": {row["bar"]: {"value": row["value"], "at_most": row["at most"], "ok": row["ok"]} for row in bars},
        "arms": {row["arm"]: {key: value for key, value in row.items() if key != "arm"} for row in rows},
        "cpu_us_by_round": {
            arm: [round(cost(found[arm]), 1) for found in rounds if "cpu_s" in found.get(arm, {})] for arm in ARMS
        },
        "packages": {name: package_version(name) for name in PACKAGES},
        "torchvision_stubbed": torchvision_is_missing(),
    }
    print("\n".join([*table(rows), ""]))
    report("data", bars, figures, ok=all(row["ok"] for row in bars))


if __name__ == "__main__":
    main()
