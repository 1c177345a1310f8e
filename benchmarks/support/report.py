"""Print the result of a benchmark: a table for people, then one line of JSON for programs.

Rows are mappings from column to value; a row may lack columns. Figures go into the JSON as they are, beside the device,
the versions and the commit that they were measured on.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def report(name: str, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any], ok: bool) -> None:
    """Print `rows` as a table and, as the last line, the JSON object of benchmark `name`."""
    print("\n".join(table(rows)))
    # Whatever JSON has no word for (a path, a dtype) is named by its text rather than lost with the whole line.
    print(json.dumps({"benchmark": name, "ok": ok, **figures, **surroundings()}, default=str), flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines: a header, then one line per row; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def surroundings() -> dict[str, Any]:
    """Return what a figure depends on: device, versions, and the commit, with `+dirty` if files are changed."""
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in ("torch", "deepspeed", "accelerate")}
    return {"device": device(), "versions": versions, "commit": commit()}


def device() -> str:
    """Return the GPUs, or the CPU's model and the number of cores that this process may use."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {models[0] if models else platform.machine()}"


def commit() -> str:
    """Return the commit of this checkout, or `unknown` outside of a checkout."""
    if not shutil.which("git"):
        return "unknown"
    here = Path(__file__).parents[1]
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True, check=False)
    return found.stdout.strip() + "+dirty" * bool(changed.returncode) if found.returncode == 0 else "unknown"


def cell(value: Any, digits: int = 4) -> str:
    """Format a value for a table: floats with so many digits, large ones without decimals."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value + 0.0:.{digits}g}"  # + 0.0: no -0
