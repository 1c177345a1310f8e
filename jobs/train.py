"""`biggan train`: outside `accelerate launch` it starts it; inside, it is one worker."""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, StorageError, UserError, as_user_error

if TYPE_CHECKING:
    from pipeline.config import RunConfig

_PARENT_VARIABLE = "BIGGAN_TRAIN_PID"
"""Environment variable: the process that started `accelerate launch`."""

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
    """Train. Returns 0 when `total_images` are reached, else the exit code of what went wrong."""
    if worker := "LOCAL_RANK" in os.environ:
        _die_with_parent()  # before the imports, which take seconds
        if _outlived_launcher():
            return 1

    from pipeline.config import load_config, to_yaml

    config = load_config(args.config, args.overrides)
    if args.profile < 0:
        raise ConfigError(f"--profile {args.profile}: must be at least 1 image")
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    if worker:
        return _work(config, args.profile)
    return _launch(config, args)


def _launch(config: "RunConfig", args: argparse.Namespace) -> int:
    """Find every mistake that can be found without workers, start them, and tell how they ended."""
    import torch

    from pipeline import checkpoint, initial, run
    from pipeline.batch import plan_batch
    from pipeline.dataset import load_data

    processes = config.processes or torch.cuda.device_count() or 1
    plan_batch(config.batch, processes)
    manifest = load_data(config.data)
    run.check_model(config, manifest)
    last = next(checkpoint.committed(run.checkpoint_uri(config)), None)
    if last is None and (start := initial.initial_checkpoint(config)):
        parts = ", ".join(sorted(name.removesuffix(".safetensors") for name in start.files if name.endswith(".safetensors")))
        print(f"starting from {start.uri}: {parts}", flush=True)
    for line in run.prepare(config, manifest):
        print(f"changed since the last start: {line}", flush=True)
    ended = run.read_status(Path(config.run, "status.json"))
    # Killed after its last checkpoint, a run still has to tell MLflow of its end: workers do, with nothing to train.
    if last and last.images >= config.total_images and ended and ended.state == "finished":
        print(f"{config.run} has finished: {last.images:,} images, {last.uri}")
        return 0

    logs = Path(config.run, "logs")
    logs.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="biggan-status-") as status, open(logs / "stderr.log", "ab") as errors:
        print(f"starting {processes} workers with accelerate launch; their stderr is in {errors.name}", flush=True)
        began = errors.tell()
        code = subprocess.run(
            _accelerate_command(processes, args),
            env=_environment(processes, torch.cuda.is_available())
            | {run.STATUS_VARIABLE: status.name, _PARENT_VARIABLE: str(os.getpid())},
            stderr=errors,
            preexec_fn=_die_with_parent,
            check=False,
        ).returncode
        end = run.read_status(Path(status.name))
    if end and end.state == "failed":
        print(f"biggan: error: {end.message}", file=sys.stderr)
        return end.exit_code or 1
    if end and end.state == "finished":
        return 0
    print(_first_traceback(logs / "stderr.log", began), file=sys.stderr)
    print(
        f"biggan: error: the workers ended without a result (launcher's exit code {code}): see {logs}/stderr.log; "
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


def _first_traceback(log: Path, began: int) -> str:
    """What the first worker to fail said; the launcher's summary and the other workers' complaints bury it."""
    with open(log, "rb") as file:
        file.seek(began)
        lines = file.read().decode(errors="replace").splitlines()
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


def _work(config: "RunConfig", profile: int) -> int:
    """One worker: join the others, train; a failure that a user can mend goes to the status as one line."""
    from pipeline import run
    from pipeline.tracking import calm_mlflow

    calm_mlflow()  # before DeepSpeed, which imports MLflow
    folder = Path(config.run)
    try:
        _train(config, folder, profile)
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
    return 0


def _train(config: "RunConfig", folder: Path, profile: int) -> None:
    import torch.distributed as dist

    from pipeline import run
    from pipeline.dataset import load_data
    from pipeline.engines import start_workers
    from pipeline.loop import train

    ranks = start_workers()
    held = None
    if ranks.main:
        run.prepare(config, load_data(config.data))
        held = run.lock(folder)
    dist.barrier()
    train(config, ranks, profile)
    dist.destroy_process_group()
    if held:
        held.close()
