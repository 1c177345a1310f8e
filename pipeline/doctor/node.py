"""What one node can do, measured in seconds: devices, matrix products, storage, MLflow, disks, versions.

`biggan doctor --cluster` runs it on all nodes at the same time, as training will. Nothing here waits for longer than its
limit: a mount or a server that does not answer becomes a line of the report.
"""

import contextlib
import importlib
import os
import platform
import shutil
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import variables
from pipeline.doctor.stores import LIMIT_SECONDS, Store, existing, seconds_of, shards, slower, within, written
from pipeline.profiling.mfu import device_name, matrix_rate
from pipeline.runs.lineage import code_sha256
from pipeline.tracking.mlflow_errors import first_line
from pipeline.tracking.mlflow_store import connect

_THROTTLES = {0x08: "hardware slowdown", 0x20: "thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""NVML's reasons for low clocks that are not the GPU's normal power limit."""


@dataclass(frozen=True)
class Places:
    """What a training will use, as far as it is known."""

    folders: tuple[str, ...] = ()
    """Local folders that must have room."""
    written: tuple[str, ...] = ()
    """URIs where a file is written, read back and removed."""
    read: tuple[str, ...] = ()
    """URIs of shards, which are only read."""
    tracking: str | None = None
    """MLflow server; None for none, or a file."""


@dataclass(frozen=True, kw_only=True)
class NodeDevice:
    """A GPU, or the processor of a node without one."""

    name: str
    bf16: float
    """FLOP/s of a matrix product, with all devices of all nodes at work."""
    fp32: float
    free: float | None = None
    """Share of the memory that nobody used before, 0..1."""
    mhz: int | None = None
    """Highest clock of the multiprocessors meanwhile."""
    throttled: str = ""
    """Why the clocks were held down, other than by the normal limit of power."""
    ecc: int | None = None
    """Memory errors since the driver was loaded that could not be corrected."""


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What one node says of itself."""

    gpus: int
    devices: tuple[NodeDevice, ...]
    """One for each GPU; the processor where there is none."""
    software: dict[str, str]
    """Versions that must be the same on all nodes."""
    stores: tuple[Store, ...]
    disks: dict[str, float]
    """Bytes free, by folder."""
    mlflow: float | None = None
    """Seconds of a request."""
    mlflow_error: str = ""
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""


class NodeFaultInjection:
    """A sick node on demand, for tests and benchmarks: BIGGAN_NODE_FAULT=2:link:0.05 makes node 2 wait 0.05 s for each
    megabyte of an all-reduce. Kinds: `matrix` and `storage` (times slower), `link` (seconds per MB), `clock` (seconds ahead),
    `late` (seconds until it reports), `silent` (it reports, then answers nothing more)."""

    def __init__(self, node: int):
        entries = [entry.split(":") for entry in os.environ.get(variables.NODE_FAULT, "").split(",") if entry]
        self._values = {kind: float(value) for who, kind, value in entries if who in (str(node), socket.gethostname())}

    def value(self, kind: str, healthy: float) -> float:
        return self._values.get(kind, healthy)

    def now(self) -> float:
        """Seconds since the epoch by this node's clock."""
        return time.time() + self.value("clock", 0.0)


def probe(places: Places, seconds: float, fault: NodeFaultInjection) -> NodeReport:
    """Measure this node. Each store takes about `seconds`, everything else together a few."""
    devices, notes = _devices(fault)
    stores = [written(uri, seconds) for uri in places.written]
    stores += [shards(uri, seconds) for uri in places.read]
    stores = [slower(store, fault.value("storage", 1.0)) for store in stores]
    answer, error = _mlflow(places.tracking)
    disks = {}
    for folder in dict.fromkeys((*places.folders, tempfile.gettempdir())):
        try:
            disks[folder] = within(LIMIT_SECONDS, partial(_free, folder))
        except (OSError, TimeoutError) as refusal:
            disks[folder] = 0.0
            notes.append(f"{folder}: {refusal}")
    return NodeReport(
        gpus=torch.cuda.device_count(),
        devices=tuple(devices),
        software=_software(),
        stores=tuple(stores),
        disks=disks,
        mlflow=answer,
        mlflow_error=error,
        notes=tuple(notes),
    )


def _software() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "code": code_sha256()[:12]}
    driver = Path("/proc/driver/nvidia/version")
    if torch.cuda.is_available() and driver.exists():
        words = driver.read_text().splitlines()[0].split()
        found["driver"] = next((word for word in words if word[0].isdigit() and "." in word), "unknown")
    return found


# Devices.


def _devices(fault: NodeFaultInjection) -> tuple[list[NodeDevice], list[str]]:
    """All of this node at once, and what could not be read of them."""
    cuda = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if not cuda:
        return [_rated(torch.device("cpu"), fault)], []
    sensors = [_Sensor.of(device) for device in cuda]
    with ThreadPoolExecutor(len(cuda)) as pool:
        jobs = [pool.submit(_rated, device, fault) for device in cuda]
        while not all(job.done() for job in jobs):
            for sensor in sensors:
                if isinstance(sensor, _Sensor):
                    sensor.look()
            time.sleep(0.02)
    devices = [
        sensor.added(job.result()) if isinstance(sensor, _Sensor) else job.result()
        for sensor, job in zip(sensors, jobs, strict=True)
    ]
    return devices, [f"GPU {index}: {sensor}" for index, sensor in enumerate(sensors) if isinstance(sensor, str)]


def _rated(device: torch.device, fault: NodeFaultInjection) -> NodeDevice:
    times = fault.value("matrix", 1.0)
    return NodeDevice(
        name=device_name(device), bf16=matrix_rate(device, "bf16") / times, fp32=matrix_rate(device, "fp32") / times
    )


class _Sensor:
    """NVML's view of one GPU, as long as it works."""

    def __init__(self, nvml: Any, handle: Any):
        self._nvml, self._handle = nvml, handle
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        self._free = float(memory.free / memory.total)
        self._mhz, self._reasons = 0, 0

    @staticmethod
    def of(device: torch.device) -> "_Sensor | str":
        """The sensor, or why there is none. Before this process uses the device."""
        try:
            nvml: Any = importlib.import_module("pynvml")  # without types, and only where there are GPUs
        except ImportError:
            return "no clocks and no throttling without nvidia-ml-py: pip install nvidia-ml-py"
        try:
            nvml.nvmlInit()
            name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # an index would be that of another visible set
            return _Sensor(nvml, nvml.nvmlDeviceGetHandleByUUID(name.encode()))
        except nvml.NVMLError as error:
            return f"NVML: {error}"

    def look(self) -> None:
        """Once more, while the device works."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._mhz = max(self._mhz, self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
            self._reasons |= self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)

    def added(self, device: NodeDevice) -> NodeDevice:
        """`device` with what was seen."""
        kinds = (self._nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self._nvml.NVML_VOLATILE_ECC)
        try:
            ecc = int(self._nvml.nvmlDeviceGetTotalEccErrors(self._handle, *kinds))
        except self._nvml.NVMLError:
            ecc = None  # a GPU without ECC
        throttled = ", ".join(name for bit, name in _THROTTLES.items() if self._reasons & bit)
        return replace(device, free=self._free, mhz=self._mhz, throttled=throttled, ecc=ecc)


# Disks and MLflow.


def _mlflow(uri: str | None) -> tuple[float | None, str]:
    """Seconds of a request to the server, or why it does not answer."""
    if uri is None:
        return None, ""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

    def ask() -> float:
        client = connect(uri)
        client.search_experiments(max_results=1)  # the first one also connects
        return seconds_of(lambda: client.search_experiments(max_results=1))

    try:
        return within(2 * LIMIT_SECONDS, ask), ""
    except TimeoutError:
        return None, f"no answer within {2 * LIMIT_SECONDS:.0f} s"
    except Exception as error:  # MLflow has no common class for what can go wrong on the way
        return None, first_line(error)


def _free(folder: str) -> float:
    return float(shutil.disk_usage(existing(Path(folder))).free)
