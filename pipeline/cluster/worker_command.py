"""Command and environment with which a node starts its workers: `accelerate launch`, which starts the rest."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import child_imports
from pipeline.cluster.topology import Topology, without_launchers
from pipeline.messaging.loopback import is_loopback, stay_on_loopback
from pipeline.messaging.store_relay import Exchange

ON_A_CPU = {"DS_ACCELERATOR": "cpu", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Environment of workers without a GPU. glibc gives large tensors back to the kernel when they are freed, and gets the next as
pages to fill with zeros: to keep them makes a step 1.2 to 1.3 times as fast (docs/performance.md)."""

NO_DEFAULTS = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "mixed_precision": "no"}
"""What `accelerate launch` reads in place of the user's `default_config.yaml`, which is about other programs."""


def command(worker: Sequence[str], topology: Topology, processes: int, defaults: Path, store_port: int) -> list[str]:
    """Return `accelerate launch` of `worker`, module and arguments as after `python -m`, for `topology.rank`'s `processes`.

    `defaults` is a file of NO_DEFAULTS.
    """
    options: dict[str, object] = {"num_machines": topology.nodes, "num_processes": processes * topology.nodes}
    if topology.nodes > 1:
        options |= {"machine_rank": topology.rank, "main_process_ip": "127.0.0.1"}
        options |= {"deepspeed_multinode_launcher": "standard"}  # by default it would log in to the other nodes with pdsh
    options |= {"main_process_port": store_port, "mixed_precision": "no", "dynamo_backend": "no"}
    options |= {"config_file": defaults}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "pipeline.cluster.accelerate_launch", "--use_deepspeed", *flags, "--module", *worker]


def worker_environment(processes: int, gpu: bool, topology: Topology, exchange: Exchange) -> dict[str, str]:
    """Return the environment of the launcher and its workers: the user's, in which nothing ends or exposes them."""
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    # FutureWarning: torch announces changes to functions that DeepSpeed calls, once per call.
    quiet = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore::FutureWarning"}
    given = _harmless(without_launchers(os.environ), threads)
    here = stay_on_loopback(given) if is_loopback(topology.address) else {}
    return quiet | ({} if gpu else ON_A_CPU) | given | child_imports.child_environment() | here | exchange.environment()


def _harmless(environment: dict[str, str], threads: int) -> dict[str, str]:
    """The environment without what is valid elsewhere and ends workers, each with a line."""
    if (given := environment.get("OMP_NUM_THREADS")) is not None and not (given.isdecimal() and int(given)):
        # OpenMP takes one number for each level of nesting; accelerate reads one.
        first = given.partition(",")[0].strip()
        count = int(first) if first.isdecimal() and int(first) else threads
        print(f"OMP_NUM_THREADS={given} is not one number: each worker uses {count}", flush=True)
        environment["OMP_NUM_THREADS"] = str(count)
    if "error" in (warnings := environment.get("PYTHONWARNINGS", "")):
        print(f"PYTHONWARNINGS={warnings} would end workers at a library's first warning: they ignore it", flush=True)
        del environment["PYTHONWARNINGS"]
    return environment
