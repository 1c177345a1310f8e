"""`biggan doctor`: `--data URI` says what bounds the reading of shards, `--cluster` which nodes are bad."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.node import add_token_file
from pipeline import exit_codes
from pipeline.errors import ConfigError
from pipeline.wording import plural

if TYPE_CHECKING:
    from pipeline.doctor.node import Places

HELP = "measure what bounds the reading of shards, or which nodes of a cluster are bad"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Command`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--data", metavar="URI", help="the folder of a split: its manifest, indexes and tars")
    what.add_argument("--cluster", action="store_true", help="once on every node, with the variables or flags of `biggan node`")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="how long to measure, about (default 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    data = parser.add_argument_group("with --data")
    data.add_argument("--resolution", type=int, metavar="N", help="as data.resolution: crop and resample while reading")
    data.add_argument("--threads", type=int, default=2, metavar="N", help="as data.decode_threads (default 2)")
    data.add_argument("--want", type=float, metavar="N", help="images per second that training takes, to compare with")
    cluster = parser.add_argument_group("with --cluster")
    cluster.add_argument(
        "config", metavar="CONFIG", nargs="?", help="what will be trained: its run, checkpoints, data and MLflow"
    )
    cluster.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="configuration on top of CONFIG")
    cluster.add_argument("--storage", metavar="URI", help="a folder to write to and read from, if there is no CONFIG")
    cluster.add_argument(
        "--wait", type=float, default=60.0, metavar="N", help="seconds until all must have reported (default 60)"
    )
    for flag, kind, text in (
        ("--nodes", int, "how many there are; these four as in `biggan node`, where the scheduler's variables do not say it"),
        ("--node-rank", int, "of this node: 0, 1, ..."),
        ("--main-address", str, "of node 0, as the others reach it"),
        ("--main-port", int, "free on node 0, and open to the others"),
    ):
        cluster.add_argument(flag, type=kind, metavar="N" if kind is int else "HOST", help=text)
    add_token_file(cluster)
    cluster.add_argument("--exclude-file", metavar="FILE", help="node 0 writes the bad nodes' host names there, one a line")


def run(args: argparse.Namespace) -> int | None:
    """See `jobs.cli.Command`."""
    for name in ("seconds", "resolution", "threads", "want", "wait"):
        if (value := getattr(args, name)) is not None and not value > 0:
            raise ConfigError(f"--{name} {value:g}: must be above 0")
    if args.cluster:
        return _cluster(args)
    if not args.data:
        raise ConfigError("what to examine? Type --data URI for a set of shards, or on every node --cluster")
    _data(args)
    return None


_WELL, _BAD, _STORAGE, _CONFIG = (
    code.number for code in (exit_codes.DONE, exit_codes.NODES, exit_codes.STORAGE, exit_codes.CONFIG)
)

_EPILOG = f"""\
--cluster measures on every node at once, in seconds: GPUs (memory in use, clocks, throttling, memory errors), matrix products
in bf16 and fp32, all-reduces between any two nodes and between all (one process of each node: the path of its first GPU),
storage, MLflow, clocks, disks, versions. Node 0 compares each node with the median of all and names the bad ones:

  did not report within --wait seconds, or stopped answering
  matrix products 1.3 times slower than the median of the same GPU (3 times, of a processor); a throttled GPU
  all-reduce with its best partner 2 times slower than the others' median; of a pair, 3 times
  storage 4 times slower, and below 1 GB/s
  clock more than 1 s off; less than 1 GB free in RUN or TMPDIR; 90 % of a GPU's memory not free
  other GPUs, or another torch, python, driver or code, than most nodes have

What looks slow is measured twice again before it is named. Above 16 nodes each is paired with 15 others.

Exit codes, the same on every node: {_WELL} all well; {_BAD} bad nodes: leave them out (--exclude-file); {_STORAGE} storage or a
disk fails on every node; {_CONFIG} what no other choice of nodes mends: the port is taken, versions of which none has a
majority, no node reaches another.

In a batch script: srun biggan doctor --cluster CONFIG --exclude-file bad.txt"""


def _cluster(args: argparse.Namespace) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of each address without a name
    from pipeline.cluster import topology
    from pipeline.doctor.cluster import lead
    from pipeline.doctor.node_part import SurveyPlan, follow
    from pipeline.doctor.verdict import bad_nodes, exit_code
    from pipeline.doctor.verdict_table import verdict_json, verdict_table
    from pipeline.messaging import job_token
    from pipeline.messaging.loopback import is_loopback, stay_on_loopback

    place = topology.find(os.environ, topology.Flags(args.nodes, args.node_rank, args.main_address, args.main_port))
    if is_loopback(place.address):
        os.environ.update(stay_on_loopback(os.environ))
    places = _places(args)
    plan = SurveyPlan(places, args.seconds, args.wait)
    token = job_token.token(os.environ, args.token_file, places.folders[0] if places.folders else None)
    if place.rank:
        code, clean = follow(place, plan, token)
        return _end(code, clean)
    found, findings, end = lead(place, plan, token)
    code = exit_code(findings)
    print(json.dumps(verdict_json(found, findings)) if args.json else verdict_table(found, findings), flush=True)
    if args.exclude_file:
        from pipeline import storage

        hosts = [found.hosts[rank] for rank in bad_nodes(findings) if rank in found.hosts]
        storage.write_bytes(args.exclude_file, "".join(f"{host}\n" for host in dict.fromkeys(hosts)).encode())
    return _end(code, end(code))


def _end(code: int, clean: bool) -> int:
    if not clean:  # a thread in a driver or on a dead mount would keep the interpreter
        sys.stdout.flush()
        os._exit(code)
    return code


def _places(args: argparse.Namespace) -> "Places":
    from pipeline.doctor.node import Places

    if args.config is None:
        return Places(written=(args.storage,) if args.storage else ())
    from pipeline.config import load_config
    from pipeline.runs.trusted_places import checkpoint_uri

    config = load_config(args.config, args.overrides)
    tracking = config.tracking
    server = tracking.uri if tracking.mode == "auto" and tracking.uri and "sqlite:" not in tracking.uri else None
    written = (checkpoint_uri(config), *([args.storage] if args.storage else []))
    read = (config.data.uri,) if config.data.uri else tuple(part.uri for part in config.data.mix.values())
    return Places((config.run,), written, read, server)


def _data(args: argparse.Namespace) -> None:
    from pipeline.data.loader import DataConfig
    from pipeline.data.manifest import load_manifest
    from pipeline.doctor.data import examine

    config = DataConfig(uri=args.data, resolution=args.resolution, decode_threads=args.threads)
    manifest = load_manifest(args.data)
    found = examine(config, manifest, args.seconds, args.want)
    if args.json:
        print(json.dumps(asdict(found) | {"bound": found.bound, "advice": found.advice}))
        return
    print(
        f"{args.data}: {plural(manifest.samples, 'image')} of {found.image_bytes / 1e3:,.1f} kB\n"
        f"  store    {found.store:10,.0f} images/s   {found.store * found.image_bytes / 1e6:,.0f} MB/s; first byte after "
        f"{found.latency * 1e3:,.1f} ms, a run after {found.request * 1e3:,.1f} ms\n"
        f"  tar      {found.tar:10,.0f} images/s   checksums, on one thread\n"
        f"  decode   {found.decode:10,.0f} images/s   {found.threads} threads on {found.cores} cores; one thread alone "
        f"{found.decode_one:,.0f}\n"
        f"  stream   {found.whole:10,.0f} images/s   all together, as training reads\n"
        f"bound by {found.bound}: {found.advice}"
    )
