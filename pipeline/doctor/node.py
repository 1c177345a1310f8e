"""What one node can do, measured in seconds: devices, matrix products, storage, MLflow, disks, versions.

`biggan doctor --cluster` runs it on all nodes at the same time, as training will. Nothing here waits for longer than its
limit: a mount or a server that does not answer becomes a line of the report.
"""

import contextlib
import importlib
import os
import platform
import queue
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline import storage, variables
from pipeline.errors import UserError
from pipeline.profiling.mfu import device_name, matrix_rate
from pipeline.runs.lineage import code_sha256
from pipeline.storage import removal
from pipeline.tracking.mlflow_errors import first_line
from pipeline.tracking.mlflow_store import connect

T = TypeVar("T")


_CHUNK = 8 << 20
_MOST_CHUNKS = 32
_READERS = 4
_LIMIT_SECONDS = 15.0
"""That MLflow, a disk, or a store beyond its own time, may take to answer."""
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


@dataclass(frozen=True)
class Store:
    """How fast a URI is, in bytes per second; None for what was not tried."""

    uri: str
    write: float | None = None
    read: float | None = None
    error: str = ""


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
    stores = [_guarded(_write_and_read, uri, seconds) for uri in places.written]
    stores += [_guarded(_read_shards, uri, seconds) for uri in places.read]
    stores = [_slower(store, fault.value("storage", 1.0)) for store in stores]
    answer, error = _mlflow(places.tracking)
    disks = {}
    for folder in dict.fromkeys((*places.folders, tempfile.gettempdir())):
        try:
            disks[folder] = _within(_LIMIT_SECONDS, partial(_free, folder))
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


# Stores, disks, MLflow.


def _guarded(measure: Callable[[str, float], Store], uri: str, seconds: float) -> Store:
    try:
        return _within(seconds + _LIMIT_SECONDS, partial(measure, uri, seconds))
    except TimeoutError:
        return Store(uri, error=f"no answer within {seconds + _LIMIT_SECONDS:.0f} s")
    except (UserError, OSError) as error:
        return Store(uri, error=first_line(error))


def _write_and_read(uri: str, seconds: float) -> Store:
    path = storage.local_path(uri)
    there = str(_existing(path)) if path else uri  # a folder that we made would be in the way of a new run
    chunk, chunks, spent = os.urandom(_CHUNK), 0, 0.0
    with removal.trial(there, f".doctor-{socket.gethostname()}-") as name:
        while spent < seconds / 8 and chunks < _MOST_CHUNKS:
            chunks = max(1, 4 * chunks)
            spent = _seconds(lambda: storage.write_chunks(name, [chunk] * chunks))  # noqa: B023
        _forget(name)
        return Store(uri, chunks * _CHUNK / spent, _read([name], chunks * _CHUNK, seconds / 2))


def _read_shards(uri: str, seconds: float) -> Store:
    tars = [storage.join(uri, name) for name in storage.names(uri) if name.endswith(".tar")]
    if not tars:
        return Store(uri, error="no .tar there")
    chosen = random.sample(tars, min(len(tars), 8))
    for name in chosen:
        _forget(name)
    return Store(uri, read=_read(chosen, min(map(storage.size, chosen)), seconds / 2))


def _read(names: Sequence[str], size: int, seconds: float) -> float:
    """Bytes per second of reading stretches of what is stored under `names`, several at once."""
    end, began = time.monotonic() + seconds, time.perf_counter()

    def read(start: int) -> int:
        if time.monotonic() > end:
            return 0
        return sum(len(storage.read_range(name, start, min(start + _CHUNK, size))) for name in names)

    with ThreadPoolExecutor(_READERS) as pool:
        done = sum(pool.map(read, range(0, size, _CHUNK)))
    return done / (time.perf_counter() - began)


def _forget(name: str) -> None:
    """Drop what this node keeps of a local file, or its memory would be measured."""
    if path := storage.local_path(name):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _slower(store: Store, times: float) -> Store:
    return Store(store.uri, store.write and store.write / times, store.read and store.read / times, store.error)


def _mlflow(uri: str | None) -> tuple[float | None, str]:
    """Seconds of a request to the server, or why it does not answer."""
    if uri is None:
        return None, ""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

    def ask() -> float:
        client = connect(uri)
        client.search_experiments(max_results=1)  # the first one also connects
        return _seconds(lambda: client.search_experiments(max_results=1))

    try:
        return _within(2 * _LIMIT_SECONDS, ask), ""
    except TimeoutError:
        return None, f"no answer within {2 * _LIMIT_SECONDS:.0f} s"
    except Exception as error:  # MLflow has no common class for what can go wrong on the way
        return None, first_line(error)


def _free(folder: str) -> float:
    return float(shutil.disk_usage(_existing(Path(folder))).free)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _within(seconds: float, action: Callable[[], T]) -> T:
    """What `action` returns or raises; TimeoutError if that takes longer. The action itself goes on in its thread."""
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((action(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
