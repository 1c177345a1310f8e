"""What a training costs against what its devices can do: counted FLOPs, and the measured rate of a matrix product."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from model.describe import training_cost
from pipeline import storage
from pipeline.config import RunConfig
from pipeline.engine import agreement
from pipeline.engine.ranks import Ranks
from pipeline.storage import small_files
from pipeline.storage.best_effort import best_effort

_SIDE = {"cuda": 8192, "cpu": 1024}
_SECONDS = 0.3


@dataclass(frozen=True)
class Efficiency:
    """The two sides of the model FLOP utilisation."""

    flops_per_image: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of training, for each real image that D sees (`model.describe.training_cost`)."""
    peak: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """FLOP/s of all ranks together."""

    def mfu(self, images_per_second: float) -> float:
        """Model FLOP utilisation, 0..1."""
        return self.flops_per_image * images_per_second / self.peak


def efficiency(config: RunConfig, ranks: Ranks) -> Efficiency:
    """Counted and measured once for a run, and kept in RUN/efficiency.json for these devices. Every rank calls it."""
    key = f"{device_name(ranks.device)}, {ranks.world_size} ranks, {torch.get_num_threads()} threads, {config.precision}"
    key += f", d_steps={config.batch.d_steps}, peak_tflops={config.peak_tflops}"
    path = Path(config.run, "efficiency.json")
    found = [_read(path)[key]] if ranks.main and key in _read(path) else []
    if known := agreement.from_main(list[Efficiency], found, ranks):
        return known[0]
    peak = config.peak_tflops and config.peak_tflops * 1e12
    peak = sum(ranks.sum([torch.tensor(peak or matrix_rate(ranks.device, config.precision), device=ranks.device)]))
    flops = training_cost(config.model).per_image(config.batch.d_steps) if ranks.main else 0.0
    measured = Efficiency(flops, peak)
    if ranks.main:
        document = {name: asdict(one) for name, one in (_read(path) | {key: measured}).items()}
        with best_effort(path):
            storage.write_bytes(str(path), json.dumps(document, indent=1).encode())
    return measured


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square matrix product on this rank while the others do the same: the best of 0.3 seconds."""
    side = _SIDE[device.type]
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def device_name(device: torch.device) -> str:
    """Of the GPU, or of the CPU as Linux calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "CPU")


def _read(path: Path) -> dict[str, Efficiency]:
    """Return what is known, by devices; nothing where the file is damaged, as it can be measured again."""
    return small_files.optional(dict[str, Efficiency], path) or {}
