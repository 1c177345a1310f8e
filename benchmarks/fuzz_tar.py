"""Give damaged tars to the tar scanner: it must refuse each, or read it as Python's `tarfile` does.

    python -m benchmarks.fuzz_tar --seconds 600 --seed 0

The tars hold random small files in every format. They are cut, bytes are changed, and blocks are removed, repeated, exchanged
or zeroed. What the scanner reads must begin with the members that `tarfile` finds, byte for byte: `tarfile` stops at damage
without an error. Long names have no checksum in a tar. After damage to one, the two may read different names, and the table
counts that.
"""

import argparse
import contextlib
import io
import random
import tarfile
import time
from collections import Counter

from benchmarks.support.fuzz.mutations import damage_tar
from benchmarks.support.report import report
from pipeline.data.tar import TarError, members

_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def _tar(rng: random.Random) -> bytearray:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=rng.choice(_FORMATS)) as tar:
        for i in range(rng.randint(0, 5)):
            info = tarfile.TarInfo("d/" * rng.choice([0, 1, 40]) + f"{i}{'n' * rng.choice([0, 20, 80])}.jpg")
            data = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000]))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return bytearray(out.getvalue())


def _ours(data: bytes, step: int) -> list[tuple[str, bytes]] | None:
    try:
        return [(m.name, m.data or b"") for m in members(data[i : i + step] for i in range(0, len(data), step))]
    except TarError:
        return None


def _theirs(data: bytes) -> list[tuple[str, bytes]]:
    """What tarfile finds before it stops."""
    found = []
    errors = contextlib.suppress(tarfile.TarError, ValueError, OSError, IndexError)
    with errors, tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                content = tar.extractfile(member)
                found.append((member.name, content.read() if content else b""))
    return found


def main() -> None:
    """Measure and report, as the module says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz_tar", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="time to try (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default: 0)")
    args = parser.parse_args()
    rng, began, slowest = random.Random(args.seed), time.monotonic(), 0.0
    refused: Counter[str] = Counter()
    read: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    names: Counter[str] = Counter()
    while time.monotonic() - began < args.seconds:
        data = _tar(rng)
        kind = damage_tar(data, rng)
        start = time.monotonic()
        found = _ours(bytes(data), rng.choice([1 << 16, 700, 37]))
        slowest = max(slowest, time.monotonic() - start)
        if found is None:
            refused[kind] += 1
            continue
        read[kind] += 1
        theirs = _theirs(bytes(data))
        found = found[: len(theirs)]
        wrong[kind] += [content for _, content in theirs] != [content for _, content in found]
        names[kind] += theirs != found
    rows = [
        {"damage": kind, "refused": refused[kind], "read": read[kind], "other data": wrong[kind], "other names": names[kind]}
        for kind in sorted(read)
    ]
    figures = {"seed": args.seed, "tars": sum(refused.values()) + sum(read.values()), "slowest_seconds": round(slowest, 3)}
    report("fuzz_tar", rows, figures, not wrong.total() and not names["nothing"] and not refused["nothing"] and slowest < 5)


if __name__ == "__main__":
    main()
