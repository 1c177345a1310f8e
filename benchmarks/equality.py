"""`python -m benchmarks.equality --stages 0,1,2,3`: compare the two ZeRO engines with plain autograd.

A tiny BigGAN trains for some rounds of two D steps and a G step. Plain autograd trains it on whole global batches in one
process. The engines train it at each stage, precision, accumulation and number of ranks. Spectral norm, attention, orthogonal
regularisation, EMA and the data loader take part. So does batch norm over groups inside a micro-batch and across ranks.

The table has the norm of the difference over the norm, for parameters, averages and spectral norm's vectors. The samples,
labels, flips and latents of each global batch must be the same. fp32 must be within 1e-5 of autograd in fp32. bf16 may be 1.5
times as far from that as autograd in bf16 is. Adam's distances have no limit: Adam amplifies rounding where gradients are near
0.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.arms.equality_cases import BATCH, D_STEPS, NETWORKS, Ask, Case, cases, collect, networks
from benchmarks.arms.equality_plain import plain
from benchmarks.support.distance import distance
from benchmarks.support.patterns import pack_patterns
from benchmarks.support.report import report

FP32_LIMIT, BF16_LIMIT = 1e-5, 1.5


def run_workers(world_size: int, ask: Ask, uri: str, folder: Path) -> dict[str, str]:
    """Start the ranks; return what their global batches held, by place."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    common |= {"ACCELERATE_USE_DEEPSPEED": "true", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.arms.equality_engines", json.dumps([asdict(ask), uri, str(folder)])]
    workers = [
        subprocess.Popen(
            command, env=os.environ | {k: str(v) for k, v in common.items()} | {"RANK": str(r), "LOCAL_RANK": str(r)}
        )
        for r in range(world_size)
    ]
    codes = [process.wait(1200) for process in workers]
    if any(codes):
        raise SystemExit(f"benchmarks.equality: {world_size} workers ended with {codes}")
    seen: dict[str, str] = {}
    for rank in range(world_size):
        seen |= json.loads((folder / f"seen-{rank}.json").read_text())
    return seen


def compare(case: Case, found: dict[str, Tensor], references: dict[Case, dict[str, Tensor]], start: dict[str, Tensor]) -> dict:
    """Return a row: distances to autograd in fp32, their limits, and distances to autograd in the same precision."""
    exact = references[replace(case.mathematics, precision="fp32")]
    same = references[case.mathematics]
    moved = {name: distance(start, exact, name) for name in NETWORKS}
    row = asdict(case) | {name: distance(found, exact, name) for name in NETWORKS}
    if case.precision == "bf16":
        limits = {name: BF16_LIMIT * distance(same, exact, name) for name in NETWORKS}
        row |= {f"{name} to bf16": distance(found, same, name) for name in ("G", "D")}
    else:
        limits = dict.fromkeys(NETWORKS, FP32_LIMIT)
    within = all(row[name] <= limits[name] and moved[name] > 10 * limits[name] for name in NETWORKS)
    row |= {"limit G": limits["G"], "limit D": limits["D"], "moved": min(moved.values())}
    return row | {"ok": case.optimizer == "adam" or within}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.equality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default="0,1,2,3", help="ZeRO stages to compare with plain autograd")
    parser.add_argument("--optimizers", default="sgd,adam", help="with which (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of two D steps and a G step (default: %(default)s)")
    parser.add_argument("--ranks", default="1,2,4", help="numbers of processes")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the workers have: with more, work this small only waits
    ask = Ask(tuple(map(int, args.stages.split(","))), tuple(args.optimizers.split(",")), args.rounds)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        uri = pack_patterns(Path(name), classes=4, images=64)
        g, d = networks()
        start = collect(g, d, dict(g.named_parameters()))
        wanted = {case.mathematics for case in cases(ask)}
        wanted |= {replace(case, precision="fp32") for case in wanted}
        references = {case: plain(case, ask.rounds, uri) for case in wanted}
        seen = {}
        for world_size in (int(ranks) for ranks in args.ranks.split(",")):
            folder = Path(name, str(world_size))
            seen[world_size] = run_workers(world_size, ask, uri, folder)
            for i, case in enumerate(cases(ask)):
                found = safetensors.torch.load_file(folder / f"{i}.safetensors")
                rows.append({"ranks": world_size} | compare(case, found, references, start))
    held = list(seen.values())
    same = all(other == held[0] for other in held) and len(held[0]) == ask.rounds * (2 * D_STEPS + 1) * BATCH
    rows.append({"case": "samples, labels, flips, latents", "ok": same})
    ok = all(bool(row["ok"]) for row in rows)
    report("equality", rows, {"rows": rows, "places_compared": len(held[0])}, ok)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
