"""`python -m benchmarks.tracking --steps N`: measure what tracking costs a training, and what it loses, when MLflow fails.

A loop of small steps runs in its own process against a real MLflow server. A step is a forward and backward of two layers with
12 metrics, and now and then an image. The server is absent, killed, restarted, gone at the end, refusing with 403, slow, or
losing one request of two. A run without a tracker is timed before and after each of these runs.

When the server works again, `biggan sync` delivers the rest. The server's own tables must then equal the journal, row by row.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.servers.mlflow_proxy import Proxy
from benchmarks.servers.mlflow_server import MlflowServer
from benchmarks.support.report import report
from pipeline.tracking.journal import read
from pipeline.tracking.records import MetricsRecord

LONGEST_CALL = 0.25
"""Seconds that a call of the tracker may take at most."""
KEYS = 12

Event = Callable[[], None]


def train(run: Path, uri: str, steps: int) -> None:
    """Run the loop, with a tracker if `uri` is given; print each tenth step, and the times as JSON."""
    import numpy as np
    import torch

    from pipeline.tracking.mlflow_store import calm_mlflow
    from pipeline.tracking.tracker import Tracker, TrackingConfig

    calm_mlflow()
    import mlflow.tracking  # noqa: F401 - with or without a tracker, as DeepSpeed does in a training

    torch.set_num_threads(1)
    x = torch.randn(256, 512)
    layers = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512))
    picture = np.zeros((64, 64, 3), np.uint8)
    run.mkdir()
    config = TrackingConfig(uri=uri, flush_seconds=0.5)
    tracker = Tracker(config, run, run.name, {"lr": 1e-4}, {"biggan.git_commit": "benchmark"}) if uri else None
    times: list[float] = []
    calls: list[float] = [0.0]
    for step in range(steps):
        began = time.perf_counter()
        loss = layers(x).square().mean()
        loss.backward()
        called = time.perf_counter()
        if tracker:
            tracker.metrics({f"key/{i}": float(loss) + i for i in range(KEYS)}, step)
            if step % (steps // 4) == 0:
                tracker.image(picture, "samples", step)
            calls.append(time.perf_counter() - called)
        times.append(time.perf_counter() - began)
        if step % 10 == 0:
            print(step, flush=True)
    closing = time.perf_counter()
    if tracker:
        tracker.close("FINISHED")
    figures = {"median": statistics.median(times), "p95": statistics.quantiles(times, n=20)[-1], "call": max(calls)}
    print(json.dumps(figures | {"close": time.perf_counter() - closing}), flush=True)


def run_loop(run: Path, uri: str, steps: int, events: dict[int, Event]) -> tuple[int, dict[str, float]]:
    """Run the loop in its own process, and call each of `events` at its step."""
    command = [sys.executable, "-m", "benchmarks.tracking", "--steps", str(steps), "--loop", str(run), uri]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        for last in process.stdout:
            if last.strip().isdigit() and int(last) in events:
                events[int(last)]()
    return process.returncode, json.loads(last) if last.startswith("{") else {}


def compare(run: Path, server: MlflowServer) -> dict[str, Any]:
    """Compare the server's tables of a run with its journal."""
    written = Counter(
        (key, record.step, record.time, value)
        for record, _ in read(run)
        if isinstance(record, MetricsRecord)
        for key, value in record.metrics.items()
    )
    with sqlite3.connect(f"file:{server.folder}/server.db?mode=ro", uri=True) as tables:
        runs = tables.execute("select run_uuid from tags where key = 'biggan.run_uid' and value = ?", (run.name,)).fetchall()
        stored = Counter(
            tables.execute("select key, step, timestamp, value from metrics where run_uuid = ?", runs[0]) if runs else ()
        )
    (status,) = tables.execute("select status from runs where run_uuid = ?", runs[0]).fetchone() if runs else ("none",)
    images = list((server.folder / "artifacts").glob(f"*/{runs[0][0]}/artifacts/images/*.png")) if runs else []
    return {
        "rows": written.total(),
        "in server": stored.total(),
        "duplicates": stored.total() - len({(key, step) for key, step, _, _ in stored}),
        "same": written == stored and len(runs) == 1 and status == "FINISHED",
        "images": len(images),
    }


def cases(server: MlflowServer, proxy: Proxy, steps: int) -> dict[str, tuple[str, dict[int, Event]]]:
    """Return for each case the URI that the run gets and what happens at which step. The server runs, unless `absent`."""
    first, second, end = (steps // 30 * 10 * part for part in (1, 2, 3))

    def behave(mode: Any) -> Event:
        return lambda: setattr(proxy, "mode", mode)

    return {
        "well": (server.uri, {}),
        "absent at start": (server.uri, {first: server.launch}),
        "killed": (server.uri, {first: server.kill}),
        "restarted": (server.uri, {first: server.kill, first + 10: server.launch}),
        "gone at the end": (server.uri, {end - 10: server.kill}),
        "403": (proxy.uri, {0: behave("403")}),
        "403 for a while": (proxy.uri, {first: behave("403"), second: behave("pass")}),
        "slow": (proxy.uri, {0: behave("slow")}),
        "lossy": (proxy.uri, {0: behave("lossy")}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="of each run, about 10 ms each (default: %(default)s)")
    parser.add_argument("--cases", help="some of the cases, with commas between them (default: all)")
    parser.add_argument("--times", action=argparse.BooleanOptionalAction, default=True, help="also run without a tracker")
    parser.add_argument("--loop", nargs=2, metavar=("RUN", "URI"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        train(Path(args.loop[0]), args.loop[1], args.steps)
        return 0

    rows: list[dict[str, Any]] = []
    untouched: list[float] = []
    with tempfile.TemporaryDirectory(prefix="biggan-tracking-") as name:
        folder = Path(name)
        server = MlflowServer(folder)
        proxy = Proxy(server.port)
        try:
            plans = cases(server, proxy, args.steps)
            if args.times:
                untouched.append(run_loop(folder / "untouched", "", args.steps, {})[1]["median"])
            for case in args.cases.split(",") if args.cases else plans:
                uri, events = plans[case]
                if case == "absent at start":
                    server.kill()
                else:
                    server.start()
                run = folder / case.replace(" ", "-")
                code, figures = run_loop(run, uri, args.steps, events)
                server.start()
                proxy.mode = "pass"
                if args.times:
                    untouched.append(run_loop(folder / f"untouched-{len(untouched)}", "", args.steps, {})[1]["median"])
                synced = subprocess.run([sys.executable, "-m", "jobs.cli", "sync", str(run)], capture_output=True, check=False)
                ratio = figures["median"] / statistics.mean(untouched[-2:]) if args.times else None
                told = {"median ms": figures["median"] * 1e3, "ratio": ratio, "p95 ms": figures["p95"] * 1e3}
                told |= {"longest call ms": figures["call"] * 1e3, "close s": figures["close"]}
                rows.append({"server": case, "exit": code, **told, "sync": synced.returncode, **compare(run, server)})
                compared = f", median step {ratio:.2f} of untouched" if ratio else ""
                print(f"{len(rows)} of {len(plans)} servers: {case}{compared}", flush=True)
        finally:
            proxy.close()
            server.kill()
    checks = {
        "exit codes 0": all(row["exit"] == row["sync"] == 0 for row in rows),
        "every row of the journal once in the server, and nothing else": all(row["same"] for row in rows),
        "every image once": all(row["images"] == 4 for row in rows),
        f"no call above {LONGEST_CALL} s": all(row["longest call ms"] < LONGEST_CALL * 1e3 for row in rows),
    }
    figures: dict[str, Any] = {"steps": args.steps, "cases": rows, "checks": checks}
    if args.times:
        # Two runs without a tracker differ as well; what tracking costs cannot be told from that.
        noise = max(untouched) / min(untouched)
        within = noise < 1.25 and all(row["ratio"] < max(1.05, noise) for row in rows)
        checks["median step within noise, which is below 1.25"] = within
        figures |= {"untouched_ms": [t * 1e3 for t in untouched], "noise": noise}
    report(
        "tracking", [*rows, *({"check": check, "ok": held} for check, held in checks.items())], figures, all(checks.values())
    )
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
