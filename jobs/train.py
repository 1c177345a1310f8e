"""`biggan train`: outside `accelerate launch` it starts it; inside, it is one worker."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import exit_codes
from pipeline.cluster import topology
from pipeline.errors import ConfigError, UserError, as_user_error
from pipeline.fault_tolerance import stop
from pipeline.messaging import job_token
from pipeline.messaging.job_token import Token
from pipeline.tracking import terminal
from pipeline.wording import printable

if TYPE_CHECKING:
    from pipeline.config import RunConfig

HELP = "train a GAN; the same command again resumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="configuration on top of CONFIG: batch.d_steps=2"
    )
    parser.add_argument(
        "--profile",
        metavar="IMAGES",
        type=int,
        nargs="?",
        const=1,
        default=0,
        help="record what IMAGES images (default: one update) do after three updates, in RUN/profile/",
    )
    add_from_scratch(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")


def add_from_scratch(parser: argparse.ArgumentParser) -> None:
    """Declare `--from-scratch`, of `biggan train` and `biggan node`."""
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="train from image 0 if the run was saved and none of its checkpoints is intact; they stay where they are",
    )


def run(args: argparse.Namespace) -> int | None:
    """Train. Returns 0 when `total_images` are reached, 75 when stopped before, else the exit code of what went wrong."""
    # Here and below, not at the top: `biggan --help` imports this module, and shall be quick.
    from pipeline import variables
    from pipeline.liveness import die_with_parent, outlived_launcher

    if not topology.is_worker(os.environ):
        with terminal.print_best_effort(), stop.at_once():
            return launch_here(args, topology.alone())
    os.chdir(os.environ.get(variables.WORKING_DIRECTORY, "."))
    signals = stop.Signals()  # before the imports, which take seconds
    die_with_parent()
    return 1 if outlived_launcher() else _work(args, signals)


def launch_here(
    args: argparse.Namespace, node: topology.Topology, patience: float = topology.PATIENCE, token_file: str | None = None
) -> int:
    """Start the workers of this machine, `node` of its topology, for `biggan train` and `biggan node`; the run's exit code."""
    began = time.monotonic()
    from pipeline.cluster.launch import Launch, launch
    from pipeline.config import load_config, to_yaml
    from pipeline.runs.trusted_places import note_run

    config = load_config(args.config, args.overrides)
    if args.profile < 0:
        raise ConfigError(f"--profile {args.profile}: must be at least 1 image")
    if args.print_config:
        print(to_yaml(config), end="")
        return 0
    note_run(config)
    profile = ["--profile", str(args.profile)] if args.profile else []
    token = job_token.token(os.environ, token_file, config.run) if node.nodes > 1 else Token()
    return launch(
        Launch(config=config, flags=profile, began=began, patience=patience, from_scratch=args.from_scratch, token=token), node
    )


def _work(args: argparse.Namespace, signals: stop.Signals) -> int:
    """One worker: join the others, train; a failure that a user can mend goes to the status as one line."""
    from pipeline import variables
    from pipeline.cluster.launch import forget_stop
    from pipeline.config import load_config
    from pipeline.engine.ranks import launched_as
    from pipeline.runs import run_folder
    from pipeline.tracking.mlflow_store import calm_mlflow

    config = load_config(args.config, args.overrides)
    calm_mlflow()  # before DeepSpeed, which imports MLflow
    folder = Path(config.run)
    if launched_as().main and variables.TRAIN_PID not in os.environ:
        forget_stop(folder)
    try:
        return exit_codes.STOPPED.number if _train(config, folder, signals, args.profile) else exit_codes.DONE.number
    except Exception as error:
        known = as_known(error, config)
        if known is None:
            raise
        before = run_folder.read_status(folder / "status.json")
        images = before.images if before else 0
        if not run_folder.write_status(folder, run_folder.RunState("failed", images, known.exit_code, str(known))):
            print(f"biggan: error: {printable(str(known))}", file=sys.stderr)
        # The other ranks wait for this one in a collective, and interpreter shutdown would wait for them.
        sys.stdout.flush()
        os._exit(known.exit_code)


def as_known(error: Exception, config: "RunConfig") -> UserError | None:
    """`error` as one that the user can mend, None if it is not."""
    if isinstance(error, UserError | OSError):
        return error if isinstance(error, UserError) else as_user_error(error)
    from torch._dynamo import exc

    from pipeline.training.memory_trial import out_of_memory

    if out_of_memory(error):
        size = config.batch.micro_batch or "the largest there is"
        return ConfigError(
            f"the memory is not enough for batch.micro_batch={size}: set batch.micro_batch=auto or a smaller one, or "
            "activation_checkpointing=blocks"
        )
    if isinstance(error, exc.TorchDynamoException | exc.FailOnRecompileLimitHit):
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return ConfigError(f"compile=true: torch.compile failed: {line.strip()}: set compile=false, or fix it")
    return None


def _train(config: "RunConfig", folder: Path, signals: stop.Signals, profile: int) -> str | None:
    import torch.distributed as dist

    from pipeline.cluster.outcome import JOINED
    from pipeline.data.dataset import load_data
    from pipeline.engine.ranks import start_workers
    from pipeline.fault_tolerance.watchdog import record_collectives
    from pipeline.runs import run_folder
    from pipeline.signals import ignore_signals
    from pipeline.storage import run_lock
    from pipeline.training.loop import train
    from pipeline.training.precision import settle

    record_collectives(folder)
    ranks = start_workers()
    if ranks.local_main:
        run_folder.tell_launcher(JOINED)
    if ranks.main:
        print("the workers have started: reading the shards' index, building the networks", flush=True)
    config = settle(config, ranks)
    held = None
    if ranks.main:
        manifest = load_data(config.data)
        run_folder.check(config, manifest)
        held = run_lock.lock(folder)  # before anything is written: another training's files are not touched
        run_folder.prepare(config, manifest)
    dist.barrier()
    reason = train(config, ranks, signals, profile)
    # The launcher signals every worker when the first has left, and an ending interpreter no longer has its handlers.
    ignore_signals()
    dist.destroy_process_group()
    if reason and ranks.local_main:
        try:
            stop.forget(folder)
        except OSError as error:
            print(f"biggan: warning: {folder / 'STOP'} stays ({error.strerror}): remove it before the next start", flush=True)
    if held:
        held.close()
    return reason
