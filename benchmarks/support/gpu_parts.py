"""Run the parts of `benchmarks.gpu`: each runs commands that may fail and returns a row. `bars` judges the rows."""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.support import step_rows
from benchmarks.support.limited import DoesNotFitError, FailedError, call, last_line
from benchmarks.support.photos import CLASSES, jpeg
from pipeline.tracking.journal import read
from pipeline.tracking.records import MetricsRecord

Row = dict[str, Any]
"""Of a part: its figures, or `error`. `ok` is null where there is nothing to judge."""

MODES = {
    "bf16": ["precision=bf16"],
    "bf16, compiled": ["precision=bf16", "compile=true"],
    "fp32": ["precision=fp32"],
}
"""Overrides; fp32 is torch's default, with convolutions in TF32."""
TRIALS: dict[str, Row] = {"bf16, searched": {"search": True}, "bf16, as written": {"plain": True}}
"""As `bf16`, but cuDNN tries all its algorithms and takes the quickest; or resizing and convolution are two operations. A
training does neither, so they are nothing for bars."""
DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured on a kind of machine."""

    large: int
    """Pixels of the main network."""
    model: Mapping[int, list[str]]
    """Pixels -> overrides of the preset biggan-128."""
    first: list[tuple[int, str, int]]
    """(pixels, mode, micro-batch) of the steps that matter most, the first `traced` of which the profiler looks at, too."""
    then: list[tuple[int, str, int]]
    traced: int
    updates: int | None
    peers: list[str]
    """Arguments of `benchmarks.peers`."""
    images: int
    """JPEGs of the training's shards."""
    train_seconds: float
    compile_limit: float
    """Seconds that a step in a mode that compiles may take, and half as much more with a trace."""


def _model(resolution: int, *more: str) -> list[str]:
    return [f"model.resolution={resolution}", "batch.d_steps=1", *more]


GPU = Sizes(
    large=128,
    model={128: _model(128), 256: _model(256)},
    first=[(128, "bf16", 256), (128, "bf16, compiled", 256), (128, "fp32", 128)],
    traced=2,
    then=[
        *((128, mode, 256) for mode in TRIALS),
        *((128, "bf16", 512), (128, "bf16", 128), (256, "bf16", 64), (128, "bf16, compiled", 512), (128, "bf16", 64)),
        *((256, "bf16, compiled", 64), (128, "fp32", 256), (128, "fp32", 64), (128, "bf16, compiled", 128), (256, "fp32", 32)),
        *((256, "bf16", 128), (128, "bf16", 32), (128, "bf16, compiled", 64), (128, "fp32", 32), (128, "bf16, compiled", 32)),
        *((128, "fp32", 512), (256, "bf16", 32), (256, "bf16, compiled", 128)),
    ],
    updates=None,
    peers=["--resolution", "128", "--micro-batch", "64", "--rounds", "7", "--half", "--modes", "fp32", "bf16"],
    images=1024,
    train_seconds=20.0,
    compile_limit=150.0,
)
_NARROW = ("model.ch=4", "model.num_classes=10", "model.shared_dim=8", "model.g_attention=[]", "model.d_attention=[]")
TINY = Sizes(
    large=32,
    model={32: _model(32, "model.z_dim=16", *_NARROW), 64: _model(64, "model.z_dim=20", *_NARROW)},
    first=[(32, "bf16", 4), (32, "fp32", 4)],
    traced=1,
    then=[(64, "bf16", 2), *((32, mode, 4) for mode in TRIALS), (32, "bf16, compiled", 4)],
    updates=2,
    peers=["--resolution", "32", "--ch", "8", "--micro-batch", "2", "--rounds", "1", "--threads", "1"],
    images=64,
    train_seconds=1.0,
    compile_limit=60.0,
)
"""That every part runs, on any machine. To compile takes a CPU a minute or more, so it is the last, and may have no end."""


@dataclass
class Bench:
    """The state of a measurement."""

    out: Path
    sizes: Sizes
    checkouts: dict[str, Path] = field(default_factory=dict)
    """Originals by their project."""
    rows: dict[str, Row] = field(default_factory=dict)
    """By the name of the part."""

    @property
    def log(self) -> Path:
        return self.out / "log"

    def best(self) -> Row | None:
        """Return the fastest step of the main network."""
        return max(steps(self.rows, self.sizes.large), key=lambda row: row["images/s"], default=None)


def steps(rows: Mapping[str, Row], pixels: int) -> list[Row]:
    """Return the rows of steps that a training can make."""
    return [r for r in rows.values() if r.get("pixels") == pixels and "images/s" in r and r["mode"] in MODES]


def rates(bench: Bench, limit: float) -> Row:
    found = step_rows.ask({"what": "rates"}, limit, bench.log)
    matrix = {f"{name} TFLOP/s": found[name] and found[name] / 1e12 for name in ("fp32", "tf32", "bf16")}
    return matrix | {"device": found["device"], "type": found["type"], "ok": None}


def one_step(bench: Bench, limit: float, pixels: int, mode: str, micro_batch: int) -> Row:
    begun: Row = {"pixels": pixels, "mode": mode, "micro-batch": micro_batch}
    before = [r for r in bench.rows.values() if (r.get("pixels"), r.get("mode")) == (pixels, mode) and "micro-batch" in r]
    if any(r.get("error") == DOES_NOT_FIT and r["micro-batch"] < micro_batch for r in before):
        return begun | {"error": DOES_NOT_FIT, "ok": None}
    if failed := [r["micro-batch"] for r in before if r["ok"] is False]:
        return begun | {"error": f"not tried: micro-batch {failed[0]} has failed", "ok": None}
    overrides = [*bench.sizes.model[pixels], *MODES["bf16" if mode in TRIALS else mode]]
    more = dict(TRIALS.get(mode, {}))
    if (pixels, mode, micro_batch) in bench.sizes.first[: bench.sizes.traced]:
        more["trace"] = str(bench.out / f"{mode.replace(', ', '-')}.trace.json.gz")
    run = {"updates": bench.sizes.updates, "limit": limit, "log": bench.log, "more": more}
    row = step_rows.row(step_rows.PRESET, overrides, micro_batch, **run)
    return begun | row | {"ok": None if row.get("error") in (None, DOES_NOT_FIT) else False}


def beside(bench: Bench, limit: float, project: str) -> Row:
    """Run `benchmarks.peers`. Its own bars do not apply here, and its losses are only shown."""
    if project not in bench.checkouts:
        return {"error": f"not asked for: --{project} DIR", "ok": None}
    command = [sys.executable, "-m", "benchmarks.peers", f"--{project}", str(bench.checkouts[project].resolve())]
    began = bench.log.stat().st_size
    said = call([*command, *bench.sizes.peers], limit, bench.log, good=(0, 1)).strip().rpartition("\n")[2]
    if not said.startswith("{"):  # 1 is also the code of a traceback
        raise FailedError(last_line(bench.log, began))
    found = json.loads(said)[project]
    kept = {key: found[key] for key in ("rows", "losses", "apart")}
    return against(found["rows"], project) | kept | {"ok": None}


def against(rows: list[Row], project: str) -> Row:
    """Return how many times as fast as the original our fastest step is: `x fp32`, and `x half` where that was measured."""
    speed = {row["step"]: row["images/s"] for row in rows}
    ours = max((name for name in speed if name.startswith("ours")), key=lambda name: speed[name])
    half = speed.get(f"{project}, half")
    ratios = {"x fp32": speed[ours] / speed[project], "x half": speed[ours] / half if half else None}
    return {"of": ours, "images/s": speed[ours], **ratios}


def trained(bench: Bench, limit: float) -> Row:
    """Run `biggan train` on shards that are packed here: images/s, and the share of its time in which a step waits for data."""
    best = bench.best()
    if not best:
        raise FailedError("no step has been measured")
    with tempfile.TemporaryDirectory(prefix="biggan-gpu-") as folder:
        cut = _train(bench, best, Path(folder), time.monotonic() + limit)
        records = [record.metrics for record, _ in read(Path(folder, "run")) if isinstance(record, MetricsRecord)]
    reports = [metrics for metrics in records if "images_per_second" in metrics]
    if cut and len(reports) < 2:
        raise FailedError(cut)
    found = waiting(reports)
    found |= {"of the step's": found["images/s"] / best["images/s"], "of": best["mode"], "batch": best["micro-batch"]}
    return found | {"cut": cut, "ok": None if cut is None or cut.startswith("no end after") else False}


def _train(bench: Bench, best: Row, folder: Path, end: float) -> str | None:
    """Train; return why it ended early, or None. Its reports until then are used all the same."""
    sizes = bench.sizes
    for label in range(CLASSES):
        (folder / "images" / f"class{label}").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        for number, data in enumerate(pool.map(jpeg, range(sizes.images))):
            (folder / "images" / f"class{number % CLASSES}" / f"{number:06d}.jpg").write_bytes(data)
    biggan = [sys.executable, "-m", "jobs.cli"]
    pixels, batch = sizes.large, best["micro-batch"]
    shard = [*biggan, "shard", str(folder / "images"), str(folder / "shards"), "--resolution", str(pixels), "--format", "jpg"]
    call(shard, end - time.monotonic(), bench.log)
    # Eight reports, of which the first is of a start.
    every = batch * max(1, round(sizes.train_seconds * best["images/s"] / batch / 8))
    overrides = [*sizes.model[pixels], "model.num_classes=10", *MODES[best["mode"]], f"total_images={8 * every}"]
    overrides += [f"run={folder / 'run'}", f"data.uri={folder / 'shards'}", "data.lanes=1", "zero.stage=0", "sample_every=0"]
    overrides += [f"batch.{key}={batch}" for key in ("global_batch", "norm_group", "micro_batch")]
    overrides += [f"log_every={every}", "tracking.mode=offline", "checkpoint.every=1_000_000_000"]
    try:
        said = call([*biggan, "train", step_rows.PRESET, *overrides], end - time.monotonic(), bench.log)
    except FailedError as error:
        return str(error)
    with open(bench.log, "a") as log:
        log.write(said)
    return None


def waiting(reports: list[Row]) -> Row:
    """Return means over the reports of a run after the first: `images/s`, and `data wait` as a share of the time.

    Raises FailedError if there are fewer than two.
    """
    if len(reports) < 2:
        raise FailedError(f"the training has made {len(reports)} reports, too few to leave out the first")
    after = reports[1:]
    parts = [{key: r[key] for key in r if key.startswith("time/") and key != "time/step_spread"} for r in after]
    seconds = [sum(value for key, value in part.items() if not key.startswith("time/share/")) for part in parts]
    data = sum(part.get("time/data", 0.0) for part in parts)
    speed = len(after) / sum(1 / r["images_per_second"] for r in after)
    return {"images/s": speed, "data wait": data / sum(seconds), "seconds": sum(seconds)}


BARS = {
    "images/s at 128 px": 1000.0,
    "x BigGAN-PyTorch, fp32": 4.0,
    "x BigGAN-PyTorch, half": 2.0,
    "data wait": 0.01,
}
"""The least, of the data wait the most, that is asked of an H100."""


def bars(rows: Mapping[str, Row], gpu: str | None) -> list[Row]:
    """Return the limits, what was measured and whether it holds: `ok` is null where this machine cannot tell.

    `gpu` is the name of the GPU; None where figures are not to be held against the bars. On a GPU, what was to be measured and
    is not there does not hold.
    """
    on_gpu, h100 = gpu is not None, "H100" in (gpu or "")
    original, training = rows.get("peers biggan-pytorch", {}), rows.get("training", {})
    asked = on_gpu and not original.get("error", "").startswith("not asked for")
    found = {
        "images/s at 128 px": (max((row["images/s"] for row in steps(rows, 128)), default=None), h100),
        "x BigGAN-PyTorch, fp32": (original.get("x fp32"), asked),
        "x BigGAN-PyTorch, half": (original.get("x half"), asked),
        "data wait": (training.get("data wait"), on_gpu),
    }
    judged = []
    for bar, (value, applies) in found.items():
        holds = value is not None and (value < BARS[bar] if bar == "data wait" else value >= BARS[bar])
        judged.append({"bar": bar, "asked": BARS[bar], "value": value, "ok": holds if applies else None})
    return judged


def attempt(bench: Bench, part: Any, limit: float, *arguments: Any) -> Row:
    """Run a part and return its row, also if it raises."""
    try:
        return part(bench, limit, *arguments)
    except DoesNotFitError:
        return {"error": DOES_NOT_FIT, "ok": None}
    except FailedError as error:
        return {"error": str(error), "ok": False}
    except Exception as error:  # the other parts are worth having all the same
        with open(bench.log, "a") as log:
            traceback.print_exc(file=log)
        return {"error": " ".join(f"{type(error).__name__}: {error}".split()), "ok": False}
