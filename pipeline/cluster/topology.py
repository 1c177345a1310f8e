"""Which node this is, of how many, and where the first one listens: as each scheduler tells it. Nothing here imports torch.

Rows of `schedulers.ROWS` that answer must agree; `--nodes` and its like end the discussion.
"""

import ipaddress
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.cluster.schedulers import FLAGS, PORT, ROWS, Topology, anybody
from pipeline.errors import ConfigError

__all__ = ["PORT", "Flags", "Topology", "alone", "find", "is_worker", "without_launchers"]

PATIENCE = 600.0
"""Seconds that nodes wait for each other before their workers start."""


@dataclass(frozen=True)
class Flags:
    """What the command line says."""

    nodes: int | None = None
    rank: int | None = None
    address: str | None = None
    port: int | None = None


def find(environ: Mapping[str, str], flags: Flags | None = None) -> Topology:
    """Where this node stands. On a single machine the port is a free one.

    Raises ConfigError if schedulers contradict each other, one has set half of its variables, or a number makes no sense.
    """
    flags = flags or Flags()
    if "TORCHELASTIC_RUN_ID" in environ:
        raise ConfigError(
            "this process was started by torchrun or accelerate launch (TORCHELASTIC_RUN_ID is set): start `biggan node` once "
            "for each node instead, and it starts the others"
        )
    found = _flagged(flags) if flags.nodes is not None else _scheduled(environ)
    if flags.nodes is None and flags.rank is not None:
        raise ConfigError(f"--node-rank {flags.rank} without --nodes: add --nodes N")
    found = replace(found, address=flags.address or found.address, port=found.port if flags.port is None else flags.port)
    _check(found)
    if found.nodes == 1:
        return replace(alone(), source=found.source, port=flags.port or _free_port())
    return found


def alone() -> Topology:
    """This machine by itself, whoever started it."""
    return Topology(nodes=1, rank=0, address="127.0.0.1", port=_free_port(), source="a single machine")


def is_worker(environ: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of its workers; names on stderr what is only left over."""
    missing = [name for name in _WORKER if not environ.get(name)]
    if missing and environ.get("LOCAL_RANK"):
        print(
            f"biggan: warning: LOCAL_RANK is set without {missing[0]}: it is left over from something else and ignored",
            file=sys.stderr,
        )
    return not missing


def without_launchers(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what launchers of processes leave behind, which the next launcher takes for its defaults."""
    return {name: value for name, value in environ.items() if not _LAUNCHERS.fullmatch(name)}


_WORKER = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_LAUNCHERS = re.compile(
    r"(PET|TORCHELASTIC)_.*|((LOCAL|GROUP|ROLE|NODE|CROSS)_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE|ROLE_NAME|LOCAL_SIZE|"
    r"CROSS_SIZE|ACCELERATE_.*|FSDP_.*|MASTER_(ADDR|PORT)|GROUP_WORLD_SIZE|NNODES"
)


def _flagged(flags: Flags) -> Topology:
    assert flags.nodes is not None
    if flags.nodes > 1:
        for name, what, value in (("--node-rank", "R", flags.rank), ("--main-address", "HOST", flags.address)):
            if value is None:
                raise ConfigError(f"--nodes {flags.nodes} without {name}: add {name} {what}")
    return Topology(nodes=flags.nodes, rank=flags.rank or 0, address=flags.address or "127.0.0.1", port=PORT, source="--nodes")


def _scheduled(environ: Mapping[str, str]) -> Topology:
    """The first row's answer; the last rows are asked only when nobody else has one."""
    answers = [(row, answer) for row in ROWS if (answer := row.read(row, environ))]
    for (row, answer), (other, second) in ((answers[0], pair) for pair in answers[1:]):
        named = [
            (f"{row.nodes} ({answer.nodes} nodes)", f"{other.nodes} ({second.nodes} nodes)", answer.nodes == second.nodes),
            (f"{row.rank} (node {answer.rank})", f"{other.rank} (node {second.rank})", answer.rank == second.rank),
            (f"{row.address} ({answer.address})", f"{other.address} ({second.address})", _same_host(answer, second)),
        ]
        for one, another, agree in named:
            if not agree:
                raise ConfigError(
                    f"{row.source} says {one}, {other.source} says {another}: unset what is not meant, or {FLAGS}"
                )
    if answers:
        return answers[0][1]
    return anybody(environ) or Topology(nodes=1, rank=0, address="127.0.0.1", port=PORT, source="a single machine")


def _same_host(one: Topology, other: Topology) -> bool:
    """A name and a number may mean one machine, and so may two names; two numbers do not."""
    return one.address == other.address or one.nodes == 1 or not (_is_number(one.address) and _is_number(other.address))


def _is_number(address: str) -> bool:
    try:
        return bool(ipaddress.ip_address(address))
    except ValueError:
        return False


def _check(found: Topology) -> None:
    for wrong, what in (
        (found.nodes < 1, f"{found.nodes} nodes: must be at least 1"),
        (
            not 0 <= found.rank < found.nodes,
            f"node rank {found.rank} of {found.nodes} nodes: ranks go from 0 to {found.nodes - 1}",
        ),
        (not 0 < found.port < 65536, f"port {found.port}: must be between 1 and 65535"),
        (bool(found.hosts) and len(found.hosts) != found.nodes, f"{found.nodes} nodes, but it names {len(found.hosts)}"),
    ):
        if wrong:
            raise ConfigError(f"{found.source} says {what}. Correct it, or {FLAGS}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
