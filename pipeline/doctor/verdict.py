"""Which nodes are bad, from what all of them reported: pure functions.

A node is compared with the median of all, so that no figure of any hardware stands here. What is wrong on every node, or
between two that nobody else can arbitrate, has no bad node: leaving one out would not mend it.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pipeline import exit_codes
from pipeline.doctor.node import NodeDevice, NodeReport

# How many times slower than the median a node is bad.
GPU = 1.3
"""Matrix products: GPUs of one kind differ by a few per cent."""
CPU = 3.0
"""Processors share their cores with other programs."""
NODE_LINK = 2.0
"""All-reduce of a node with the best of its partners, against the same of the others."""
PAIR_LINK = 3.0
"""All-reduce of one pair, where both nodes do well with others."""
STORE = 4.0
"""Reading and writing: all nodes ask one store at once, and it serves them unevenly."""

# Limits that no median is needed for.
ENOUGH = 1e9
"""Bytes per second of a store that are never bad: more than a node of 8 GPUs reads."""
CLOCK_SECONDS = 1.0
"""From the median of all clocks, beyond what the measurement leaves open."""
FREE_BYTES = 1e9
"""That RUN and TMPDIR must have."""
FREE_MEMORY = 0.9
"""Of a GPU, before we use it: less, and another program is there."""
MLFLOW_SECONDS = 1.0
"""A request that takes longer is noted."""

_BAD, _CONFIG, _STORAGE = exit_codes.NODES.number, exit_codes.CONFIG.number, exit_codes.STORAGE.number
_INTERFACE = "is the right interface used? GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name it"


@dataclass(kw_only=True)
class Gathered:
    """What node 0 knows when everybody has been asked; keys are the ranks of nodes."""

    nodes: int
    hosts: dict[int, str] = field(default_factory=dict)
    absent: dict[int, str] = field(default_factory=dict)
    """Why there is no report, or no end of it."""
    clocks: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Seconds ahead of node 0, and by how much that may be wrong."""
    reports: dict[int, NodeReport] = field(default_factory=dict)
    pairs: dict[tuple[int, int], float | str] = field(default_factory=dict)
    """Bytes per second of an all-reduce of two, or why there was none."""
    together: float | str | None = None
    """The same for all nodes that answered."""
    cuda: bool = False
    """Whether the links were measured between GPUs."""

    def name(self, rank: int) -> str:
        host = self.hosts.get(rank)
        return f"node {rank} ({host})" if host else f"node {rank}"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    nodes: tuple[int, ...]
    """Whose fault it is; two: the link between them; none: no node's, or all nodes'."""
    text: str
    code: int = _BAD
    """Exit code; 0 for what is only worth a line."""
    measured: bool = False
    """A rate, which another measurement may find good."""


def judge_nodes(found: Gathered) -> list[Finding]:
    """Everything that is wrong, the gravest first."""
    findings = [Finding((rank,), why) for rank, why in sorted(found.absent.items())]
    for part in (_clocks, _software, _gpus, _matrix, _links, _stores, _disks, _mlflow):
        findings += part(found)
    return sorted(findings, key=lambda finding: -finding.code)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if all is well; 78 or 74 if no other choice of nodes would mend it; 69 if it would."""
    return max((finding.code for finding in findings), default=0)


def bad_nodes(findings: Iterable[Finding]) -> list[int]:
    """Ranks to leave out: of a bad link, the end that is in more of them, or else the later one."""
    guilty = [finding.nodes for finding in findings if finding.code]
    bad = {nodes[0] for nodes in guilty if len(nodes) == 1}
    while links := [nodes for nodes in guilty if len(nodes) == 2 and not bad.intersection(nodes)]:
        often = Counter(rank for nodes in links for rank in nodes)
        bad.add(max(often, key=lambda rank: (often[rank], rank)))
    return sorted(bad)


def _clocks(found: Gathered) -> Iterable[Finding]:
    if len(found.clocks) == 2:
        (first, _), (other, (ahead, doubt)) = sorted(found.clocks.items())
        if abs(ahead) > CLOCK_SECONDS + doubt:
            text = f"the clocks of {found.name(first)} and {found.name(other)} are {abs(ahead):.1f} s apart: mend the wrong one"
            yield Finding((), text, _CONFIG)
        return
    middle = statistics.median(ahead for ahead, _ in found.clocks.values()) if found.clocks else 0.0
    for rank, (ahead, doubt) in found.clocks.items():
        if abs(ahead - middle) > CLOCK_SECONDS + doubt:
            yield Finding((rank,), f"clock {abs(ahead - middle):.1f} s {'ahead' if ahead > middle else 'behind'}")


def _software(found: Gathered) -> Iterable[Finding]:
    for what in sorted({name for report in found.reports.values() for name in report.software}):
        yield from _differing(found, what, lambda report, what=what: report.software.get(what, "none"))  # type: ignore[misc]


def _gpus(found: Gathered) -> Iterable[Finding]:
    yield from _differing(found, "GPUs", lambda report: str(report.gpus))
    if not any(report.gpus for report in found.reports.values()):
        return
    yield from _differing(found, "kind of GPU", lambda report: ", ".join(sorted({device.name for device in report.devices})))
    for rank, report in found.reports.items():
        for index, device in enumerate(report.devices if report.gpus else ()):
            if device.throttled:
                yield Finding((rank,), f"GPU {index} is throttled: {device.throttled}; {device.mhz} MHz", measured=True)
            if device.ecc:
                yield Finding((rank,), f"GPU {index} has {device.ecc} memory errors that were not corrected")
            if device.free is not None and device.free < FREE_MEMORY:
                yield Finding((rank,), f"GPU {index}: {1 - device.free:.0%} of its memory is taken by another program")


def _differing(found: Gathered, what: str, value: Callable[[NodeReport], str]) -> Iterable[Finding]:
    """Nodes that are not like most; where there is no majority, nobody knows who is right."""
    values = {rank: value(report) for rank, report in sorted(found.reports.items())}
    ranked = Counter(values.values()).most_common()
    if len(ranked) < 2:
        return
    (common, times), (_, next_times) = ranked[:2]
    if times == next_times:
        parts = (f"{found.name(rank)} {mine}" for rank, mine in values.items())
        yield Finding((), f"{what} differs: {', '.join(parts)}; make it the same", _CONFIG)
        return
    for rank, mine in values.items():
        if mine != common:
            yield Finding((rank,), f"{what} {mine}, on most nodes {common}")


def _matrix(found: Gathered) -> Iterable[Finding]:
    everyone = [(rank, report, i, device) for rank, report in found.reports.items() for i, device in enumerate(report.devices)]
    for precision in ("bf16", "fp32"):

        def rate(device: NodeDevice, precision: str = precision) -> float:
            return float(getattr(device, precision))

        for rank, report, index, device in everyone:
            like = [rate(other) for *_, other in everyone if other.name == device.name]
            median, limit = statistics.median_high(like), GPU if report.gpus else CPU
            if rate(device) * limit < median:
                which = f"GPU {index}" if report.gpus else "processor"
                text = f"{which}: {precision} matrix products {_times(median, rate(device))} slower than the median"
                yield Finding((rank,), f"{text} ({rate(device) / 1e12:.3g} TFLOP/s, not {median / 1e12:.3g})", measured=True)


def _links(found: Gathered) -> Iterable[Finding]:
    if not found.pairs:
        return
    best = dict.fromkeys({rank for pair in found.pairs for rank in pair}, 0.0)
    for pair, rate in found.pairs.items():
        for rank in pair:
            best[rank] = max(best[rank], 0.0 if isinstance(rate, str) else rate)
    median = statistics.median_high(best.values())
    errors = [rate for rate in found.pairs.values() if isinstance(rate, str)]
    if median == 0:
        yield Finding((), f"no node reaches another by all-reduce: {errors[0]}; {_INTERFACE}", _CONFIG)
        return
    slow = {rank: rate for rank, rate in best.items() if rate * NODE_LINK < median}
    for rank, rate in sorted(slow.items()):
        if rate:
            how = f"{_times(median, rate)} slower than the median ({bytes_text(rate)}, not {bytes_text(median)})"
            yield Finding((rank,), f"all-reduce with every other node {how}", measured=True)
        else:
            why = next(str(error) for pair, error in found.pairs.items() if rank in pair)
            yield Finding((rank,), f"no all-reduce with any other node: {why}; {_INTERFACE}", measured=True)
    for pair, rate in sorted(found.pairs.items()):
        if slow.keys().isdisjoint(pair) and (isinstance(rate, str) or rate * PAIR_LINK < median):
            how = f"failed: {rate}" if isinstance(rate, str) else f"{_times(median, rate)} slower than the median"
            text = f"all-reduce between {found.name(pair[0])} and {found.name(pair[1])} {how}; both do well with others"
            yield Finding(pair, text, measured=True)
    if isinstance(found.together, str) and not errors:
        yield Finding((), f"every two nodes can all-reduce, but not all together: {found.together}", measured=True)


def _stores(found: Gathered) -> Iterable[Finding]:
    stores = {(store.uri, rank): store for rank, report in found.reports.items() for store in report.stores}
    for uri in dict.fromkeys(uri for uri, _ in stores):
        mine = {rank: store for (where, rank), store in stores.items() if where == uri}
        failed = {rank: store.error for rank, store in mine.items() if store.error}
        if len(failed) == len(mine):
            yield Finding((), f"storage, on every node: {next(iter(failed.values()))} [{uri}]", _STORAGE)
            continue
        for rank, error in failed.items():
            yield Finding((rank,), f"storage, unlike other nodes: {error} [{uri}]", measured=True)
        for verb, rates in (
            ("writing", {rank: store.write for rank, store in mine.items() if store.write}),
            ("reading", {rank: store.read for rank, store in mine.items() if store.read}),
        ):
            median = statistics.median_high(rates.values()) if rates else 0.0
            for rank, rate in rates.items():
                if rate * STORE < median and rate < ENOUGH:
                    said = f"({bytes_text(rate)}, not {bytes_text(median)})"
                    text = f"{verb} {uri} {_times(median, rate)} slower than the median {said}"
                    yield Finding((rank,), text, measured=True)


def _disks(found: Gathered) -> Iterable[Finding]:
    low = {
        rank: (folder, free)
        for rank, report in found.reports.items()
        for folder, free in report.disks.items()
        if free < FREE_BYTES
    }
    texts = {rank: f"{folder} has {free / 1e9:.2f} GB free: make room" for rank, (folder, free) in low.items()}
    if texts and len(texts) == len(found.reports):
        yield Finding((), f"on every node {next(iter(texts.values()))}", _STORAGE)
        return
    for rank, text in texts.items():
        yield Finding((rank,), text)


def _mlflow(found: Gathered) -> Iterable[Finding]:
    failed = {rank: report.mlflow_error for rank, report in found.reports.items() if report.mlflow_error}
    if failed and len(failed) == len(found.reports):
        text = f"MLflow, from every node: {next(iter(failed.values()))}; training goes on, and `biggan sync` delivers later"
        yield Finding((), text, 0)
    elif failed:
        for rank, error in failed.items():
            yield Finding((rank,), f"MLflow, unlike other nodes: {error}", measured=True)
    for rank, report in found.reports.items():
        if (report.mlflow or 0) > MLFLOW_SECONDS:
            yield Finding((rank,), f"MLflow takes {report.mlflow:.1f} s for a request; training does not wait for it", 0)


def bytes_text(rate: float) -> str:
    """Return a rate in bytes per second as text."""
    return f"{rate / 1e9:.3g} GB/s" if rate >= 1e9 else f"{rate / 1e6:.3g} MB/s"


def _times(median: float, rate: float) -> str:
    return f"{median / rate:.2g}x" if rate else "infinitely"
