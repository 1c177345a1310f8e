"""From one process on each node to its workers: what can be checked without them, `accelerate launch`, and how they ended.

check   configuration, shards and checkpoints of the run; node 0 makes or checks its folder
meet    of several nodes: all are there, with the same code and configuration (`pipeline.roll_call`)
run     `accelerate launch --use_deepspeed` as a child; a signal becomes RUN/STOP, which the workers agree on
part    the launcher hides its workers' exit codes, so they leave a status; of several nodes the most telling one counts
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline import kept, stop
from pipeline.errors import UserError
from pipeline.topology import Topology, without_launchers

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.index import Manifest
    from pipeline.roll_call import Card, RollCall
    from pipeline.run import Status

PARENT_VARIABLE = "BIGGAN_TRAIN_PID"
"""Environment variable: the process that started `accelerate launch`."""

PATIENCE = 600.0
"""Seconds that nodes wait for each other before their workers start."""

ON_A_CPU = {"DS_ACCELERATOR": "cpu", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""Environment of workers without a GPU. glibc gives large tensors back to the kernel when they are freed, and gets the next as
pages to fill with zeros: to keep them makes a step 1.2 to 1.3 times as fast (docs/performance.md)."""

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""That the launcher passes on to the workers: its default, and those two, which would kill it and leave the workers behind."""

_RANKING = ("failed", "finished", "stopped", "hung", "crashed", "interrupted")
"""Of what nodes say of the end, the first counts. `crashed` is what a node says that was only torn along."""


@dataclass(frozen=True)
class Launch:
    """What to start on each node."""

    config: "RunConfig"
    worker: Sequence[str]
    """Module and arguments of a worker, as after `python -m`."""
    began: float
    """When this start began, in seconds since the epoch: `stop.max_time` counts from there."""
    patience: float = PATIENCE


def launch(job: Launch, topology: Topology) -> int:
    """Train on this node, as one of `topology`; returns the exit code of the run, the same on all nodes. Inside `stop.at_once`.

    Raises UserError for what is wrong before any worker has started.
    """
    import torch

    from pipeline.roll_call import RollCall

    folder, processes = Path(job.config.run), job.config.processes or torch.cuda.device_count() or 1
    roll = RollCall(topology) if topology.nodes > 1 else None
    if _ready(job, topology, roll, processes):
        return 0
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    name = "stderr.log" if topology.nodes == 1 else f"stderr-node{topology.rank}.log"
    with open(logs / name, "ab") as errors, stop.forwarded(folder):
        began = errors.tell()
        print(f"starting {processes} workers with accelerate launch; their stderr is in {errors.name}", flush=True)
        end, trace = _run(job, topology, processes, errors, roll)
        if roll:
            end = _most_telling(end, roll, folder)
        if topology.rank == 0 and end.state not in ("finished", "stopped"):
            from pipeline.reaper import finish_failed

            finish_failed(folder, job.config.tracking)
        _keep_log(job.config, Path(errors.name), began, topology)
    if end.state == "crashed":
        print(trace, file=sys.stderr)
    return _tell(job.config, end)


def _ready(job: Launch, topology: Topology, roll: "RollCall | None", processes: int) -> bool:
    """Find every mistake that can be found without workers; whether the run has finished already."""
    from pipeline import run
    from pipeline.batch import plan_batch
    from pipeline.dataset import load_data
    from pipeline.labels import empty_classes

    config = job.config
    plan_batch(config.batch, processes * topology.nodes)
    manifest = load_data(config.data)
    run.check_model(config, manifest)
    if topology.rank == 0 and (empty := empty_classes(manifest.classes, manifest.class_counts)):
        print(f"biggan: warning: {empty}", file=sys.stderr)
    forget_stop(Path(config.run))  # before the others may go on: what comes from now on is meant for this start
    finished = False
    if topology.rank == 0:
        if config.checkpoint.uri:
            kept.recover(config.run, config.checkpoint.uri)
        finished = _prepare(config, manifest)
    if roll:
        identity = run.read_identity(Path(config.run)) if topology.rank == 0 else None
        answer = roll.meet(_card(config, processes), job.patience, {"run": identity, "finished": finished})
        if topology.rank == 0 and answer["warn"]:
            print(f"biggan: warning: {answer['warn']}", file=sys.stderr)
        kept.adopt(config.run, answer["identity"]["run"])
        finished = answer["identity"]["finished"]
    return finished


def _prepare(config: "RunConfig", manifest: "Manifest") -> bool:
    """Make or check the run's folder; whether the run has finished already."""
    from pipeline import checkpoint, initial, run

    last = next(checkpoint.committed(run.checkpoint_uri(config)), None)
    if last is None and (weights := initial.initial_checkpoint(config)):
        print(f"starting from {weights.uri}: {', '.join(sorted(weights.parts))}", flush=True)
    for line in run.prepare(config, manifest):
        print(f"changed since the last start: {line}", flush=True)
    ended = run.read_status(Path(config.run, "status.json"))
    # Killed after its last checkpoint, a run still has to tell MLflow of its end: workers do, with nothing to train.
    if last and last.images >= config.total_images and ended and ended.state == "finished":
        print(f"{config.run} has finished: {last.images:,} images, {last.uri}")
        return True
    return False


def _card(config: "RunConfig", processes: int) -> "Card":
    from pipeline.lineage import code_sha256, config_sha256
    from pipeline.roll_call import Card

    return Card(socket.gethostname(), processes, config_sha256(config), code_sha256(), time.time())


def _run(job: Launch, topology: Topology, processes: int, errors: IO[bytes], roll: "RollCall | None") -> "tuple[Status, str]":
    """Start `accelerate launch` and wait for it; how the workers of this node ended, and the first traceback among theirs."""
    import torch

    from pipeline import run

    folder = Path(job.config.run)
    old_dumps = set((folder / "logs").glob("hang-*.txt"))
    began = errors.tell()
    with tempfile.NamedTemporaryFile(prefix="biggan-status-") as status:
        child = subprocess.Popen(
            _accelerate_command(job.worker, topology, processes),
            env=_environment(processes, torch.cuda.is_available())
            | {"PET_SIGNALS_TO_HANDLE": _SIGNALS, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.config.stop.grace)}
            | {run.STATUS_VARIABLE: status.name, PARENT_VARIABLE: str(os.getpid()), stop.BEGAN_VARIABLE: str(job.began)},
            stderr=errors,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, which takes no lock
        )
        code = _wait(child, roll, job.config.stop.grace)
        end = run.read_status(Path(status.name))
    with open(errors.name, "rb") as file:
        file.seek(began)
        said = file.read().decode(errors="replace")
    dumps = sorted(set((folder / "logs").glob("hang-*.txt")) - old_dumps)
    return _outcome(folder, end, code, said, dumps), _first_traceback(said)


def _wait(child: subprocess.Popen[bytes], roll: "RollCall | None", grace: int) -> int:
    """The launcher's exit code. Workers that wait for a node whose own have ended are ended, after `grace` seconds."""
    if roll is None:
        return child.wait()
    alone_since = None
    while True:
        try:
            return child.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            if alone_since is None and roll.others_have_ended():
                alone_since = time.monotonic()
            if alone_since and time.monotonic() > alone_since + grace:
                print("biggan: the workers of another node have ended; these are ended too", file=sys.stderr)
                child.terminate()
                alone_since = float("inf")


def _outcome(folder: Path, end: "Status | None", code: int, said: str, dumps: list[Path]) -> "Status":
    """How the workers of this node ended: by their status, what they `said` on stderr and the stacks they left."""
    from pipeline import run, watchdog

    if end and end.state in ("failed", "finished", "stopped"):
        return end
    images = end.images if end else 0
    # The launcher died of a signal, or had to pass it on to workers that were not ready to note it.
    if end is None and (-code in stop.SIGNALS or "death signal" in said):
        return run.Status("interrupted", images, stop.EXIT_CODE)
    if dumps:
        message = f"{watchdog.explain(dumps)}; the stacks are in {folder}/logs/hang-rank*; the same command resumes"
        run.write_status(folder, run.Status("failed", images, watchdog.EXIT_CODE, message))
        return run.Status("hung", images, watchdog.EXIT_CODE, message)
    message = (
        f"the workers ended without a result (launcher's exit code {code}): see {folder}/logs/; "
        "the same command resumes from the last checkpoint"
    )
    return run.Status("crashed", images, 1, message)


def _most_telling(mine: "Status", roll: "RollCall", folder: Path) -> "Status":
    """Of all nodes' ends the one that counts; node 0 writes it down where its own workers could not."""
    from pipeline import run

    ends = [run.Status(**end) for end in roll.end(asdict(mine))]
    end = min(ends, key=lambda end: _RANKING.index(end.state))
    if end != mine and end.state == "failed" and roll.topology.rank == 0:
        run.write_status(folder, end)
    return end


def _tell(config: "RunConfig", end: "Status") -> int:
    if end.state == "stopped":
        print(f"stopped by {end.message} at image {end.images:,} of {config.total_images:,}: the same command goes on there")
    elif end.state == "interrupted":
        print("stopped by a signal before training began: the same command starts again")
    elif end.state != "finished":
        print(f"biggan: error: {end.message}", file=sys.stderr)
    return end.exit_code if end.exit_code is not None else 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent is gone: else a killed launcher leaves workers that go on writing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)


def outlived_launcher() -> bool:
    """Whether the launcher died before this worker could ask to die with it: its parent is then no child of `launch`."""
    try:
        status = Path(f"/proc/{os.getppid()}/stat").read_text()
    except FileNotFoundError:
        return Path("/proc/self").exists()
    grandparent = status.rpartition(")")[2].split()[1]
    return os.environ.get(PARENT_VARIABLE, grandparent) != grandparent


def forget_stop(folder: Path) -> None:
    """Whatever starts workers, they begin without an old RUN/STOP. One that a training still has to see stays."""
    from pipeline import run

    if not run.is_training(folder):
        stop.forget(folder)


def _first_traceback(said: str) -> str:
    """What the first worker to fail said; the launcher's summary and the other workers' complaints bury it."""
    lines = said.splitlines()
    first = next((i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line), None)
    if first is None:
        return "\n".join(lines[-10:])
    rank = lines[first].partition("Traceback")[0]
    return "\n".join([line.removeprefix(rank) for line in lines[first:] if line.startswith(rank)][:40])


def _accelerate_command(worker: Sequence[str], topology: Topology, processes: int) -> list[str]:
    options: dict[str, object] = {"num_machines": topology.nodes, "num_processes": processes * topology.nodes}
    if topology.nodes > 1:
        options |= {"machine_rank": topology.rank, "main_process_ip": topology.address}
        options |= {"deepspeed_multinode_launcher": "standard"}  # by default it would log in to the other nodes with pdsh
    options |= {"main_process_port": topology.port, "mixed_precision": "no", "dynamo_backend": "no"}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", *flags, "--module", *worker]


def _environment(processes: int, gpu: bool) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    # FutureWarning: torch announces changes to functions that DeepSpeed calls, once per call.
    quiet = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore::FutureWarning"}
    return quiet | ({} if gpu else ON_A_CPU) | without_launchers(os.environ)


def _keep_log(config: "RunConfig", file: Path, began: int, topology: Topology) -> None:
    """Beside checkpoints that are elsewhere, what the workers of this start said, the last 16 MB: a node's disk may go."""
    if not (uri := config.checkpoint.uri):
        return
    from pipeline import storage

    with open(file, "rb") as said:
        said.seek(max(began, file.stat().st_size - (16 << 20)))
        data = said.read()
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-node{topology.rank}.log"
    try:
        storage.write_bytes(storage.join(uri, "logs", name), data)
    except UserError as error:
        print(f"biggan: warning: the log {file} stays on this node: {error}", file=sys.stderr)
