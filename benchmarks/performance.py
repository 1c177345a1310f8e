"""`python -m benchmarks.performance`: write the tables of docs/performance.md anew, from benchmarks/results/.

peers-*.json are the last lines of `python -m benchmarks.peers`, one file for each comparison; scale.json is that of
`python -m benchmarks.scale`, for two tables.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- table: python -m benchmarks.performance -->\n", "<!-- end of table -->\n"
MEASURED, PLANNED = "<!-- table: scale, measured -->\n", "<!-- table: scale, planned -->\n"
_SCALE = {
    MEASURED: ("rows", ("processes", "threads", "stage", "images/s", "efficiency", "communication", "MB", "GB")),
    PLANNED: ("plan", ("GPUs", "micro-batch", "images/s", "efficiency", "communicating", "GB sent", "norm messages", "GiB")),
}
"""Of each table its place in scale.json, and its columns."""
_HEADER = "| device | network | micro-batch | step | images/s | ratio | least to most |\n|---|---|---|---|---|---|---|\n"


def rows(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one comparison."""
    for found in result.values():
        if not isinstance(found, Mapping) or "rows" not in found:
            continue
        network = f"{found['setting']['resolution']} px, ch {found['setting']['ch']}"
        for row in found["rows"]:
            device = f"{result['device']}, torch {result['versions']['torch']}"
            cells = [device, network, found["setting"]["micro_batch"], row["step"], f"{row['images/s']:.2f}"]
            cells += [f"{row['ratio']:.2f}", f"{row['least']:.2f} to {row['most']:.2f}"]
            yield f"| {' | '.join(map(str, cells))} |\n"


def table() -> str:
    """What the results say now."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("peers-*.json"))]
    return _HEADER + "".join(line for result in found for line in rows(result))


def scale_tables() -> dict[str, str]:
    """The tables of scale.json by the marks that they follow; none while there is no such file."""
    file = RESULTS / "scale.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    return {mark: columns(result[key], names) for mark, (key, names) in _SCALE.items() if result}


def columns(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A table of these columns, to three digits where numbers are below 1,000."""
    lines = [names, ["---"] * len(names)]
    lines += [[f"{row[name]:,.0f}" if row[name] >= 1000 else f"{row[name]:.3g}" for name in names] for row in found]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(text: str) -> str:
    """The page with the tables of now. Raises ValueError if marks are not there."""
    for begin, now in ({BEGIN: table()} | scale_tables()).items():
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(END)
        if not mark:
            raise ValueError(f"{PAGE} has lost its marks {begin.strip()} and {END.strip()}")
        text = before + begin + "\n" + now + "\n" + END + after
    return text


def main() -> int:
    PAGE.write_text(page(PAGE.read_text()))
    print("\n".join([table(), *scale_tables().values()]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
