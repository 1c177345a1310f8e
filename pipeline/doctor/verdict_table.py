"""What is said of the nodes, for people and for programs."""

from collections import Counter
from dataclasses import asdict

from pipeline.doctor.verdict import Finding, Gathered, bad_nodes, bytes_text, exit_code


def verdict_table(found: Gathered, findings: list[Finding]) -> str:
    """A row for each node, then what is wrong."""
    heads = ("node", "host", "devices", "bf16 TF/s", "fp32 TF/s", "links MB/s", "stores MB/s w/r", "MLflow", "clock", "free GB")
    rows = [heads, *(_row(found, rank) for rank in range(found.nodes))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if found.pairs:
        path = "NCCL, first GPUs" if found.cuda else "gloo"
        rate = f"{bytes_text(found.together)}" if isinstance(found.together, float) else "failed"
        lines.append(f"all-reduce of all: {rate} (bus bandwidth; one process of each node, {path})")
    if found.reports and not any(report.gpus for report in found.reports.values()):
        lines.append("no GPU on any node: the matrix rates are the processors'")
    lines += [f"{found.name(rank)}: {note}" for rank, report in found.reports.items() for note in report.notes]
    for finding in findings:
        who = f"{found.name(finding.nodes[0])}: " if len(finding.nodes) == 1 else ""
        lines.append(f"{'BAD ' if finding.code else 'note'}  {who}{finding.text}")
    bad = bad_nodes(findings)
    if bad:
        lines.append(f"leave out: {', '.join(found.name(rank) for rank in bad)}")
    elif not exit_code(findings):
        lines.append(f"all {found.nodes} nodes are well" if found.nodes > 1 else "the node is well")
    return "\n".join(lines)


def _row(found: Gathered, rank: int) -> tuple[str, ...]:
    report, host = found.reports.get(rank), found.hosts.get(rank, "?")
    if report is None:
        return (str(rank), host, "no report", *[""] * 7)
    kinds = Counter(device.name for device in report.devices)
    rates = [[getattr(device, precision) / 1e12 for device in report.devices] for precision in ("bf16", "fp32")]
    links = [rate for pair, rate in found.pairs.items() if rank in pair]
    reached = sorted(rate for rate in links if not isinstance(rate, str))
    stores = [f"{_mega(store.write)}/{_mega(store.read)}" if not store.error else "failed" for store in report.stores]
    ahead = found.clocks.get(rank)
    return (
        str(rank),
        host,
        ", ".join(f"{times} x {name}" if report.gpus else name for name, times in kinds.items()),
        *(f"{min(values):.3g}" if values else "" for values in rates),
        f"{_mega(reached[0])}..{_mega(reached[-1])}" if reached else "failed" if links else "-",
        " ".join(stores) or "-",
        "failed" if report.mlflow_error else f"{report.mlflow * 1e3:.0f} ms" if report.mlflow is not None else "-",
        f"{ahead[0]:+.2f} s".replace("-0.00", "+0.00") if ahead else "-",
        " ".join(f"{free / 1e9:.0f}" for free in report.disks.values()),
    )


def _mega(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e6:,.0f}"


def verdict_json(found: Gathered, findings: list[Finding]) -> dict[str, object]:
    """The whole of it, for programs."""
    return {
        "ok": not exit_code(findings),
        "exit_code": exit_code(findings),
        "bad": [{"node": rank, "host": found.hosts.get(rank)} for rank in bad_nodes(findings)],
        "findings": [asdict(finding) for finding in findings],
        "nodes": {
            rank: {"host": found.hosts.get(rank), "clock": found.clocks.get(rank)} | asdict(report)
            for rank, report in found.reports.items()
        },
        "pairs": [[*pair, rate] for pair, rate in found.pairs.items()],
        "all_reduce": found.together,
    }
