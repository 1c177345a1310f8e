"""`biggan node`: `biggan train` as one of several machines. Every scheduler starts it once on each."""

import argparse
import os

from jobs.train import add_from_scratch
from pipeline import variables
from pipeline.cluster.topology import PATIENCE, Flags, find
from pipeline.fault_tolerance import stop
from pipeline.tracking import terminal

HELP = "train on several machines: start it once on each"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Command`."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="configuration on top of CONFIG, as of biggan train"
    )
    place = parser.add_argument_group(
        "place", "found from Slurm, JobSet, SkyPilot and others; the flags are for doing it by hand"
    )
    place.add_argument("--nodes", type=int, metavar="N", help="machines in all")
    place.add_argument("--node-rank", type=int, metavar="R", help="which one this is, from 0")
    place.add_argument("--main-address", metavar="A", help="name or address of machine 0, as the others reach it")
    place.add_argument("--main-port", type=int, metavar="P", help="of machine 0, which the others reach")
    add_token_file(place)
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        default=PATIENCE,
        help=f"to wait for the other machines (default {PATIENCE:g})",
    )
    add_from_scratch(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")


def add_token_file(group: argparse._ArgumentGroup) -> None:
    """Declare `--token-file`, of `biggan node` and `biggan doctor`."""
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds the secret by which the machines know each other; only you may read it (default: the variable "
        f"{variables.TOKEN}, else a file beside RUN, on a disk that all share)",
    )


def run(args: argparse.Namespace) -> int:
    """See `jobs.cli.Command`. Returns the run's exit code, the same on all machines."""
    from jobs.train import launch_here

    with terminal.print_best_effort(), stop.at_once():
        args.profile = 0
        topology = find(os.environ, Flags(args.nodes, args.node_rank, args.main_address, args.main_port))
        if topology.nodes > 1:
            print(
                f"node {topology.rank} of {topology.nodes}, main {topology.address}:{topology.port}, from {topology.source}",
                flush=True,
            )
        return launch_here(args, topology, args.patience, args.token_file)
