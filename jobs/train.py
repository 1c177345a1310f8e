"""`biggan train`: outside `accelerate launch` it starts it; inside, it is one worker."""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import stop
from pipeline.errors import ConfigError, StorageError, UserError, as_user_error

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.run import Status

_PARENT_VARIABLE = "BIGGAN_TRAIN_PID"
"""Environment variable: the process that started `accelerate launch`."""

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""That the launcher passes on to the workers: its default, and those two, which would kill it and leave the workers behind."""

HELP = "train a GAN; the same command again resumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="configuration on top of CONFIG: batch.d_steps=2")
    parser.add_argument(
        "--profile",
        metavar="IMAGES",
        type=int,
        nargs="?",
        const=1,
        default=0,
        help="record what IMAGES images (default: one update) do after three updates, in RUN/profile/",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")


def run(args: argparse.Namespace) -> int | None:
    """Train. Returns 0 when `total_images` are reached, 75 when stopped before, else the exit code of what went wrong."""
    if "LOCAL_RANK" not in os.environ:
        with stop.at_once():
            return _launch(args)
    signals = stop.Signals()  # before the imports, which take seconds
    _die_with_parent()
    return 1 if _outlived_launcher() else _work(args, signals)


def _launch(args: argparse.Namespace) -> int:
    """Find every mistake that can be found without workers, start them, and tell how they ended."""
    start = time.time()
    from pipeline.config import load_config, to_yaml

    config = load_config(args.config, args.overrides)
    if args.profile < 0:
        raise ConfigError(f"--profile {args.profile}: must be at least 1 image")
    if args.print_config:
        print(to_yaml(config), end="")
        return 0

    import torch

    from pipeline import checkpoint, initial, run
    from pipeline.batch import plan_batch
    from pipeline.dataset import load_data

    processes = config.processes or torch.cuda.device_count() or 1
    plan_batch(config.batch, processes)
    manifest = load_data(config.data)
    run.check_model(config, manifest)
    last = next(checkpoint.committed(run.checkpoint_uri(config)), None)
    if last is None and (weights := initial.initial_checkpoint(config)):
        print(f"starting from {weights.uri}: {', '.join(sorted(weights.parts))}", flush=True)
    for line in run.prepare(config, manifest):
        print(f"changed since the last start: {line}", flush=True)
    ended = run.read_status(Path(config.run, "status.json"))
    # Killed after its last checkpoint, a run still has to tell MLflow of its end: workers do, with nothing to train.
    if last and last.images >= config.total_images and ended and ended.state == "finished":
        print(f"{config.run} has finished: {last.images:,} images, {last.uri}")
        return 0

    logs = Path(config.run, "logs")
    logs.mkdir(exist_ok=True)
    old_dumps = set(logs.glob("hang-*.txt"))
    _forget_stop(Path(config.run))
    with (
        tempfile.NamedTemporaryFile(prefix="biggan-status-") as status,
        open(logs / "stderr.log", "ab") as errors,
        stop.forwarded(Path(config.run)),
    ):
        print(f"starting {processes} workers with accelerate launch; their stderr is in {errors.name}", flush=True)
        began = errors.tell()
        code = subprocess.run(
            _accelerate_command(processes, args),
            env=_environment(processes, torch.cuda.is_available())
            | {"PET_SIGNALS_TO_HANDLE": _SIGNALS, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(config.stop.grace)}
            | {run.STATUS_VARIABLE: status.name, _PARENT_VARIABLE: str(os.getpid()), stop.BEGAN_VARIABLE: str(start)},
            stderr=errors,
            preexec_fn=_die_with_parent,
            check=False,
        ).returncode
        end = run.read_status(Path(status.name))
    if code and not (end and end.state in ("finished", "stopped")):
        from pipeline.reaper import finish_failed

        finish_failed(Path(config.run), config.tracking)
    with open(errors.name, "rb") as file:
        file.seek(began)
        said = file.read().decode(errors="replace")
    return _outcome(config, end, code, said, sorted(set(logs.glob("hang-*.txt")) - old_dumps))


def _outcome(config: "RunConfig", end: "Status | None", code: int, said: str, dumps: list[Path]) -> int:
    """Tell how the workers ended: by their status, what they `said` on stderr and the stacks they left."""
    if end and end.state == "failed":
        print(f"biggan: error: {end.message}", file=sys.stderr)
        return end.exit_code or 1
    if end and end.state == "finished":
        return 0
    if end and end.state == "stopped":
        print(f"stopped by {end.message} at image {end.images:,} of {config.total_images:,}: the same command goes on there")
        return stop.EXIT_CODE
    # The launcher died of a signal, or had to pass it on to workers that were not ready to note it.
    if end is None and (-code in stop.SIGNALS or "death signal" in said):
        print("stopped by a signal before training began: the same command starts again")
        return stop.EXIT_CODE
    if dumps:
        from pipeline import run, watchdog

        message = f"{watchdog.explain(dumps)}; the stacks are in {config.run}/logs/hang-rank*; the same command resumes"
        run.write_status(Path(config.run), run.Status("failed", end.images if end else 0, watchdog.EXIT_CODE, message))
        print(f"biggan: error: {message}", file=sys.stderr)
        return watchdog.EXIT_CODE
    print(_first_traceback(said), file=sys.stderr)
    print(
        f"biggan: error: the workers ended without a result (launcher's exit code {code}): see {config.run}/logs/stderr.log; "
        "the same command resumes from the last checkpoint",
        file=sys.stderr,
    )
    return 1


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent is gone: else a killed launcher leaves workers that go on writing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)


def _outlived_launcher() -> bool:
    """Whether the launcher died before this worker could ask to die with it: its parent is then no child of `_launch`."""
    try:
        status = Path(f"/proc/{os.getppid()}/stat").read_text()
    except FileNotFoundError:
        return Path("/proc/self").exists()
    grandparent = status.rpartition(")")[2].split()[1]
    return os.environ.get(_PARENT_VARIABLE, grandparent) != grandparent


def _forget_stop(folder: Path) -> None:
    """Whatever started these workers, they begin without an old RUN/STOP. One that a training still has to see stays."""
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


def _accelerate_command(processes: int, args: argparse.Namespace) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"num_machines": 1, "num_processes": processes, "main_process_port": port}
    options |= {"mixed_precision": "no", "dynamo_backend": "no"}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", *flags]
    profile = ["--profile", str(args.profile)] if args.profile else []
    return [*launcher, "--module", "jobs.cli", "train", args.config, *args.overrides, *profile]


def _environment(processes: int, gpu: bool) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    # FutureWarning: torch announces changes to functions that DeepSpeed calls, once per call.
    quiet = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore::FutureWarning"}
    return quiet | ({} if gpu else {"DS_ACCELERATOR": "cpu"}) | dict(os.environ)


def _work(args: argparse.Namespace, signals: stop.Signals) -> int:
    """One worker: join the others, train; a failure that a user can mend goes to the status as one line."""
    from pipeline import run
    from pipeline.config import load_config
    from pipeline.mlflow_store import calm_mlflow

    config = load_config(args.config, args.overrides)
    calm_mlflow()  # before DeepSpeed, which imports MLflow
    folder = Path(config.run)
    if os.environ["RANK"] == "0" and _PARENT_VARIABLE not in os.environ:
        _forget_stop(folder)
    try:
        return stop.EXIT_CODE if _train(config, folder, signals, args.profile) else 0
    except (UserError, OSError) as error:
        known = error if isinstance(error, UserError) else as_user_error(error)
        if known is None:
            raise
        try:
            before = run.read_status(folder / "status.json")
            images = before.images if before else 0
            run.write_status(folder, run.Status("failed", images, known.exit_code, str(known)))
        except (StorageError, OSError):
            print(f"biggan: error: {known}", file=sys.stderr)
        # The other ranks wait for this one in a collective, and interpreter shutdown would wait for them.
        sys.stdout.flush()
        os._exit(known.exit_code)


def _train(config: "RunConfig", folder: Path, signals: stop.Signals, profile: int) -> str | None:
    import torch.distributed as dist

    from pipeline import run
    from pipeline.dataset import load_data
    from pipeline.engines import start_workers
    from pipeline.loop import train
    from pipeline.watchdog import record_collectives

    record_collectives(folder)
    ranks = start_workers()
    held = None
    if ranks.main:
        run.prepare(config, load_data(config.data))
        held = run.lock(folder)
    dist.barrier()
    reason = train(config, ranks, signals, profile)
    # The launcher signals every worker when the first has left, and an ending interpreter no longer has its handlers.
    stop.ignore_signals()
    dist.destroy_process_group()
    if held:
        if reason:
            stop.forget(folder)
        held.close()
    return reason
