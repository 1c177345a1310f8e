"""Read a trace of torch's profiler: which kernels take a device's time, and when nothing runs."""

from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]
"""Of a Chrome trace: `name`, `cat`, and from `ts` on for `dur`, in microseconds."""
ON_A_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
KERNELS, GAPS = 20, 5
_NAME = 120
"""Characters of a kernel's name: templates can be thousands."""


def work(events: Iterable[Event], gpu: bool) -> list[Event]:
    """Return the events in which the device worked, by their start: kernels and copies, or a CPU's operators."""
    kinds = ON_A_GPU if gpu else ("cpu_op",)
    return sorted((e for e in events if e.get("ph") == "X" and e.get("cat") in kinds), key=lambda e: (e["ts"], -e["dur"]))


def kernel_times(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return the slowest kernels: calls, seconds in all, and their share of the seconds of all kernels.

    Of operators that call others, as a CPU's do, what is inside the others is theirs alone.
    """
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    open_ones: dict[Any, list[Event]] = {}
    for event in events:
        seconds[event["name"]] = seconds.get(event["name"], 0.0) + event["dur"] / 1e6
        calls[event["name"]] = calls.get(event["name"], 0) + 1
        stack = open_ones.setdefault((event.get("pid"), event.get("tid")), [])
        while stack and _end(stack[-1]) <= event["ts"]:
            stack.pop()
        if stack:
            seconds[stack[-1]["name"]] -= event["dur"] / 1e6
        stack.append(event)
    total = sum(seconds.values())
    dearest = sorted(seconds.items(), key=lambda item: -item[1])[:KERNELS]
    return [{"kernel": name[:_NAME], "calls": calls[name], "seconds": s, "share": s / total} for name, s in dearest]


def longest_gaps(events: Iterable[Event]) -> dict[str, Any]:
    """Return `busy`, the share of the time from the first to the last event in which any ran, and the longest `gaps`.

    `events` are in the order of their beginning; streams may overlap.
    """
    gaps: list[dict[str, Any]] = []
    first = last = None
    for event in events:
        if last is None:
            first = last = event
            continue
        if event["ts"] > _end(last):
            micros = event["ts"] - _end(last)
            gaps.append({"microseconds": micros, "after": last["name"][:_NAME], "before": event["name"][:_NAME]})
        if _end(event) > _end(last):
            last = event
    if first is None or last is None:
        return {"busy": None, "gaps": []}
    span, idle = _end(last) - first["ts"], sum(gap["microseconds"] for gap in gaps)
    gaps.sort(key=lambda gap: -gap["microseconds"])
    return {"busy": 1 - idle / span if span else None, "gaps": gaps[:GAPS]}


def _end(event: Event) -> float:
    return event["ts"] + event["dur"]
