"""From one process on each node to its workers: what can be checked without them, `accelerate launch`, and how they ended.

check   configuration, shards and checkpoints of the run; node 0 makes or checks its folder
meet    of several nodes: all are there, with the same code and configuration (`pipeline.cluster.rendezvous`)
run     `accelerate launch --use_deepspeed` as a child; a signal becomes RUN/STOP, which the workers agree on
part    the launcher hides its workers' exit codes, so they leave a status; of several nodes the most telling one counts
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline import exit_codes, variables
from pipeline.cluster.launch_folder import CONFIG, DEFAULTS, PROGRESS, STATUS, launch_folder
from pipeline.cluster.topology import PATIENCE, Topology
from pipeline.fault_tolerance import run_mirror, stop
from pipeline.liveness import die_with_parent
from pipeline.messaging.job_token import Token
from pipeline.storage import run_lock
from pipeline.storage.best_effort import best_effort
from pipeline.tracking import terminal
from pipeline.tracking.journal import journal_path
from pipeline.wording import plural, printable

if TYPE_CHECKING:
    from pipeline.cluster.node_card import Card
    from pipeline.cluster.rendezvous import RollCall
    from pipeline.config import RunConfig
    from pipeline.data.manifest import Manifest
    from pipeline.runs.run_folder import RunState

_SIGNALS = "SIGTERM,SIGINT,SIGQUIT,SIGUSR1,SIGUSR2"
"""That the launcher passes on to the workers: of its default all but SIGHUP, which this process turns into RUN/STOP, and two
more, which would kill it and leave the workers behind."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to start on each node."""

    config: "RunConfig"
    flags: Sequence[str]
    """Of a worker's `biggan train`, beside its configuration."""
    began: float
    """When this start began, in seconds of the monotonic clock: `stop.max_time` counts from there."""
    patience: float = PATIENCE
    from_scratch: bool = False
    """Begin anew if none of the run's checkpoints is intact."""
    token: Token = field(default_factory=Token)
    """By which several nodes know each other."""


def launch(job: Launch, topology: Topology) -> int:
    """Train on this node, as one of `topology`; returns the exit code of the run, the same on all nodes. Inside `stop.at_once`.

    Raises UserError for what is wrong before any worker has started.
    """
    import torch

    from pipeline.cluster.rendezvous import RollCall

    processes = job.config.processes or torch.cuda.device_count() or 1
    if topology.nodes == 1:
        return 0 if _ready(job, topology, None, processes) else _train(job, topology, None, processes)
    with contextlib.closing(RollCall(topology, job.token)) as roll:
        return 0 if _ready(job, topology, roll, processes) else _train(job, topology, roll, processes)


def _train(job: Launch, topology: Topology, roll: "RollCall | None", processes: int) -> int:
    """Start this node's workers and see them through; the exit code of the run."""
    folder = Path(job.config.run)
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    name = "stderr.log" if topology.nodes == 1 else f"stderr-node{topology.rank}.log"
    with launch_folder() as place, open(logs / name, "ab+") as errors, stop.forwarded(folder, place):
        began = errors.seek(0, os.SEEK_END)
        print(f"starting {plural(processes, 'worker')} with accelerate launch; their stderr is in {errors.name}", flush=True)
        end, trace = _run(job, topology, processes, errors=errors, roll=roll, place=place)
        if roll:
            end = _most_telling(end, roll, folder)
        if topology.rank == 0 and end.state not in ("finished", "stopped"):
            from pipeline.runs.reaper import finish_failed

            with best_effort(journal_path(folder)):
                finish_failed(folder, job.config.tracking)
        if job.config.checkpoint.uri:
            run_mirror.keep_log(job.config.checkpoint.uri, Path(errors.name), began, topology.rank)
    if trace and end.state in ("crashed", "torn"):
        print(trace, file=sys.stderr)
    return _tell(job.config, end)


def _ready(job: Launch, topology: Topology, roll: "RollCall | None", processes: int) -> bool:
    """Find every mistake that can be found without workers; whether the run has finished already."""
    from pipeline.data.dataset import load_data
    from pipeline.data.labels import empty_classes
    from pipeline.engine.batch import plan_batch
    from pipeline.runs import run_folder

    config = job.config
    plan_batch(config.batch, processes * topology.nodes)
    manifest = load_data(config.data)
    run_folder.check_model(config, manifest)
    if topology.rank == 0 and (empty := empty_classes(manifest.classes, manifest.class_counts)):
        print(f"biggan: warning: {printable(empty)}", file=sys.stderr)
    finished = False
    if topology.rank == 0:
        if config.checkpoint.uri:
            run_mirror.recover(config.run, config.checkpoint.uri)
        finished = _prepare(config, manifest, job.from_scratch)
    if not finished:
        forget_stop(Path(config.run))  # before the others may go on: what comes from now on is meant for this start
    if roll:
        identity = run_folder.read_identity(Path(config.run)) if topology.rank == 0 else None
        answer = roll.meet(
            _card(config, processes, roll.topology.address), job.patience, {"run": identity, "finished": finished}
        )
        if topology.rank == 0 and answer.warn:
            print(f"biggan: warning: {printable(answer.warn)}", file=sys.stderr)
        run_mirror.adopt(config.run, answer.identity["run"], job.from_scratch)
        finished = answer.identity["finished"]
    return finished


def _prepare(config: "RunConfig", manifest: "Manifest", from_scratch: bool) -> bool:
    """Make or check the run's folder; whether the run has finished already. A start that is refused changes no file."""
    from pipeline.runs import initial_weights, resume, run_folder

    run_folder.check(config, manifest)
    run_lock.check_free(Path(config.run))
    stop.refuse_lasting(Path(config.run))
    for line in resume.begin_anew(config) if from_scratch else []:
        print(line, flush=True)
    last = resume.check_resumable(config)
    if last is None and (weights := initial_weights.initial_checkpoint(config)):
        print(f"starting from {weights.uri}: {', '.join(sorted(weights.parts))}", flush=True)
        if note := initial_weights.ema_note(config):
            print(f"biggan: warning: {note}", file=sys.stderr)
    ended = run_folder.read_status(Path(config.run, "status.json"))
    # Killed after its last checkpoint, a run still has to tell MLflow of its end: workers do, with nothing to train.
    if last and last.images >= config.total_images and ended and ended.state == "finished":
        print(f"{config.run} has finished: {last.images:,} images, {last.uri}")
        return True
    for line in run_folder.prepare(config, manifest):
        print(f"changed since the last start: {line}", flush=True)
    return False


def _card(config: "RunConfig", processes: int, main: str) -> "Card":
    import torch

    from pipeline.cluster.node_card import Card, unreachable
    from pipeline.runs.lineage import code_sha256, config_sha256

    apart = "" if torch.cuda.is_available() else unreachable(main)  # NCCL looks for interfaces itself
    return Card(
        host=socket.gethostname(),
        processes=processes,
        config=config_sha256(config),
        code=code_sha256(),
        time=time.time(),
        unreachable=apart,
    )


def _run(
    job: Launch, topology: Topology, processes: int, errors: IO[bytes], roll: "RollCall | None", place: Path
) -> "tuple[RunState, str]":
    """Start `accelerate launch` and wait for it; how the workers of this node ended, and the first traceback among theirs."""
    import torch

    from pipeline import storage
    from pipeline.cluster.outcome import first_cause, outcome
    from pipeline.cluster.worker_command import NO_DEFAULTS, command, worker_environment
    from pipeline.config import to_yaml
    from pipeline.messaging import job_token
    from pipeline.messaging.store_relay import main_exchange
    from pipeline.runs import run_folder

    folder = Path(job.config.run)
    exchange = roll.exchange if roll and roll.exchange else main_exchange("127.0.0.1", 0, job_token.new())
    old_dumps = set((folder / "logs").glob("hang-*.txt"))
    began = errors.tell()
    status, defaults = place / STATUS, place / DEFAULTS
    defaults.write_text(json.dumps(NO_DEFAULTS))
    # Not the arguments once more: every user of the machine reads the workers' command lines, which would hold passwords.
    frozen = place / CONFIG
    storage.write_bytes(str(frozen), to_yaml(job.config).encode(), private=True)
    worker = ["jobs.cli", "train", str(frozen), *job.flags]
    with terminal.Show(job.config.total_images, place / PROGRESS, bar=topology.rank == 0) as show:
        child = subprocess.Popen(
            command(worker, topology, processes, defaults, exchange.store_port),
            cwd=place,  # the launcher puts its working directory before everything else that can be imported
            env=worker_environment(processes, torch.cuda.is_available(), topology, exchange)
            | {"PET_SIGNALS_TO_HANDLE": _SIGNALS, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.config.stop.grace)}
            | {
                variables.STATUS: str(status),
                variables.TRAIN_PID: str(os.getpid()),
                variables.TRAIN_BEGAN: str(job.began),
            }
            | {variables.WORKING_DIRECTORY: os.getcwd(), variables.LAUNCH_FOLDER: str(place)}
            | show.environment,
            stdout=subprocess.PIPE,  # a reader of ours that goes away must not end the workers
            stderr=errors,
            preexec_fn=_detach,  # noqa: PLW1509 - two system calls, which take no lock
        )
        assert child.stdout
        show.follow(child.stdout)
        code, deserted = _wait(child, roll, job.config.stop.grace, status)
        end = run_folder.read_status(status)
    errors.seek(began)  # not by its name: RUN may be gone
    said = errors.read().decode(errors="replace")
    dumps = sorted(set((folder / "logs").glob("hang-*.txt")) - old_dumps)
    return outcome(folder, Path(errors.name), end, code=code, said=said, dumps=dumps, deserted=deserted), first_cause(
        said
    ).trace


def _detach() -> None:
    """In the launcher of the workers: die with this process, and leave a terminal that closes to it."""
    die_with_parent()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _wait(child: subprocess.Popen[bytes], roll: "RollCall | None", grace: int, status: Path) -> tuple[int, bool]:
    """The launcher's exit code, and whether its workers were ended because another node's have.

    They have `grace` seconds to save; before they have joined, which `status` tells, there is nothing to save and they wait
    for a node that does not come.
    """
    if roll is None:
        return child.wait(), False
    alone_since = None
    while True:
        try:
            return child.wait(timeout=2.0), alone_since == float("inf")
        except subprocess.TimeoutExpired:
            if alone_since is None and roll.others_have_ended():
                alone_since = time.monotonic()
            joined = status.exists()
            if alone_since and time.monotonic() > alone_since + (grace if joined else 0):
                print("biggan: the workers of another node have ended; these are ended too", file=sys.stderr)
                child.send_signal(signal.SIGTERM if joined else signal.SIGKILL)  # they die with it
                alone_since = float("inf")


def _most_telling(mine: "RunState", roll: "RollCall", folder: Path) -> "RunState":
    """Of all nodes' ends the one that counts; node 0 writes it down where its own workers could not."""
    from pipeline.cluster.node_card import LINE
    from pipeline.cluster.outcome import RANKING
    from pipeline.cluster.rendezvous import End
    from pipeline.errors import NodeError
    from pipeline.runs import run_folder
    from pipeline.untrusted import parse

    said = roll.end(asdict(replace(mine, message=mine.message[:LINE])))
    theirs = [parse(End, end, "what another node said of its end", error=NodeError) for end in said]
    ends = [mine, *(run_folder.RunState(end.state, end.images, end.exit_code, printable(end.message)) for end in theirs)]
    end = min(ends, key=lambda end: RANKING.index(end.state))
    if end != mine and end.state == "failed" and roll.topology.rank == 0:
        run_folder.write_status(folder, end)
    return end


def _tell(config: "RunConfig", end: "RunState") -> int:
    if end.state == "stopped":
        what = stop.lasting(Path(config.run))
        again = f"the same command goes on there{f' after you have moved {what}, away' if what else ''}"
        print(f"stopped by {printable(end.message)} at image {end.images:,} of {config.total_images:,}: {again}")
    elif end.state == "interrupted":
        print("stopped by a signal before training began: the same command starts again")
    elif end.state != "finished":
        print(f"biggan: error: {printable(end.message)}", file=sys.stderr)
    return end.exit_code if end.exit_code is not None else exit_codes.CRASHED.number


def forget_stop(folder: Path) -> None:
    """Whatever starts workers, they begin without an old RUN/STOP. One that a training still has to see stays.

    Raises ConfigError if it is no plain file, which stays, too.
    """
    from pipeline.storage import removal

    if not (folder / "run.json").exists():  # no run's folder yet: there even STOP may be a user's own file
        removal.remove(str(folder / "STOP"), stop.is_request)
    elif not run_lock.is_training(folder):
        stop.refuse_lasting(folder)
        stop.forget(folder)
