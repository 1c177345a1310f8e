"""`python -m benchmarks.performance`: write the tables of docs/performance.md again, from benchmarks/results/.

peers-*.json are the last lines of `python -m benchmarks.peers`, one file for each comparison. step-*.json come from `python -m
benchmarks.step`, and quality-*.json from `python -m benchmarks.quality`, for one table each. scale.json comes from `python -m
benchmarks.scale`, for two tables.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.report import cell

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- table: python -m benchmarks.performance -->\n", "<!-- end of table -->\n"
STEP, QUALITY = "<!-- table: step -->\n", "<!-- table: quality -->\n"
MEASURED, PLANNED = "<!-- table: scale, measured -->\n", "<!-- table: scale, planned -->\n"
_STEP = ("device", "configuration", "micro-batch", "images/s", "d_step s", "g_step s", "matrix TFLOP/s", "MFU", "GB")
_QUALITY = ("device", "images", "way", "accuracy", "accuracy, errors", "FID", "FID, errors")
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
            cells = [device(result), network, found["setting"]["micro_batch"], row["step"], f"{row['images/s']:.2f}"]
            cells += [f"{row['ratio']:.2f}", f"{row['least']:.2f} to {row['most']:.2f}"]
            yield f"| {' | '.join(map(str, cells))} |\n"


def device(result: Mapping[str, Any]) -> str:
    """What a result was measured on, and with which torch."""
    return f"{result['device']}, torch {result['versions']['torch']}"


def table() -> str:
    """What the results say now."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("peers-*.json"))]
    return _HEADER + "".join(line for result in found for line in rows(result))


def step_table() -> dict[str, str]:
    """The table of step-*.json by its mark."""
    found: list[dict[str, Any]] = []
    for path in sorted(RESULTS.glob("step-*.json")):
        result = json.loads(path.read_text())
        name = f"`{' '.join([result['config'], *result['overrides']])}`"
        begun = {"device": device(result), "configuration": name}
        found += [begun | {"images/s": row.get("error")} | row for row in result["rows"]]
    return {STEP: columns(found, _STEP)} if found else {}


def quality_table() -> dict[str, str]:
    """The means of quality-*.json by their mark."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob("quality-*.json")]
    results.sort(key=lambda result: result["images"])
    begun = [({"device": device(result), "images": result["images"]}, result["means"]) for result in results]
    found = [one | {"way": way} | figures for one, means in begun for way, figures in means.items()]
    return {QUALITY: columns(found, _QUALITY)} if found else {}


def scale_tables() -> dict[str, str]:
    """The tables of scale.json by the marks that they follow; none while there is no such file."""
    file = RESULTS / "scale.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    return {mark: columns(result[key], names) for mark, (key, names) in _SCALE.items() if result}


def columns(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A table of these columns, to three digits; a row may lack some."""
    lines = [names, ["---"] * len(names), *([cell(row.get(name), 3) for name in names] for row in found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables() -> dict[str, str]:
    """All of the page's, by the marks that they follow."""
    return {BEGIN: table()} | step_table() | quality_table() | scale_tables()


def page(text: str) -> str:
    """The page with the tables of now. Raises ValueError if marks are not there."""
    for begin, now in tables().items():
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(END)
        if not mark:
            raise ValueError(f"{PAGE} has lost its marks {begin.strip()} and {END.strip()}")
        text = before + begin + "\n" + now + "\n" + END + after
    return text


def main() -> int:
    PAGE.write_text(page(PAGE.read_text()))
    print("\n".join(tables().values()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
