"""What every node's hardware does, in the same MLflow run: `system/node0/cpu_utilization_percentage` and so on.

One process of each node samples, in a thread, and appends to RUN/system/node00000.jsonl, a journal with no other writer, so
that nodes need no lock and no network between them but the run's folder. Whoever delivers the run's journal delivers these
too. Where nodes do not share the folder, each keeps its own file; copy them together and `biggan sync` has all.
"""

import logging
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.tracking.journal import append_line, read_file
from pipeline.tracking.records import MetricsRecord, now

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

log = logging.getLogger(__name__)


class SystemMetrics:
    """Samples this machine, number `node` of the run's, every `seconds`; 0 seconds do nothing. One process of a node makes it.

    Steps count the samples of a node, over all starts of the run; an end takes a last one.
    """

    def __init__(self, run_dir: Path, seconds: float, node: int):
        self._seconds, self._node = seconds, node
        self.path = run_dir / "system" / f"node{self._node:05d}.jsonl"
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        if seconds:
            self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        if self._thread:
            self._thread.join(5)

    def _run(self) -> None:
        try:
            monitors = _monitors()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            step = max((r.step for r, _ in read_file(self.path) if isinstance(r, MetricsRecord)), default=-1) + 1
            ending = False
            while not ending:
                ending = self._ending.wait(self._seconds)
                self._append(step, monitors)
                step += 1
        except Exception as error:  # a full disk, a sensor that fails: no reason to disturb a training
            log.warning("no more system metrics of node %d: %s", self._node, error)

    def _append(self, step: int, monitors: "list[BaseMetricsMonitor]") -> None:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {f"system/node{self._node}/{key}": value for key, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        append_line(self.path, MetricsRecord(time=now(), host=socket.gethostname(), metrics=values, step=step))


def _monitors() -> "list[BaseMetricsMonitor]":
    """MLflow's own, on psutil and, where there is a GPU and its library, NVML or ROCm's; its UI knows their names."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for kind in (GPUMonitor, ROCMMonitor):
        try:
            monitors.append(kind())
        except (ImportError, RuntimeError):  # no library, or no such GPU
            continue
    return monitors
