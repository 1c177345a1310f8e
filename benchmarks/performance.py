"""`python -m benchmarks.performance`: write the table of docs/performance.md anew, from benchmarks/results/peers-*.json.

These are the last lines of `python -m benchmarks.peers`, kept in one file for each comparison.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- table: python -m benchmarks.performance -->\n", "<!-- end of table -->\n"
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


def page(text: str) -> str:
    """The page with the table of now. Raises ValueError if the marks are not there."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE} has lost its marks {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + "\n" + table() + "\n" + END + after


def main() -> int:
    PAGE.write_text(page(PAGE.read_text()))
    print(table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
